"""Attaching, detaching and changing NICs of any libvirt domain, running or not."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from provisioner.actions import guest, passthrough, shims
from provisioner.actions.nic_names import choose_nic
from provisioner.context import Context
from provisioner.errors import PartlyDone, TimeUp, Usage
from provisioner.host.journal import Work
from provisioner.model.domain_xml.nics import alias_of, find_nic_xml
from provisioner.model.found import FoundMachine, FoundNic
from provisioner.model.names import Mac
from provisioner.model.nic import Addressing, Interface, Nic

if TYPE_CHECKING:
    from provisioner.actions.views import NicView

#: Seconds that a guest may take to let go of a NIC.
DETACH_TIMEOUT = 10.0


class Scope(enum.Enum):
    """Where a change applies, in virsh's words."""

    BOTH = "both"
    LIVE = "live"
    CONFIG = "config"
    CURRENT = "current"

    def halves(self, machine: FoundMachine, persistent: bool) -> tuple[bool, bool]:
        """Whether the running machine changes, and whether its definition does. Raises Usage where that cannot be."""
        running = machine.runs
        if self is Scope.LIVE and not running:
            raise Usage(f"{machine.name} is off: there is nothing live to change", "leave --live out, or start it")
        if self is Scope.CONFIG and not persistent:
            raise Usage(f"{machine.name} is transient: it has no definition to change", "leave --config out")
        live = running and self in (Scope.BOTH, Scope.LIVE, Scope.CURRENT)
        config = persistent and (self in (Scope.BOTH, Scope.CONFIG) or (self is Scope.CURRENT and not running))
        return live, config


class NicChange(NamedTuple):
    """What became of one NIC. `reason` says why its address, if one was asked for, was not applied in the guest."""

    machine: str
    mac: Mac
    nic: NicView | None
    live: bool
    config: bool
    applied_in_guest: bool
    reason: str
    notes: tuple[str, ...] = ()
    asked: bool = False


def remove_live(context: Context, machine: FoundMachine, mac: Mac) -> None:
    if not detach_running(context, machine, mac, DETACH_TIMEOUT):
        raise kept_by_guest(machine, mac)


def kept_by_guest(machine: FoundMachine, mac: Mac) -> TimeUp:
    return TimeUp(f"the guest {machine.name} does not let go of {mac}", "then: macvm gc")


def remove_saved(context: Context, machine: FoundMachine, mac: Mac) -> None:
    found = find_nic_xml(context.hypervisor.definition(machine.uuid), mac)
    if found:
        context.hypervisor.detach_nic_saved(machine.uuid, machine.name, found)


def detach_running(context: Context, machine: FoundMachine, mac: Mac, timeout: float) -> bool:
    """True when the guest has let go, which is looked at, not believed. Gone already is fine, and so is power off."""
    if not context.hypervisor.runs(machine.uuid):
        return True
    found = find_nic_xml(context.hypervisor.live_definition(machine.uuid), mac)
    if found is None:
        return True
    alias = alias_of(found)
    context.hypervisor.detach_nic_live(machine.uuid, machine.name, found, alias, timeout)
    return find_nic_xml(context.hypervisor.live_definition(machine.uuid), mac) is None


def require_rights(context: Context, addressing: Addressing) -> None:
    """Raises Unable: only a NIC of which nobody is told an address can be attached on another host."""
    if context.is_local or addressing.static or addressing.dhcp:
        context.require_local_root("giving a NIC an address")


def report(
    context: Context,
    machine: FoundMachine,
    nic: Nic,
    live: bool,
    config: bool,
    notes: list[str],
    old: Sequence[Interface] = (),
) -> NicChange:
    """What became of a NIC whose guest had the `old` addresses."""
    from provisioner.actions import views

    running = machine.runs
    reason = "only the definition was changed" if running else f"{machine.name} is off"
    if live:
        reason = guest.apply_now(context, machine, nic, old)
    local = context.is_local
    if reason and nic.addressing.static and config and local and guest.seed_of(context, machine):
        reason += "; its seed has the address from the next boot on"
    elif reason and nic.addressing.static:
        reason += ", and macvm has no seed to tell it by" if config else ""
        reason += "; set it in the guest: " + ", ".join(map(str, nic.addressing.static))
    view = next((view for view in views.show(context, machine.uuid).nics if view.mac == nic.mac), None)
    asked = bool(nic.addressing.static)
    return NicChange(machine.name, nic.mac, view, live, config, not reason, reason, tuple(notes), asked)


def detach(context: Context, name: str, wanted: str, scope: Scope, timeout: float = DETACH_TIMEOUT) -> NicChange:
    """Removes a NIC. Where the guest does not let go in time, nothing else has changed. Of another host's machine too.

    Raises NotFound, Usage for an ambiguous name, PartlyDone when the guest keeps it, HypervisorFailed.
    """
    if context.is_local:
        context.require_local_root("detaching a NIC")
    machine, nic, (live, config) = plan_detach(context, name, wanted, scope)
    if not context.is_local:
        gone = not live or detach_running(context, machine, nic.mac, timeout)
        if gone and config:
            remove_saved(context, machine, nic.mac)
        return _detached(machine, nic, live, config, gone=gone, timeout=timeout)
    routes = [route for route in shims.routes_of(context.store, machine.uuid) if route.mac == nic.mac]
    facts = {"mac": nic.mac, "live": live, "config": config, **shims.as_facts(routes)}
    work = context.journal.begin("detach", machine.name, machine.uuid, facts)
    try:
        gone = take_away(context, machine, nic.mac, (live, config), routes, work, timeout)
    except BaseException:
        work.leave()
        raise
    work.close()
    return _detached(machine, nic, live, config, gone=gone, timeout=timeout)


def _detached(
    machine: FoundMachine, nic: FoundNic, live: bool, config: bool, *, gone: bool, timeout: float
) -> NicChange:
    if not gone:
        raise PartlyDone(
            f"the guest {machine.name} did not let go of {nic.mac} within {timeout:g} s; nothing else was changed",
            "is its driver loaded? it may still let go; --config removes it from the definition alone",
        )
    return NicChange(machine.name, nic.mac, None, live, config, live, "")


def plan_detach(
    context: Context, name: str, wanted: str | None, scope: Scope
) -> tuple[FoundMachine, FoundNic, tuple[bool, bool]]:
    """The machine, the NIC that is meant, and the halves that have it and change. Raises NotFound, Usage."""
    machine = context.hypervisor.get(name)
    persistent = context.hypervisor.is_persistent(machine.uuid)
    live, config = scope.halves(machine, persistent)
    saved = context.hypervisor.saved(machine.uuid) if persistent else machine
    there = _union(machine.nics if live else (), saved.nics if config else ())
    chosen = choose_nic(machine, there, wanted, context.networks_by_mac())
    live, config = live and _has(machine, chosen.mac), config and _has(saved, chosen.mac)
    return machine, chosen, (live, config)


def _has(machine: FoundMachine, mac: Mac) -> bool:
    return any(nic.mac == mac for nic in machine.nics)


def _union(first: tuple[FoundNic, ...], second: tuple[FoundNic, ...]) -> list[FoundNic]:
    macs = {nic.mac for nic in first}
    return [*first, *(nic for nic in second if nic.mac not in macs)]


def forget(context: Context, machine: FoundMachine, mac: Mac, routes: list[shims.GuestRoute], work: Work) -> None:
    """Gives back what a NIC held, once it is in neither half."""
    if any(seen(context, machine.uuid, mac)):
        return
    told = context.store.told_of(machine.uuid).get(mac)
    with work.step("lease"):
        if told:
            passthrough.give_back(context, machine.uuid, Nic.from_json(told).parent)
        context.store.release_mac(mac)
    with work.step("routes"):
        shims.release(context, routes)
    with work.step("seed"):
        guest.rewrite_seed(context, machine)


def take_away(
    context: Context,
    machine: FoundMachine,
    mac: Mac,
    halves: tuple[bool, bool],
    routes: list[shims.GuestRoute],
    work: Work,
    timeout: float = DETACH_TIMEOUT,
) -> bool:
    """Removes a NIC from the running machine, the definition, or both, from any state: detaches, finishes a killed
    detach, and undoes a killed attach. False when the guest kept it, and nothing else was changed."""
    live, saved = halves
    if live:
        with work.step("live"):
            if not detach_running(context, machine, mac, timeout):
                return False
    if saved:
        with work.step("saved"):
            remove_saved(context, machine, mac)
    forget(context, machine, mac, routes, work)
    return True


def saved_nics(context: Context, machine: FoundMachine) -> tuple[FoundNic, ...]:
    """The NICs of the definition, of a machine that has one."""
    if not context.hypervisor.is_persistent(machine.uuid):
        return ()
    return context.hypervisor.saved(machine.uuid).nics


def seen(context: Context, uuid: str, mac: Mac) -> tuple[bool, bool]:
    """Whether the running machine has the NIC, and whether the definition has."""
    texts = (context.hypervisor.live_definition(uuid), context.hypervisor.definition(uuid))
    live, saved = (find_nic_xml(text, mac) is not None for text in texts)
    return live, saved
