"""`shim watch`: keeps shims and routes right while guests come and go, whoever starts and stops them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

from provisioner.actions import discovery, power, shimming, views
from provisioner.actions.discovery import Ears
from provisioner.actions.views import MachineView, NicView
from provisioner.context import Context
from provisioner.errors import HypervisorFailed, MacvmError, NotFound
from provisioner.host import netlink
from provisioner.model.mode import MacvtapMode

#: Seconds that events are gathered for: a start brings a dozen of them.
_GATHER = 0.2
#: Seconds after which all is looked at without an event, and until a daemon that is gone is asked again.
_ANYWAY, _AGAIN = 60.0, 1.0
#: Seconds after which the switch is asked whether it sends back what VEPA guests send: it tells nobody of a change.
_ASK_SWITCH = 10.0


def watch(context: Context, stopped: Callable[[], bool]) -> None:
    """Until `stopped`. Every event of libvirt's and of the kernel's has the wanted set compared with what is there."""
    context.require_local_root("watching")
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    kernel, ears = netlink.Monitor(), Ears(context)
    lost = ""
    try:
        while not stopped():
            try:
                with context.hypervisor.watching(lambda: _wake(writer)):
                    if lost:
                        context.say("libvirt is back")
                    lost = ""
                    _watch(context, stopped, ears, kernel, reader)
            except HypervisorFailed as error:
                if error.message != lost:
                    context.say(f"waiting for libvirt: {error.message}")
                lost = error.message
                context.hypervisor.close()
                time.sleep(_AGAIN)
    finally:
        ears.close()
        kernel.close()
        os.close(reader)
        os.close(writer)


def _wake(writer: int) -> None:
    # A pipe that is full wakes as well as one more byte would.
    with contextlib.suppress(BlockingIOError):
        os.write(writer, b"!")


class _Pace:
    """Has work wait, so that a flood of events takes a fifth of a CPU at the most: the first is never kept waiting."""

    def __init__(self) -> None:
        self._next = 0.0

    def wait(self) -> float:
        """Seconds until there may be more."""
        return max(0.0, self._next - time.monotonic())

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._next = ended + max(_GATHER, 4 * (ended - begun))


def _watch(context: Context, stopped: Callable[[], bool], ears: Ears, kernel: netlink.Monitor, reader: int) -> None:
    due, said = time.monotonic(), ""
    settling, following = _Pace(), _Pace()
    changed: set[str] = set()
    while not stopped():
        if time.monotonic() >= due:
            with settling.working():
                problem, anyway = _settle(context, ears)
            if problem != said and problem:
                context.say(problem)
            said, due = problem, time.monotonic() + anyway
        if changed and not following.wait():
            try:
                with following.working():
                    discovery.follow(context, sorted(changed))
            except MacvmError:
                due = time.monotonic()  # what is in the way is said there
            changed.clear()
        patience = min(due - time.monotonic(), following.wait() if changed else _AGAIN, _AGAIN)
        heard, event = ears.hear(max(0.0, patience), kernel.fileno(), reader)
        changed.update(heard)
        if event:
            kernel.drain()
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 1 << 16)
            due = min(due, time.monotonic() + max(_GATHER, settling.wait()))


def _prepare(context: Context, machines: Sequence[MachineView], new: Sequence[NicView]) -> None:
    """Sets the host state of macvtaps that libvirt made: at boot, by virsh. macvm's own start has done so before."""
    for machine in machines:
        if machine.uuid and any(nic in new for nic in machine.nics):
            # One that ends right now needs none.
            with contextlib.suppress(NotFound):
                power.prepare_nics(context, machine.uuid)


def _settle(context: Context, ears: Ears) -> tuple[str, float]:
    """Compares all that is wanted with what there is. Returns what could not be done, "" for nothing, and the seconds
    until it is to be looked at again without an event."""
    listing = views.look(context)
    if listing.problem:
        raise listing.problem
    nics = discovery.direct_nics(listing.machines)
    gone = context.store.heard.keep_only([nic.mac for nic in nics])
    new = ears.listen_to(nics)
    _prepare(context, listing.machines, new)
    ears.ask_beside(nic for nic in new if discovery.is_silent(nic))
    problems = []
    for parent in dict.fromkeys((*gone, *shimming.known_parents(context))):
        try:
            discovery.follow(context, [parent])
        except MacvmError as error:
            problems.append(error.message)
    vepa = any(nic.kernel_mode == MacvtapMode.VEPA.value for nic in nics)
    return "; ".join(problems), _ASK_SWITCH if vepa else _ANYWAY
