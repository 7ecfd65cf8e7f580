"""Attaching a NIC to any libvirt domain: to the running machine, to its definition, or to both."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from provisioner.actions import addresses, guest, passthrough, shims
from provisioner.actions.nics import NicChange, Scope, remove_live, remove_saved, report, require_rights
from provisioner.actions.request import NicRequest
from provisioner.actions.undo import Undo, carry_out
from provisioner.actions.wiring import Findings, Surroundings, plan_nics
from provisioner.context import Context
from provisioner.errors import NoSlot, Unable, Usage
from provisioner.host import links
from provisioner.host.journal import Work
from provisioner.host.leases import Leases
from provisioner.host.seeds import SeedReader
from provisioner.model.domain_xml.nics import address_is_free, count_slots, find_nic_xml, nic_xml, with_link
from provisioner.model.found import FoundMachine
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Address, Nic

if TYPE_CHECKING:
    from provisioner.actions.addresses import Segment
    from provisioner.actions.probing import InUse, Question


class AttachOptions(NamedTuple):
    scope: Scope = Scope.BOTH
    model: str = "virtio"
    trust: bool = False
    shim: bool = True
    take_parent: bool = False
    probe: str = "fast"


class Plan(NamedTuple):
    """The NIC as it will be: on a network with the addresses that it would get now, and the claim decides. `halves` are
    whether the running machine changes, and whether the definition does."""

    machine: FoundMachine
    nic: Nic
    halves: tuple[bool, bool]
    segments: Mapping[str, Segment]
    notes: list[str]


def attach(context: Context, name: str, wanted: NicRequest, options: AttachOptions) -> NicChange:
    """Adds a NIC; a failure half way leaves neither the live nor the saved half.

    Raises NotFound, Problems, Unable for a machine without a free slot, Taken, HypervisorFailed.
    """
    require_rights(context, wanted.addressing)
    if not context.is_local:
        return _attach_elsewhere(context, name, wanted, options)
    plan = plan_attach(context, name, wanted, options)
    attaching = _Attaching(context, plan, options)
    work = context.journal.begin_claiming("attach", plan.machine.name, plan.machine.uuid, attaching.claim)
    notes = carry_out(work, lambda undo: attaching.steps(work, undo))
    live, config = plan.halves
    return report(context, plan.machine, attaching.nic, live, config, [*plan.notes, *notes])


def _attach_elsewhere(context: Context, name: str, wanted: NicRequest, options: AttachOptions) -> NicChange:
    """On another host libvirt is all that macvm reaches: no look at the parent, no lease, no host state, no shim."""
    if wanted.network:
        context.require_local("a NIC on a network of macvm's")
    if not wanted.parent:
        raise Usage(f"which link of {context.settings.connect} is the parent?", "name it with --parent")
    machine = context.hypervisor.get(name)
    live, config = options.scope.halves(machine, context.hypervisor.is_persistent(machine.uuid))
    mac, mode = wanted.mac or Mac.random(), wanted.mode or MacvtapMode.BRIDGE
    nic = Nic(mac, mode, wanted.parent, model=options.model, addressing=wanted.addressing)
    with Undo() as undo:
        if live:
            undo.then(lambda: remove_live(context, machine, nic.mac))
            _attach(context, machine, nic_xml(nic, trust=options.trust), live=True)
        if config:
            running = _live_nic(context, machine, nic.mac) if live else ""
            _attach(context, machine, _saved_xml(context, machine, nic, options.trust, running), live=False)
        undo.pop_all()
    notes = ["allmulticast is not set there: IPv6 wants --trust-guest-filters"]
    return report(context, machine, nic, live, config, notes)


def plan_attach(context: Context, name: str, wanted: NicRequest, options: AttachOptions) -> Plan:
    """Changes nothing. Raises Problems."""
    # The one look that checks all NICs for conflicts has this machine too: QEMU is asked each time for live XML.
    there = Surroundings.look(context)
    known = (machine for machine in there.machines if name in (machine.name, machine.uuid))
    machine = next(known, None) or context.hypervisor.get(name)
    halves = options.scope.halves(machine, context.hypervisor.is_persistent(machine.uuid))
    findings = Findings()
    shim, take = options.shim, options.take_parent
    nics = plan_nics(context, [wanted], there, findings, start=halves[0], shim=shim, take_parent=take)
    findings.finish()
    return Plan(machine, nics[0]._replace(model=options.model), halves, there.segments, findings.notes)


class _Attaching:
    """An attach under way. `nic` gets its addresses when they are claimed, others where the LAN has those already."""

    def __init__(self, context: Context, plan: Plan, options: AttachOptions) -> None:
        self.nic = plan.nic
        self._context = context
        self._machine = plan.machine
        self._live, self._config = plan.halves
        self._segments = plan.segments
        self._options = options

    def claim(self, leases: Leases) -> Mapping[str, Any]:
        machine = self._machine
        self.nic = addresses.claim(leases, machine.uuid, machine.name, [self.nic], self._segments)[0]
        return self._facts()

    def _facts(self) -> Mapping[str, Any]:
        return {"mac": self.nic.mac, **shims.as_facts(shims.guest_routes(self.nic))}

    def _routes(self) -> list[shims.GuestRoute]:
        return shims.guest_routes(self.nic) if self._live else []

    def steps(self, work: Work, undo: Undo) -> list[str]:
        context, mac = self._context, self.nic.mac
        undo.then(lambda: shims.release(context, self._routes()))
        undo.then(lambda: context.store.release_mac(mac))
        if not self.nic.network:
            return self._plug_in(work, undo, None)
        from provisioner.actions.probing import Question  # which a NIC on a bare parent has no use for

        with contextlib.closing(Question(context, work, [self.nic], self._options.probe)) as question:
            return self._plug_in(work, undo, question)

    def _plug_in(self, work: Work, undo: Undo, question: Question | None) -> list[str]:
        context, machine = self._context, self._machine
        running, reader = "", None
        if self._live:
            with work.step("live"):
                running, reader = self._plug_in_live(undo)
        if self._config:
            # Once the definition is as it was.
            undo.then(lambda: guest.rewrite_seed(context, machine))
            with work.step("saved"):
                undo.then(lambda: remove_saved(context, machine, self.nic.mac))
                xml = _saved_xml(context, machine, self.nic, self._options.trust, running)
                _attach(context, machine, xml, live=False)
        notes = self._hear(work, question) if question else []
        if self._live:
            with work.step("link"):
                context.hypervisor.update_nic(machine.uuid, machine.name, with_link(running, "up"), live=True)
            with work.step("routes"):
                shims.ensure(context, self._routes())
        if self._config:
            with work.step("seed"):
                guest.rewrite_seed(context, machine, reader)
        return notes

    def _plug_in_live(self, undo: Undo) -> tuple[str, SeedReader | None]:
        """The guest sees no carrier until the host's side is ready. libvirt itself brings the macvtap up at once."""
        context, machine, nic = self._context, self._machine, self.nic
        # Undone after the NIC is gone, when libvirt takes the parent down.
        undo.then(lambda: passthrough.give_back(context, machine.uuid, nic.parent))
        undo.then(lambda: remove_live(context, machine, nic.mac))
        passthrough.take(context, machine.uuid, nic.parent, nic.mode if nic.direct else None)
        reader = guest.read_ahead(context, machine) if self._config else None
        _attach(context, machine, nic_xml(nic, link="down", trust=self._options.trust), live=True)
        if nic.direct:
            links.prepare_nic(nic.device, nic.mtu)
        return _live_nic(context, machine, nic.mac), reader

    def _hear(self, work: Work, question: Question) -> list[str]:
        from provisioner.actions import probing

        return probing.hear(self._context, work, question, lambda: [self.nic], self._claim_others, self._options.probe)

    def _claim_others(self, leases: Leases, found: Sequence[InUse], avoid: Collection[Address]) -> Mapping[str, Any]:
        from provisioner.actions import probing

        machine = self._machine
        taken = probing.take_others(leases, machine.uuid, machine.name, [self.nic], self._segments, found, avoid)
        self.nic = taken[0]
        return self._facts()


def _attach(context: Context, machine: FoundMachine, xml: str, *, live: bool) -> None:
    try:
        context.hypervisor.attach_nic(machine.uuid, machine.name, xml, live=live)
    except NoSlot as error:
        text = context.hypervisor.live_definition(machine.uuid) if live else context.hypervisor.definition(machine.uuid)
        slots = count_slots(text)
        if slots.machine_type == "q35":
            hint = "detach one, or while it is off add <controller type='pci' model='pcie-root-port'/>: virsh edit"
        else:
            hint = "detach one, or make the machine a q35, whose root ports can be added to"
        raise Unable(
            f"{machine.name} has no free slot for another NIC: a {slots.machine_type} machine with {slots.slots} slots "
            f"for hot-plugged devices, {slots.taken} taken",
            hint,
        ) from error


def _saved_xml(context: Context, machine: FoundMachine, nic: Nic, trust: bool, running: str) -> str:
    """In the slot that it has while `running`, where the definition has that free: the guest then sees the same NIC
    after a restart."""
    xml = nic_xml(nic, trust=trust)
    if running and address_is_free(context.hypervisor.definition(machine.uuid), running):
        return nic_xml(nic, trust=trust, address_from=running)
    return xml


def _live_nic(context: Context, machine: FoundMachine, mac: Mac) -> str:
    found = find_nic_xml(context.hypervisor.live_definition(machine.uuid), mac)
    if found is None:
        raise Unable(f"{machine.name} does not have the NIC {mac} any more", "somebody else detached it")
    return found
