"""One machine's part of a lab's plan, in two halves: first all give up what others may wait for, then each becomes what
is wanted."""

from __future__ import annotations

from pathlib import Path

from provisioner.actions import attaching, images, machines, nic_changes, nics, power, shims
from provisioner.actions.labs.changes import Leave, MachineWork
from provisioner.actions.labs.nic_plan import Ask, NicStep, is_told
from provisioner.actions.labs.wanted import WantedMachine
from provisioner.actions.plan import Plan, make_again
from provisioner.actions.request import CreateRequest, NicRequest
from provisioner.actions.wiring import Surroundings
from provisioner.context import Context
from provisioner.errors import PartlyDone, TimeUp, Unable
from provisioner.host import disks
from provisioner.model.domain_xml.writing import marks_xml
from provisioner.model.found import Marks
from provisioner.model.nic import Nic

#: Seconds that a guest may take to shut down.
_STOP_TIMEOUT = 60.0


def gives_up(work: MachineWork, leave: Leave) -> bool:
    """Whether there is a first half."""
    moves = any(step.ask in (Ask.DETACH, Ask.MOVE) for step in work.nics)
    return work.wanted is None or bool(work.recreate and leave.recreate) or work.save or halts(work, leave) or moves


def halts(work: MachineWork, leave: Leave) -> bool:
    return work.wants_restart and leave.restart


def becomes(work: MachineWork, leave: Leave) -> bool:
    """Whether there is a second half."""
    if work.wanted is None or (work.recreate and not leave.recreate):
        return False
    if work.real is None or work.recreate:
        return True
    waits = work.wants_restart and not leave.restart
    return bool(work.nics or work.labels or work.autostart or work.power == "on" or not waits)


def is_left(work: MachineWork, leave: Leave) -> str:
    """What the machine would have to go through for the rest, and may not; "" where nothing is left."""
    if work.recreate and not leave.recreate:
        return "recreate"
    return "restart" if work.wants_restart and not leave.restart else ""


def give_up(context: Context, work: MachineWork, leave: Leave) -> None:
    if work.wanted is None or (work.recreate and leave.recreate):
        machines.delete(context, [work.name])
        return
    assert work.real is not None
    uuid = work.real.now.uuid
    if work.save:
        # Before all else: it would be gone with its power, and its NICs are to be saved.
        _redefine(context, _request(work.wanted), uuid, work.real.now.marks or Marks())
    if halts(work, leave):
        try:
            power.stop(context, [uuid], timeout=_STOP_TIMEOUT, force=False)
        except TimeUp as error:
            hint = f"macvm stop --force {work.name}, then macvm lab up again"
            raise PartlyDone(f"{work.name} does not shut down: {error.message}", hint) from error
    for step in work.nics:
        if step.before and step.ask in (Ask.DETACH, Ask.MOVE):
            _detach(context, uuid, step)


def _detach(context: Context, uuid: str, step: NicStep) -> None:
    assert step.before is not None
    mac = step.before.mac
    if any(nics.seen(context, uuid, mac)):
        nics.detach(context, uuid, mac, nics.Scope.BOTH)
        return
    # It was never saved, and went with the power.
    routes = [route for route in shims.routes_of(context.store, uuid) if route.mac == mac]
    context.store.release_mac(mac)
    shims.release(context, routes)


def become(context: Context, work: MachineWork, leave: Leave, there: Surroundings) -> None:
    """The second half; `there` is what the host has, looked at once for all."""
    wanted, real = work.wanted, work.real
    assert wanted is not None
    request = _request(wanted)
    if real is None or (work.recreate and leave.recreate):
        if work.macs:
            kept = zip(request.nics, work.macs, strict=True)
            request = request._replace(nics=tuple(nic._replace(mac=mac) for nic, mac in kept))
        for note in machines.create(context, request, there=there).notes:
            context.say(note)
        return
    _change(context, work, leave, wanted, request)


def _request(wanted: WantedMachine) -> CreateRequest:
    """With the digests that the machine is to keep."""
    return wanted.request._replace(wish=wanted.wish or "")


def _change(context: Context, work: MachineWork, leave: Leave, wanted: WantedMachine, request: CreateRequest) -> None:
    assert work.real is not None
    now, uuid = work.real.now, work.real.now.uuid
    marks = now.marks or Marks()
    is_off = not work.real.runs or halts(work, leave)
    if work.resize and is_off:
        disks.grow(*grown(context, work, request))
    if work.redefine and is_off:
        _redefine(context, request, uuid, marks)
    elif work.labels:
        xml, namespace = marks_xml(marks._replace(labels=request.labels))
        context.hypervisor.set_marks(uuid, now.name, xml, namespace, live=work.real.runs and not is_off)
    for step in work.nics:
        _become_nic(context, uuid, step, request)
    if work.autostart:
        context.hypervisor.set_autostart(uuid, now.name, request.autostart)
    if work.power == "on" or (halts(work, leave) and request.start):
        for note in power.start(context, [uuid]):
            context.say(note)


def grown(context: Context, work: MachineWork, request: CreateRequest) -> tuple[Path, int]:
    """The disk, and the bytes that it is to have."""
    assert work.real is not None
    disk = context.machines_dir / work.real.now.uuid / "disk.qcow2"
    return disk, max(request.disk_size or 0, work.real.least_disk)


def redefined(context: Context, request: CreateRequest, uuid: str, marks: Marks) -> Plan:
    """Its definition as `create` would write it now, over the disk and with the NICs that it has. Raises Unable."""
    store = context.reading_store
    if marks.base:
        image = next((one for one in images.list_images(store) if one.digest == marks.base), None)
        if image is None:
            raise Unable(f"the image of {request.name} is not here any more: {marks.image}", "--recreate it")
        request = request._replace(image=images.title(image), checksum="")
    told = {mac: Nic.from_json(text) for mac, text in store.told_of(uuid).items()} if store else {}
    kept = tuple(told[nic.mac] for nic in context.hypervisor.saved(uuid).nics if nic.mac in told)
    return make_again(context, request, uuid, kept)


def _redefine(context: Context, request: CreateRequest, uuid: str, marks: Marks) -> None:
    plan = redefined(context, request, uuid, marks)
    if plan.machine.nvram:
        context.store.own_file(plan.machine.nvram, uuid)
    context.hypervisor.define(plan.xml, request.name)


def _become_nic(context: Context, uuid: str, step: NicStep, request: CreateRequest) -> None:
    if step.wanted is None or step.ask is Ask.DETACH:
        return
    if step.ask is Ask.SET:
        assert step.before is not None
        nic_changes.change(context, uuid, step.before.mac, change_of(step, request))
        return
    attaching.attach(context, uuid, *attach_of(step, request))


def attach_of(step: NicStep, request: CreateRequest) -> tuple[NicRequest, attaching.AttachOptions]:
    assert step.wanted is not None
    asked = step.wanted.asked
    mac = asked.mac or (step.before.mac if step.before else None)
    options = attaching.AttachOptions(shim=request.shim, take_parent=request.take_parent, probe=request.probe)
    return asked._replace(mac=mac), options


def change_of(step: NicStep, request: CreateRequest) -> nic_changes.Change:
    return _set_of(step)._replace(probe=request.probe, take_parent=request.take_parent)


def _set_of(step: NicStep) -> nic_changes.Change:
    before, wanted = step.before, step.wanted
    assert before is not None
    assert wanted is not None
    if wanted.asked.libvirt_network:
        return nic_changes.Change(link="up")
    rewired = before.mode is not wanted.mode or before.saved_mode is not wanted.mode
    retold = before.told is not None and not is_told(wanted, before.told)
    return nic_changes.Change(
        link="up" if before.link == "down" else None,
        mode=wanted.mode if rewired else None,
        addressing=wanted.asked.addressing if retold else None,
    )
