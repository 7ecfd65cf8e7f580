"""Makes of a lab what its file wants, any number of times. What carries a plan out is imported where there is one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from provisioner.actions.labs import real
from provisioner.actions.labs.changes import Change, Leave, Plan
from provisioner.actions.labs.plan import plan
from provisioner.actions.labs.wanted import placed, wanted_by
from provisioner.actions.labs.wishes import Lab
from provisioner.actions.parents import Links
from provisioner.actions.request import CreateRequest
from provisioner.actions.wiring import Findings
from provisioner.context import Context
from provisioner.errors import MacvmError
from provisioner.host.labs import Labs, make_key
from provisioner.model.found import FoundMachine

if TYPE_CHECKING:
    from provisioner.actions.labs.runner import Watch

#: Seconds between two looks at what a killed macvm left, and libvirt may still carry out.
_LOOK_AGAIN = 1.0


class Options(NamedTuple):
    """`only` names machines and endpoints that alone are to change; `jobs` 0 for what suits the host."""

    only: tuple[str, ...] = ()
    jobs: int = 0
    leave: Leave = Leave()


class Failure(NamedTuple):
    name: str
    message: str
    hint: str


class Outcome(NamedTuple):
    """`left` are changes that need `--restart` or `--recreate`; `stopped` tells that the user wanted no more."""

    plan: Plan
    done: tuple[str, ...]
    left: tuple[Change, ...]
    failed: tuple[Failure, ...]
    stopped: bool

    @property
    def is_whole(self) -> bool:
        return not (self.left or self.failed or self.stopped)


def look(context: Context, lab: Lab, only: Sequence[str] = ()) -> Plan:
    """What `up` would do. Changes nothing. Raises Problems, NotFound."""
    context.require_local("looking at a lab")
    found = _nothing_to_do(context, lab, only) or _plan(context, lab, only)
    new = [work.wanted.request for work in found.machines if work.wanted and (work.real is None or work.recreate)]
    if new:
        _check_images(context, lab, new)
    return found


def _plan(
    context: Context,
    lab: Lab,
    only: Sequence[str],
    definitions: Sequence[tuple[FoundMachine, FoundMachine]] | None = None,
) -> Plan:
    links = Links.read()
    return plan(wanted_by(context, lab, links), real.look(context, lab.name, links, definitions), only)


def _nothing_to_do(context: Context, lab: Lab, only: Sequence[str]) -> Plan | None:
    """The plan of a lab that is as it should be, as far as libvirt was seen ahead. None otherwise: whatever differs, or
    cannot be, is said of what a look at everything at once sees. Raises HypervisorFailed."""
    definitions = context.definitions_ahead()
    if definitions is None:
        return None
    try:
        found = _plan(context, lab, only, definitions)
    except MacvmError:
        return None
    return None if found.changes else found


def _check_images(context: Context, lab: Lab, new: Sequence[CreateRequest]) -> None:
    """That what each is made from is here, or known where to get. Raises Problems."""
    from provisioner.actions import pulling

    findings = Findings()
    for request in new:
        with findings.checking(), placed(lab, "image", request.name):
            pulling.choose(context, request)
    findings.finish()


def _lock(name: str) -> str:
    return f"lab-{name}"


@contextmanager
def changing(context: Context, name: str, path: str, doing: str) -> Iterator[bool]:
    """Holds a lab: another command that changes it waits, and says who holds it. Yields whether it is a new one."""
    labs = Labs(context.store)
    found = labs.find(name)
    waiting = f"waiting for {found.holder}" if found else f"waiting for another macvm that changes the lab {name}"
    with context.lock(_lock(name), waiting=waiting):
        is_new = labs.find(name) is None
        labs.hold(name, path, f"macvm lab {doing} {name}, process {os.getpid()}, since {time.strftime('%H:%M:%S')}")
        yield is_new


def up(
    context: Context, lab: Lab, options: Options, watch: Watch, agree: Callable[[Plan], None] = lambda _: None
) -> Outcome:
    """`agree` is asked once the plan is known, and raises where it may not be. Goes on past a failure.

    Raises Problems, NotFound, and what `agree` raises.
    """
    context.require_local_root("bringing a lab up")
    path = str(lab.path.absolute()) if lab.path else ""
    settled = _nothing_to_do(context, lab, options.only) if _is_at_rest(context, lab.name, path) else None
    if settled is not None:
        return Outcome(settled, (), (), (), False)
    context.forget_ahead()
    context.hypervisor.open_ahead()
    with changing(context, lab.name, path, "up") as is_new:
        make_key(context.state_dir)
        _settle(context, {request.name for request in lab.machines})
        try:
            found = look(context, lab, options.only)
            agree(found)
        except BaseException:
            if is_new:
                Labs(context.store).forget(lab.name)
            raise
        told = [nic.addressing for request in lab.machines for nic in request.nics]
        told += [endpoint.addressing for endpoint in lab.endpoints]
        context.promised = frozenset(address for one in told for address in one.addresses)
        if not found.changes:
            return Outcome(found, (), (), (), False)
        from provisioner.actions.labs.bringing import Bringing

        return Bringing(context, lab, found, options, watch).all()


def _is_at_rest(context: Context, name: str, path: str) -> bool:
    """Whether a lab is known by this file, and nobody is changing it: there is nothing to write down, then, and nobody
    to wait for."""
    stored = Labs(context.store).find(name)
    known = stored is not None and path in ("", stored.path)
    return known and not context.has_unfinished and not context.is_locked(_lock(name))


def _settle(context: Context, names: set[str]) -> None:
    """Waits for what a killed macvm left of these machines, and libvirt may still carry out."""
    if not context.has_unfinished:
        return
    from provisioner.actions import recovery

    said = False
    while True:
        for line in recovery.recover(context):
            if not line.startswith("uncertain: "):
                context.say(line)
        if not any(row.machine in names and row.looked is not None for row in context.journal.abandoned()):
            return
        if not said:
            context.say("waiting a minute: libvirt may still carry out what a killed macvm asked of it")
            said = True
        time.sleep(_LOOK_AGAIN)
