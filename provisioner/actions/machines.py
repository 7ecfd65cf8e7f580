"""Creating and deleting machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from provisioner.actions import addresses, images, passthrough, power, probing, shims
from provisioner.actions.plan import Plan, make_plan
from provisioner.actions.probing import InUse, Question
from provisioner.actions.removal import Remains, remove_all, remove_domain, remove_files
from provisioner.actions.request import CreateRequest
from provisioner.actions.undo import Undo, carry_out
from provisioner.actions.wiring import Findings, Surroundings
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, PartlyDone, Unable
from provisioner.host import disks, seeds
from provisioner.host.journal import Work
from provisioner.host.leases import Leases
from provisioner.model.nic import Address, Nic

if TYPE_CHECKING:
    from provisioner.actions.pulling import Progress

#: Called with the UUID of a machine whose NICs are there, and which has not run an instruction.
BeforeResume = Callable[[str], None]


class Created(NamedTuple):
    """A machine that is there now; `notes` are for its user to know."""

    name: str
    uuid: str
    notes: tuple[str, ...]


class Deleted(NamedTuple):
    name: str
    kept: tuple[Path, ...]


def unused_name(context: Context) -> str:
    """`vm1`, or the first like it that is free, for one machine and for several: `vm1-1` takes `vm1` too."""
    context.require_local("creating a VM")
    taken = {machine.name.partition("-")[0] for machine in context.hypervisor.machines()}
    number = 1
    while f"vm{number}" in taken:
        number += 1
    return f"vm{number}"


def check(context: Context, requests: Sequence[CreateRequest]) -> None:
    """Raises Problems with what stands in the way of any of them, as a pool without room for all; changes nothing."""
    context.require_local_root("creating a VM")
    findings, planned = Findings(), list[Nic]()
    for request in requests:
        with findings.checking():
            planned += make_plan(context, request, planned).machine.nics
    findings.finish()


def with_images(
    context: Context, requests: Sequence[CreateRequest], progress: Progress | None = None
) -> list[CreateRequest]:
    """The same, with images that are here: one that is not is pulled or imported, when nothing else stands in the way.

    Raises Problems, and what the download or the image's file is refused for.
    """
    from provisioner.actions import pulling

    context.require_local_root("creating a VM")
    try:
        sources = [pulling.lacking(context, request) for request in requests]
    except MacvmError:
        # Which says this, and all else that is wrong.
        check(context, requests)
        raise
    wanted = dict.fromkeys(source for source in sources if source)
    if wanted:
        check(context, requests)
    brought = {source: images.title(pulling.bring(context, source, progress)) for source in wanted}
    return [
        request._replace(image=brought[source], checksum="") if source else request
        for request, source in zip(requests, sources, strict=True)
    ]


def create(
    context: Context,
    request: CreateRequest,
    before_resume: BeforeResume | None = None,
    there: Surroundings | None = None,
) -> Created:
    """Makes and starts a machine, or leaves nothing behind. `there` is what somebody has just looked at.

    Raises Problems from the plan, and what libvirt, the kernel, the disk or an image's publisher refuse.
    """
    (request,) = with_images(context, [request])
    return _begin(context, make_plan(context, request, there=there), before_resume)


def _begin(context: Context, plan: Plan, before_resume: BeforeResume | None) -> Created:
    """The second half of `create`: everything that changes something."""
    name, uuid = plan.machine.name, plan.machine.uuid

    def claim(leases: Leases) -> Mapping[str, Any]:
        nonlocal plan
        plan = plan.with_nics(addresses.claim(leases, uuid, name, plan.machine.nics, plan.segments))
        return Remains(name, uuid, plan.routes).facts()

    work = context.journal.begin_claiming("create", name, uuid, claim)
    making = _Making(context, plan, work, before_resume)
    notes = carry_out(work, making.steps)
    return Created(name, uuid, (*plan.notes, *notes))


class _Making:
    """A create under way. `plan` changes where another on the LAN turns out to have an address that was claimed."""

    def __init__(self, context: Context, plan: Plan, work: Work, before_resume: BeforeResume | None) -> None:
        self.plan = plan
        self._context = context
        self._work = work
        self._before_resume = before_resume

    def steps(self, undo: Undo) -> list[str]:
        context, work, machine = self._context, self._work, self.plan.machine
        undo.then(lambda: shims.release(context, self.plan.routes))
        undo.then(lambda: context.store.release(machine.uuid))
        undo.then(lambda: passthrough.give_back(context, machine.uuid))
        with contextlib.closing(Question(context, work, machine.nics, self.plan.probe)) as question:
            self._make(undo)
            pace, nics = self.plan.probe, lambda: self.plan.machine.nics
            notes = probing.hear(context, work, question, nics, self._claim_others, pace, self._tell_anew)
        if self.plan.start:
            with work.step("routes"):
                notes += shims.ensure(context, self.plan.routes)
            if self._before_resume:
                self._before_resume(machine.uuid)
            with work.step("resume"):
                context.hypervisor.resume(machine.uuid, machine.name)
        if self.plan.autostart:
            with work.step("autostart"):
                context.hypervisor.set_autostart(machine.uuid, machine.name, True)
        return notes

    def _make(self, undo: Undo) -> None:
        context, work, machine = self._context, self._work, self.plan.machine
        with work.step("disk"):
            undo.then(lambda: remove_files(context, machine.uuid))
            seeds.warm_up()
            _make_disk(context, self.plan)
        with work.step("seed"):
            _make_seed(context, self.plan)
        with work.step("define"):
            undo.then(lambda: remove_domain(context, machine.name, machine.uuid))
            context.hypervisor.define(self.plan.xml, machine.name)
        self._start()

    def _start(self) -> None:
        """Paused: the guest has not run an instruction."""
        context, machine = self._context, self.plan.machine
        if not self.plan.start:
            return
        with self._work.step("start"):
            for nic in machine.nics:
                passthrough.take(context, machine.uuid, nic.parent, nic.mode if nic.direct else None)
            context.hypervisor.start(machine.uuid, machine.name, paused=True)
        with self._work.step("nics"):
            power.prepare_nics(context, machine.uuid)

    def _claim_others(self, leases: Leases, found: Sequence[InUse], avoid: Collection[Address]) -> Mapping[str, Any]:
        machine, segments = self.plan.machine, self.plan.segments
        nics = probing.take_others(leases, machine.uuid, machine.name, machine.nics, segments, found, avoid)
        self.plan = self.plan.with_nics(nics)
        return Remains(machine.name, machine.uuid, self.plan.routes).facts()

    def _tell_anew(self) -> None:
        """The guest that waits to run has the seed open as it was: it starts again, with the new one."""
        context, machine = self._context, self.plan.machine
        if self.plan.start:
            context.hypervisor.destroy(machine.uuid, machine.name)
        with self._work.step("seed"):
            if machine.seed:
                seeds.replace_seed(machine.seed, self.plan.seed, context.hypervisor.qemu_user())
        self._start()


def _make_disk(context: Context, plan: Plan) -> None:
    machine = plan.machine
    if machine.serial_log:
        context.store.own_file(machine.serial_log, machine.uuid)
    if machine.nvram:
        context.store.own_file(machine.nvram, machine.uuid)
    # QEMU's user may pass through, but not list it.
    plan.folder.mkdir()
    # Whatever root's umask: QEMU's user must pass through.
    plan.folder.chmod(0o711)
    if machine.disk is None:
        return
    context.store.own_file(machine.disk, machine.uuid)
    if plan.image:
        disks.create_overlay(images.image_path(context, plan.image), machine.disk, plan.disk_size)
    elif plan.disk_size:
        disks.create_disk(machine.disk, plan.disk_size)


def _make_seed(context: Context, plan: Plan) -> None:
    if plan.machine.seed:
        context.store.own_file(plan.machine.seed, plan.machine.uuid)
        seeds.write_seed(plan.machine.seed, plan.seed, context.hypervisor.qemu_user())


def delete(context: Context, names: Sequence[str], *, keep_disks: bool = False) -> list[Deleted]:
    """Removes machines that macvm made, with everything that `create` made for them, and nothing else.

    Goes on past an error. Raises NotFound, Unable for a machine that is not macvm's, PartlyDone.
    """
    context.require_local_root("deleting a VM")
    doomed = [_find_own(context, name) for name in dict.fromkeys(names)]
    deleted: list[Deleted] = []
    problems: list[MacvmError] = []
    for name, uuid in doomed:
        remains = Remains(name, uuid, tuple(shims.routes_of(context.store, uuid)))
        work = context.journal.begin("delete", name, uuid, remains.facts())
        try:
            kept = remove_all(context, work, remains, keep_disks=keep_disks)
        except MacvmError as error:
            problems.append(error)
        else:
            deleted.append(Deleted(name, tuple(kept)))
    if problems:
        raise PartlyDone("; ".join(problem.message for problem in problems), problems[0].hint)
    return deleted


def _find_own(context: Context, name: str) -> tuple[str, str]:
    found = context.hypervisor.find(name)
    if found is None:
        # Undefined with virsh: what macvm made for it is still there.
        for uuid, machine in context.store.machines().items():
            if name in (machine, uuid):
                return machine, uuid
        if context.store.has_endpoint(name):
            raise NotFound(f"{name} is an endpoint, and no machine", f"macvm endpoint delete {name}")
        raise NotFound(f"no machine is named {name!r}", "`macvm list` shows all there are")
    if found.marks is None:
        hint = f"virsh undefine {found.name}, once it is off; its disks are yours"
        raise Unable(f"{found.name} was not made by macvm, which deletes only its own", hint)
    return found.name, found.uuid
