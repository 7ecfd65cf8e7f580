"""Starting and stopping machines, with the host state that each of their NICs needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from provisioner.actions import images, passthrough, shims
from provisioner.actions.parents import Links, check_parent
from provisioner.actions.wiring import Findings, check_device_free
from provisioner.context import Context
from provisioner.errors import MacvmError, PartlyDone, Problems, TimeUp
from provisioner.host import links, log
from provisioner.model.found import FoundMachine
from provisioner.model.nic import Nic

#: A guest that is still booting misses the power button: it is pressed again after this many seconds.
_PRESS_AGAIN = 5.0


def start(context: Context, names: Sequence[str]) -> list[str]:
    """Starts machines, each once, and returns notes. Running already is fine; a paused one goes on.

    Goes on past an error. Raises NotFound, Taken, Unable, HypervisorFailed; PartlyDone where others were started.
    """
    if context.is_local:
        context.require_local_root("starting a VM")
    start_one = _start_here if context.is_local else _start_elsewhere
    notes: list[str] = []
    started: list[str] = []
    failed: list[MacvmError] = []
    for machine in {machine.uuid: machine for machine in map(context.hypervisor.get, names)}.values():
        if machine.state == "running":
            notes.append(f"{machine.name} is running already")
            continue
        try:
            notes += start_one(context, machine)
        except MacvmError as error:
            failed.append(error)
        else:
            started.append(machine.name)
    if failed and started:
        said = "; ".join(str(problem) for problem in failed)
        raise PartlyDone(f"only {', '.join(started)} started: {said}", failed[0].hint)
    if failed:
        raise failed[0] if len(failed) == 1 else Problems(failed)
    return notes


def _start_here(context: Context, machine: FoundMachine) -> list[str]:
    if machine.state not in ("paused", "suspended"):
        _check_before_start(context, machine)
    work = context.journal.begin("start", machine.name, machine.uuid, {})
    try:
        notes = _start_steps(context, machine, work.step)
    except BaseException:
        _power_off_again(context, machine)
        work.close()
        raise
    work.close()
    return notes


def _start_elsewhere(context: Context, machine: FoundMachine) -> list[str]:
    """On another host libvirt is all that macvm reaches."""
    if machine.state == "paused":
        context.hypervisor.resume(machine.uuid, machine.name)
    else:
        context.hypervisor.start(machine.uuid, machine.name, paused=False)
    return []


def _power_off_again(context: Context, machine: FoundMachine) -> None:
    if machine.state not in ("paused", "suspended"):
        context.hypervisor.destroy(machine.uuid, machine.name)


def _start_steps(
    context: Context, machine: FoundMachine, step: Callable[[str], contextlib.AbstractContextManager[None]]
) -> list[str]:
    if machine.state not in ("paused", "suspended"):
        with step("start"):
            told = context.store.told_of(machine.uuid)
            for nic in machine.nics:
                passthrough.take(context, machine.uuid, nic.parent, nic.mode if nic.mac in told else None)
            context.hypervisor.start(machine.uuid, machine.name, paused=True)
    with step("nics"):
        prepare_nics(context, machine.uuid)
    with step("routes"):
        notes = shims.ensure(context, shims.routes_of(context.store, machine.uuid))
    with step("resume"):
        context.hypervisor.resume(machine.uuid, machine.name)
    return notes


def finish_start(context: Context, uuid: str) -> None:
    """Goes on with a start whose macvm was killed; off, gone or running already is fine."""
    if context.hypervisor.state(uuid) != "paused":
        return
    prepare_nics(context, uuid)
    shims.ensure(context, shims.routes_of(context.store, uuid))
    context.hypervisor.resume(uuid, uuid)


def prepare_nics(context: Context, uuid: str) -> None:
    """Sets the host state of a started machine's macvtaps, of those that macvm attached to others' machines too."""
    told = context.store.told_of(uuid)
    for found in context.hypervisor.get(uuid).nics:
        if found.kind == "direct" and found.mac in told:
            links.prepare_nic(found.device, Nic.from_json(told[found.mac]).mtu)


def _check_before_start(context: Context, machine: FoundMachine) -> None:
    """What libvirt would say with "Device or resource busy", or not at all. Raises Problems."""
    problems: list[MacvmError] = []
    there, machines = Links.read(), context.hypervisor.machines()
    try:
        images.check_base_of(context, machine)
    except MacvmError as error:
        problems.append(error)
    for nic in machine.nics:
        if nic.kind != "direct" or nic.mode is None:
            continue
        try:
            # That the host may lose this parent was consented to when the NIC was made.
            check_parent(there, nic.parent, nic.mode, None, take=True)
            check_device_free(nic.device, there, machines, own=machine.uuid)
        except MacvmError as error:
            problems.append(error)
    if problems:
        raise Problems(problems)


def stop(context: Context, names: Sequence[str], *, timeout: float, force: bool) -> None:
    """Presses the power button, or with `force` cuts the power; off already is fine.

    Raises NotFound, HypervisorFailed, TimeUp when guests do not go within `timeout` seconds.
    """
    machines = [context.hypervisor.get(name) for name in names]
    running = [machine for machine in machines if machine.runs]
    if force:
        for machine in running:
            context.hypervisor.destroy(machine.uuid, machine.name)
        return _stopped(context, running)
    deadline = time.monotonic() + timeout
    left = running
    pressed = float("-inf")
    while left:
        if time.monotonic() - pressed >= _PRESS_AGAIN:
            pressed = time.monotonic()
            for machine in left:
                context.hypervisor.shutdown(machine.uuid, machine.name)
        time.sleep(0.1)
        left = [machine for machine in left if context.hypervisor.runs(machine.uuid)]
        if left and time.monotonic() >= deadline:
            who = ", ".join(machine.name for machine in left)
            hint = f"wait longer with --timeout, or cut the power: macvm stop --force {' '.join(m.name for m in left)}"
            raise TimeUp(f"{who}: still running {timeout:g} s after the power button", hint)
    return _stopped(context, running)


def _stopped(context: Context, stopped: Sequence[FoundMachine]) -> None:
    for machine in stopped:
        log.record("stop", machine.name, uuid=machine.uuid)
    _forget_heard(context, stopped)


def _forget_heard(context: Context, stopped: Sequence[FoundMachine]) -> None:
    """The next time DHCP may give a guest another address, and this one to somebody else."""
    store = context.reading_store if context.is_local and os.geteuid() == 0 else None
    if store is None or not store.has_heard():
        return
    macs = {nic.mac for machine in stopped for nic in machine.nics}
    kept = {one.mac for one in store.heard.all()} - macs
    for parent in context.store.heard.keep_only(kept):
        shims.reconcile(context, parent)


def restart(context: Context, names: Sequence[str], *, timeout: float, force: bool) -> list[str]:
    """`stop`, then `start`; nothing is stopped where a machine's base has changed, over which it would not start."""
    context.require_local_root("restarting a VM")
    findings = Findings()
    for machine in map(context.hypervisor.get, names):
        with findings.checking():
            images.check_base_of(context, machine)
    findings.finish()
    stop(context, names, timeout=timeout, force=force)
    return start(context, names)


def autostart(context: Context, names: Sequence[str], on: bool) -> None:
    """Raises NotFound; PartlyDone where some could not be changed."""
    context.require_local("changing autostart")
    failed: list[MacvmError] = []
    for machine in [context.hypervisor.get(name) for name in names]:
        try:
            context.hypervisor.set_autostart(machine.uuid, machine.name, on)
        except MacvmError as error:
            failed.append(error)
    if failed and len(failed) == len(names):
        raise Problems(failed)
    if failed:
        raise PartlyDone("; ".join(problem.message for problem in failed), failed[0].hint)
