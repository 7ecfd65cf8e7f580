"""Waiting until machines have an address, or answer at it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from provisioner.actions import discovery, reaching, views
from provisioner.actions.reaching import Reached, Tables
from provisioner.actions.views import MachineView, NicView
from provisioner.context import Context
from provisioner.errors import TimeUp
from provisioner.host import system
from provisioner.model.nic import Address

#: Seconds until all is looked at again, and for which one question waits for its answer.
_TURN, _PATIENCE = 0.1, 1.0

#: Seconds between two questions to guests of which nothing is known.
_ASK_AGAIN = 5.0

#: Machines that are asked at once.
_AT_ONCE = 32

_ASKS: dict[str, Callable[[Address, float], bool]] = {"ping": system.answers_ping, "ssh": system.greets_as_ssh}


class Waiting:
    """Hears guests, those that are begun with `listen` from their first frame on. `close` in any case."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._hears = context.is_local and os.geteuid() == 0
        self._ears = discovery.Ears(context)
        self._early: list[NicView] = []
        #: When those that nothing is known of are asked once more.
        self._due = 0.0
        #: Tells that an answer has come.
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        self._ears.close()
        os.close(self._bell)

    def listen(self, machine: str) -> None:
        """To a guest that has not run yet, by its name or UUID."""
        self._early += _untold([views.show(self._context, machine)])
        self._ears.listen_to(self._early)

    def until(self, names: Sequence[str], what: str, timeout: float) -> dict[str, str]:
        """Machine to the first of its addresses that is known (`ip`) or answers (`ping`, `ssh`). All of them are waited
        for side by side.

        An endpoint is one too. Raises NotFound; TimeUp after `timeout` seconds, with those that are missing.
        """
        deadline = time.monotonic() + timeout
        found, asked = dict[str, str](), dict[str, Future[str]]()
        with ThreadPoolExecutor(_AT_ONCE, "ask") as pool:
            while True:
                self._take_answers(asked, found)
                missing = self._look(name for name in names if name not in found)
                left = deadline - time.monotonic()
                for name, (_, reached) in missing.items():
                    if what == "ip" and reached.address is not None:
                        found[name] = reached.address
                    elif what != "ip" and _candidates(reached) and name not in asked:
                        patience = max(_TURN, min(_PATIENCE, left))
                        asked[name] = pool.submit(_ask, _ASKS[what], _candidates(reached), patience)
                        asked[name].add_done_callback(lambda _: os.eventfd_write(self._bell, 1))
                silent = [one for name, one in missing.items() if name not in found]
                if all(name in found for name in names):
                    return {name: found[name] for name in names}
                if left <= 0 and not any(answer.done() for answer in asked.values()):
                    raise self._time_up(silent, what, timeout)
                self._hear([machine for machine, _ in silent], max(0.0, min(_TURN, left)))

    def _take_answers(self, asked: dict[str, Future[str]], found: dict[str, str]) -> None:
        for name in [name for name, answer in asked.items() if answer.done()]:
            address = asked.pop(name).result()
            if address:
                found[name] = address

    def _look(self, names: Iterable[str]) -> dict[str, tuple[MachineView, Reached]]:
        tables = Tables.read()
        machines = {name: reaching.find(self._context, name) for name in names}
        return {name: (one, reaching.reach(self._context, one, tables)) for name, one in machines.items()}

    def _hear(self, machines: Iterable[MachineView], seconds: float) -> None:
        if self._hears:
            untold = _untold(machines)
            new = self._ears.listen_to(untold)
            # One that was configured before anybody listened may be silent, and so may one that was asked too early.
            if time.monotonic() >= self._due:
                new, self._due = untold, time.monotonic() + _ASK_AGAIN
            self._ears.ask_beside(nic for nic in new if discovery.is_silent(nic))
        changed, rung = self._ears.hear(seconds, self._bell)
        if rung:
            os.eventfd_read(self._bell)
        discovery.follow(self._context, changed)

    def _time_up(self, silent: Sequence[tuple[MachineView, Reached]], what: str, timeout: float) -> TimeUp:
        unknown = [one for one in silent if not _candidates(one[1])]
        known = [one for one in silent if _candidates(one[1])]
        said, hints = list[str](), list[str]()
        if known:
            who = "; ".join(f"{machine.name} ({', '.join(map(str, _candidates(one)))})" for machine, one in known)
            said.append(f"no answer{' of an SSH server' if what == 'ssh' else ''} within {timeout:g} s from {who}")
            machine, reached = known[0]
            if not machine.runs:
                hints.append(f"it is {machine.state}: macvm start {machine.name}")
            elif any(one.reachable for one in reached.addresses):
                see = (
                    f"endpoint exec {machine.name} -- ip address"
                    if machine.kind == "endpoint"
                    else f"console {machine.name}"
                )
                hints.append(f"see what the guest says: macvm {see}; it stays as it is")
            else:
                hints.append(f"this host has no route to {machine.name}: macvm shim status says why")
        for machine, reached in unknown:
            why, hint = reaching.why_none(self._context, machine, reached)
            said.append(why if known else f"after {timeout:g} s {why}")
            hints.append(hint)
        return TimeUp("; ".join(said), hints[0])


def _candidates(reached: Reached) -> list[Address]:
    """The addresses to ask at, that which is preferred first."""
    return [one.ip for one in reached.addresses if not one.ip.is_link_local]


def _ask(answers: Callable[[Address, float], bool], addresses: Sequence[Address], seconds: float) -> str:
    """The first that answers, "" for none; a refusal comes at once, and is not asked for again at once."""
    begun = time.monotonic()
    for address in addresses:
        if answers(address, seconds):
            return str(address)
    time.sleep(max(0.0, begun + _TURN - time.monotonic()))
    return ""


def _untold(machines: Iterable[MachineView]) -> list[NicView]:
    """NICs whose addresses no lease tells."""
    nics = discovery.direct_nics(machines)
    return [nic for nic in nics if all(address.source != "lease" for address in nic.addresses)]
