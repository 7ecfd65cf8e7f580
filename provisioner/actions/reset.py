"""A fresh disk from its image, for a machine that keeps its UUID, MACs, NICs and addresses.

The new disk and seed are made beside the old ones, which are only put aside until the machine runs with the new. Killed
before the two have changed places it is undone, later it is finished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import images, power, ssh
from provisioner.actions.undo import Undo, carry_out
from provisioner.actions.wiring import Findings
from provisioner.context import Context
from provisioner.errors import MacvmError, PartlyDone, Problems, Taken, Unable
from provisioner.host import disks, seeds
from provisioner.host.journal import Unfinished, Work
from provisioner.model.found import OFF, FoundMachine
from provisioner.model.instance import instance_of, next_instance, with_instance

#: What a machine's folder may hold that is changed for new.
_FILES = ("disk.qcow2", "seed.iso", "nvram.fd")


class ResetPlan(NamedTuple):
    """`size` is the disk's in bytes; None where it is no longer to be known, and the image's is taken."""

    machine: FoundMachine
    folder: Path
    base: Path
    size: int | None
    seed: dict[str, bytes]

    @property
    def runs(self) -> bool:
        return self.machine.runs

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"


class Reset(NamedTuple):
    """What became of a machine; `result` is `reset`."""

    name: str
    result: str
    instance: str


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def make_plans(context: Context, names: Sequence[str]) -> list[ResetPlan]:
    """Changes nothing. Raises NotFound, or Problems with what stands in the way of any of the machines."""
    context.require_local_root("resetting a VM")
    findings, plans = Findings(), list[ResetPlan]()
    for machine in {machine.uuid: machine for machine in map(context.hypervisor.get, names)}.values():
        with findings.checking():
            plans.append(_plan(context, machine))
    findings.finish()
    return plans


def _plan(context: Context, machine: FoundMachine) -> ResetPlan:
    name, marks = machine.name, machine.marks
    if marks is None:
        raise Unable(f"{name} was not made by macvm, which resets only its own", "give it another disk with virsh")
    if not marks.base:
        raise Unable(f"{name} was made from no image, to which it could be reset", "delete it and create it anew")
    folder = context.machines_dir / machine.uuid
    store = context.reading_store
    images.check_base_of(context, machine)
    base = context.images_dir / f"{marks.base}.qcow2"
    _check_disk(context, machine, folder / "disk.qcow2", store.files_of(machine.uuid) if store else [])
    seed = seeds.read_seed(folder / "seed.iso")
    try:
        instance = next_instance(instance_of(seed["meta-data"]))
    except (KeyError, ValueError):
        raise Unable(f"the seed of {name} is not as macvm wrote it", "delete it and create it anew") from None
    seed["meta-data"] = with_instance(seed["meta-data"], instance)
    size = disks.virtual_size(folder / "disk.qcow2")
    return ResetPlan(machine, folder, base, size and max(size, disks.virtual_size(base) or 0), seed)


def _check_disk(context: Context, machine: FoundMachine, disk: Path, own: Sequence[Path]) -> None:
    """Raises Unable where something hangs on the disk that would be wrong or lost with a new one."""
    name = machine.name
    if disk not in own or disk not in context.hypervisor.saved(machine.uuid).files:
        raise Unable(f"the disk of {name} is not the one that macvm made: {disk}", f"virsh domblklist {name}")
    others = (path for path in machine.files if path not in own and path.parent != context.images_dir)
    above = [path for path in others if disk in disks.backing_files(path)]
    if above:
        raise Unable(f"{above[0]} is an overlay of the disk of {name}", f"virsh blockcommit {name} vda --pivot")
    if not context.hypervisor.is_persistent(machine.uuid):
        raise Unable(f"{name} is not saved, and gone once it is off", f"virsh dumpxml {name}; virsh define")
    if context.hypervisor.has_snapshots(machine.uuid):
        raise Unable(f"{name} has snapshots, which belong to its old disk", f"virsh snapshot-list {name}")
    if context.hypervisor.has_managed_save(machine.uuid):
        hint = f"macvm start {name}, or virsh managedsave-remove {name}"
        raise Unable(f"{name} is saved with its memory, which belongs to its old disk", hint)


def reset(context: Context, names: Sequence[str]) -> tuple[list[Reset], list[str]]:
    """Gives machines a fresh disk, and returns notes beside. One that runs has its power cut, for what it would still
    write is thrown away, and is started again; one that is off stays off.

    Goes on past an error. Raises NotFound, Problems, what libvirt or the disk refuse; PartlyDone where others are done.
    """
    done: list[Reset] = []
    notes: list[str] = []
    failed: list[MacvmError] = []
    for plan in make_plans(context, names):
        try:
            notes += _reset(context, plan)
        except MacvmError as error:
            failed.append(error)
        else:
            done.append(Reset(plan.machine.name, "reset", instance_of(plan.seed["meta-data"])))
    if failed and done:
        said = "; ".join(str(problem) for problem in failed)
        raise PartlyDone(f"only {', '.join(one.name for one in done)} reset: {said}", failed[0].hint)
    if failed:
        raise failed[0] if len(failed) == 1 else Problems(failed)
    return done, notes


def _reset(context: Context, plan: ResetPlan) -> list[str]:
    name, uuid = plan.machine.name, plan.machine.uuid
    work = context.journal.begin("reset", name, uuid, {"runs": plan.runs})
    try:
        _check_alone(context, plan, work)
    except BaseException:
        work.close()
        raise

    def steps(undo: Undo) -> list[str]:
        undo.then(lambda: _put_back(context, plan.machine, work, runs=plan.runs))
        return _steps(context, plan, work)

    return carry_out(work, steps, finish=lambda: _clean(context, plan.machine, work))


def _check_alone(context: Context, plan: ResetPlan, work: Work) -> None:
    """Of two resets at once the one that began first goes on. Raises Taken, for somebody else's file in the way too."""
    for row in context.journal.unfinished():
        if (row.action, row.uuid) == ("reset", plan.machine.uuid) and row.id < work.number:
            hint = "wait for that one; macvm gc, where it was killed"
            raise Taken(f"{plan.machine.name} is being reset already", hint)
    for path in [put(plan.folder / name) for name in _FILES for put in (_new, _old)]:
        if os.path.lexists(path):
            raise Taken(f"{path} is in the way", "move it away")


@contextlib.contextmanager
def _translated(machine: FoundMachine) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MacvmError(f"the files of {machine.name} cannot be replaced: {error}", "is the disk full?") from error


def _steps(context: Context, plan: ResetPlan, work: Work) -> list[str]:
    uuid, disk, seed = plan.machine.uuid, plan.disk, plan.folder / "seed.iso"
    with work.step("disk"):
        for path in (_new(disk), _old(disk), _new(seed), _old(seed), _old(plan.folder / "nvram.fd")):
            context.store.own_file(path, uuid)
        disks.create_overlay(plan.base, _new(disk), plan.size)
    with work.step("seed"), _translated(plan.machine):
        seeds.write_seed(_new(seed), plan.seed, context.hypervisor.qemu_user())
    with work.step("stop"):
        power.stop(context, [uuid], timeout=0, force=True)
    with work.step("swap"), _translated(plan.machine):
        _swap(plan.folder)
    if not plan.runs:
        return []
    with work.step("start"):
        return power.start(context, [uuid])


def _swap(folder: Path) -> None:
    """What is new is on the disk before what is old is out of the way: a host may lose its power too."""
    for name in _FILES:
        if _new(folder / name).exists():
            with _new(folder / name).open("rb") as file:
                os.fsync(file.fileno())
    for name in _FILES:
        path = folder / name
        if path.exists():
            path.rename(_old(path))
        if _new(path).exists():
            _new(path).rename(path)
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_back(context: Context, machine: FoundMachine, work: Work, *, runs: bool) -> None:
    """Undoes a reset from any state before its end; a machine that ran runs again."""
    folder = context.machines_dir / machine.uuid
    with work.step("back"), _translated(machine):
        aside = [folder / name for name in _FILES if _old(folder / name).exists()]
        if aside:
            # It may run with the new disk.
            context.hypervisor.destroy(machine.uuid, machine.name)
        for path in aside:
            _old(path).rename(path)
        _remove(context, machine.uuid, [_new(folder / name) for name in _FILES])
        _disown(context, [_old(folder / name) for name in _FILES])
        if runs and context.hypervisor.state(machine.uuid) in OFF:
            power.start(context, [machine.uuid])


def _clean(context: Context, machine: FoundMachine, work: Work) -> None:
    """The end of a reset, behind which nothing is undone."""
    folder = context.machines_dir / machine.uuid
    with work.step("clean"), _translated(machine):
        ssh.forget_host_keys(context, machine.uuid)
        _remove(context, machine.uuid, [_old(folder / name) for name in _FILES])
        _disown(context, [_new(folder / name) for name in _FILES])


def _remove(context: Context, uuid: str, paths: Sequence[Path]) -> None:
    own = context.store.files_of(uuid)
    for path in paths:
        if path in own:
            disks.remove_file(path, context.state_dir)
            context.store.disown_file(path)


def _disown(context: Context, paths: Sequence[Path]) -> None:
    for path in paths:
        context.store.disown_file(path)


def settle(context: Context, row: Unfinished, work: Work) -> bool:
    """Finishes a reset whose macvm was killed, or undoes it: False."""
    forward = "back" not in row.steps and bool({"start", "clean"} & row.steps.keys())
    machine = context.hypervisor.find(row.uuid)
    if machine is None:
        # Deleted since, and its files with it.
        return forward
    if not forward:
        _put_back(context, machine, work, runs=row.facts["runs"])
        return False
    if row.facts["runs"]:
        power.start(context, [machine.uuid])
    _clean(context, machine, work)
    return True
