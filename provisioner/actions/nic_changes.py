"""Changing a NIC where it is: its link, its mode, its parent, its address."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from provisioner.actions import addresses, guest, nics, passthrough, shims
from provisioner.actions.nics import (
    DETACH_TIMEOUT,
    NicChange,
    Scope,
    detach_running,
    plan_detach,
    report,
    require_rights,
)
from provisioner.actions.parents import Links, check_parent
from provisioner.actions.request import NicRequest
from provisioner.actions.shims import guest_routes
from provisioner.actions.undo import Undo, carry_out
from provisioner.actions.wiring import Surroundings, check_addresses, give_addresses, on_network
from provisioner.context import Context
from provisioner.errors import NotFound, PartlyDone, Unable, Usage
from provisioner.host import links
from provisioner.host.journal import Work
from provisioner.host.leases import Leases, NicClaim
from provisioner.model.domain_xml.nics import (
    find_nic_xml,
    link_of,
    same_source,
    source_of,
    with_link,
    with_source,
    without_alias,
)
from provisioner.model.found import OFF, FoundMachine, FoundNic
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Address, Addressing, Nic

if TYPE_CHECKING:
    from provisioner.actions.addresses import Segment
    from provisioner.actions.probing import InUse

#: Modes that the kernel changes among one another on a running macvtap.
_LIVE_MODES = (MacvtapMode.BRIDGE, MacvtapMode.VEPA, MacvtapMode.PRIVATE)

#: What a replug costs, measured: 0.17 s to unplug, 0.08 s to plug in, and the guest's driver.
_GAP = "about 1 s"


class Change(NamedTuple):
    """What is to be different; None where it stays."""

    link: str | None = None
    mode: MacvtapMode | None = None
    parent: str | None = None
    addressing: Addressing | None = None
    network: str | None = None
    scope: Scope = Scope.BOTH
    probe: str = "fast"
    replug: bool = False
    take_parent: bool = False


class Plan(NamedTuple):
    """`before` and `after` are the NIC as the store knows, or will know it: on a network with the addresses that it
    would get now, and the claim decides."""

    machine: FoundMachine
    found: FoundNic
    live: bool
    config: bool
    before: Nic
    after: Nic
    replug: bool
    rewired: bool
    segments: Mapping[str, Segment]


def change(context: Context, name: str, wanted: str | None, asked: Change) -> NicChange:
    """Raises NotFound; Usage for what needs `--replug`; Problems; PartlyDone when the guest does not let go."""
    require_rights(context, Addressing(dhcp=True))
    plan = plan_change(context, name, wanted, asked)
    machine, after = plan.machine, plan.after
    texts = [context.hypervisor.live_definition(machine.uuid), context.hypervisor.definition(machine.uuid)]
    old = [find_nic_xml(text, plan.found.mac) or "" for text in texts]
    told = context.store.told_of(machine.uuid).get(plan.found.mac, "")
    facts: dict[str, Any] = {
        "mac": plan.found.mac,
        "live": old[0] if plan.live else "",
        "saved": old[1] if plan.config else "",
    }
    facts["told"] = told
    facts["parent"] = after.parent
    # Over and done with where the change is undone: those that the NIC has now are known from what it is told.
    facts |= shims.as_facts(guest_routes(after))
    work = context.journal.begin("set", machine.name, machine.uuid, facts)
    after, notes = carry_out(work, lambda undo: _steps(context, plan, asked, (old[0], old[1]), work, undo))
    retold = asked.addressing is not None or asked.network is not None
    shown = after if retold else after._replace(addressing=Addressing())
    return report(context, machine, shown, plan.live, plan.config, notes, plan.before.addressing.static)


def plan_change(context: Context, name: str, wanted: str | None, asked: Change) -> Plan:
    """Looks, and changes nothing."""
    machine, found, (live, config) = plan_detach(context, name, wanted, asked.scope)
    rewired = any(wanted is not None for wanted in (asked.mode, asked.parent, asked.network))
    again = asked.link is None and not rewired and asked.addressing is None
    if again and not asked.replug:
        hint = "say --link, --mode, --parent, --network or --ip, or --replug to plug it in again"
        raise Usage("nothing is to be changed", hint)
    if rewired and found.kind != "direct":
        hint = f"macvm nic detach {machine.name} {found.mac}, then macvm nic attach {machine.name}"
        raise Unable(f"{found.mac} is on the libvirt network {found.network}, which decides how it is wired", hint)
    if asked.network is not None and not config and live and nics.seen(context, machine.uuid, found.mac)[1]:
        # The seed tells of a NIC once, and a lease is of its MAC: at the next boot neither would fit the definition.
        said = f"{found.mac} is in the definition of {machine.name} too, which --live would leave on its old network"
        raise Usage(said, "leave --live out")
    before = _known(context, machine, found)
    host = Links.read()
    others = Links(tuple(link for link in host.all if not found.device or link.name != found.device))
    there = Surroundings(others, [], {})
    after = _rewired(context, before, asked, there) if rewired else before
    if asked.addressing is not None:
        after = after._replace(addressing=asked.addressing)
    if asked.addressing is not None or asked.network is not None:
        after = give_addresses(context, after, there, ())
    # Known once the parent is: what it holds already it may keep.
    kept = set(before.addressing.addresses) if after.parent == before.parent else set()
    fresh = tuple(interface for interface in after.addressing.static if interface.ip not in kept)
    check_addresses(context, after._replace(addressing=after.addressing._replace(static=fresh)), [])
    replug = live and (again or (rewired and not _changes_live(before, after)))
    if replug and not asked.replug:
        raise Usage(
            f"{found.mac} of {machine.name} can become {after.wiring} only by unplugging it: the guest sees its link "
            f"gone {_GAP}; DHCP asks again; a static address may need setting again",
            "say --replug to do so, or --config to change the definition alone",
        )
    return Plan(machine, found, live, config, before, after, replug, rewired, there.segments)


def _rewired(context: Context, before: Nic, asked: Change, there: Surroundings) -> Nic:
    """On another network all is the network's; on another parent it leaves its network."""
    if asked.network is None:
        _check_mode_is_its_own(context, before, asked)
        mode, name = asked.mode or before.mode, asked.parent or before.parent
        parent = check_parent(there.links, name, mode, None, take=asked.take_parent).name
        network = before.network if parent == before.parent else ""
        return before._replace(mode=mode, parent=parent, network=network)
    if asked.network == before.network and asked.addressing is None:
        hint = "--ip auto takes another address of it, --replug plugs the NIC in again"
        raise Usage(f"{before.mac} is on the network {asked.network} already", hint)
    wanted = NicRequest(asked.mode, asked.parent or "", network=asked.network, addressing=Addressing(auto=True))
    network_ = there.segment(context, asked.network).network
    nic = on_network(there, wanted, network_, take_parent=asked.take_parent)
    # One that came from the network before goes with it.
    mtu = nic.mtu if before.network else nic.mtu or before.mtu
    return nic._replace(mac=before.mac, model=before.model, mtu=mtu)


def _check_mode_is_its_own(context: Context, before: Nic, asked: Change) -> None:
    """As when the NIC was attached: on a network the mode is the network's."""
    store = context.reading_store
    network = store.networks.find(before.network) if store and before.network else None
    leaves = asked.parent is not None and asked.parent != before.parent
    if network and asked.mode not in (None, network.mode) and not leaves:
        hint = "make a network for it (macvm network create), and move it there with --network"
        raise Usage(f"--mode is decided by the network {network.name}: {network.mode.value}", hint)


def _changes_live(before: Nic, after: Nic) -> bool:
    return before.parent == after.parent and before.mode in _LIVE_MODES and after.mode in _LIVE_MODES


def _known(context: Context, machine: FoundMachine, found: FoundNic) -> Nic:
    """The NIC as the store has it, or as libvirt's XML shows one that macvm did not make; in the mode that the kernel
    has it in, of which libvirt's live XML does not know."""
    store = context.reading_store
    text = store.told_of(machine.uuid).get(found.mac) if store else ""
    link = next((link for link in Links.read().all if link.name == found.device), None)
    mode = MacvtapMode(link.mode) if link and link.mode else found.mode or MacvtapMode.BRIDGE
    if text:
        return Nic.from_json(text)._replace(mode=mode, parent=found.parent)
    return Nic(found.mac, mode, found.parent, found.network, found.model)


def _steps(
    context: Context, plan: Plan, asked: Change, old: tuple[str, str], work: Work, undo: Undo
) -> tuple[Nic, list[str]]:
    """The NIC as it is then, and notes."""
    machine = plan.machine
    old_routes = [route for route in shims.routes_of(context.store, machine.uuid) if route.mac == plan.found.mac]
    # Once all else is back: the routes follow the leases, and a guest that a shim does not reach has none.
    undo.then(lambda: shims.ensure(context, old_routes))
    if plan.live and (plan.replug or plan.after.wiring != plan.before.wiring):
        _rewire_live(context, plan, old[0], work, undo)
    if plan.rewired and plan.config:
        with work.step("saved"):
            undo.then(lambda: _update(context, machine, old[1], live=False))
            _update(context, machine, with_source(old[1], plan.after.parent, plan.after.mode), live=False)
    still_runs = not plan.live and machine.runs
    if plan.before.mode is MacvtapMode.PASSTHROUGH and plan.after.wiring != plan.before.wiring and not still_runs:
        undo.then(lambda: passthrough.take(context, machine.uuid, plan.before.parent, plan.before.mode))
        passthrough.give_back(context, machine.uuid, plan.before.parent)
    if asked.link:
        _set_link(context, plan, asked.link, work, undo)
    known = plan.found.mac in context.store.told_of(machine.uuid)
    if asked.addressing is not None or asked.network is not None or (plan.rewired and known):
        return _rewrite_told(context, plan, asked.probe, old_routes, work, undo)
    return plan.after, []


def _update(context: Context, machine: FoundMachine, xml: str, *, live: bool) -> None:
    if xml:
        context.hypervisor.update_nic(machine.uuid, machine.name, xml, live=live)


def _rewire_live(context: Context, plan: Plan, old: str, work: Work, undo: Undo) -> None:
    machine, found = plan.machine, plan.found
    if not plan.replug:
        with work.step("mode"):
            undo.then(lambda: _set_mode_back(found.device, plan.before.mode))
            links.set_mode(found.device, plan.after.mode)
        return
    with work.step("unplug"):
        undo.then(lambda: plug_back(context, machine, found.mac, old, plan.after.parent))
        if not detach_running(context, machine, found.mac, DETACH_TIMEOUT):
            raise PartlyDone(
                f"the guest {machine.name} did not let go of {found.mac}; nothing was changed", "is its driver loaded?"
            )
    with work.step("plug"):
        passthrough.take(context, machine.uuid, plan.after.parent, plan.after.mode)
        # Same PCI slot, MAC and device name; no carrier until the host's side is ready.
        new = with_link(with_source(old, plan.after.parent, plan.after.mode), "down")
        context.hypervisor.attach_nic(machine.uuid, machine.name, new, live=True)
        if found.device:
            links.prepare_nic(found.device, plan.after.mtu)
        _update(context, machine, with_link(_now(context, machine, found.mac), found.link), live=True)


def _now(context: Context, machine: FoundMachine, mac: Mac) -> str:
    return find_nic_xml(context.hypervisor.live_definition(machine.uuid), mac) or ""


def plug_back(context: Context, machine: FoundMachine, mac: Mac, old: str, parent: str) -> None:
    """Puts a NIC back as it was before a replug to `parent`, whatever is there now. Off, or as it was, is fine."""
    if not context.hypervisor.runs(machine.uuid):
        return
    now = _now(context, machine, mac)
    if now and same_source(now, old):
        return
    if now and not detach_running(context, machine, mac, DETACH_TIMEOUT):
        raise PartlyDone(f"the guest {machine.name} does not let go of {mac}", "then: macvm gc")
    # Only now that it is gone: libvirt takes a passthrough NIC's parent down with it.
    if parent:
        passthrough.give_back(context, machine.uuid, parent)
    passthrough.take(context, machine.uuid, *source_of(old))
    context.hypervisor.attach_nic(machine.uuid, machine.name, without_alias(old), live=True)
    for nic in context.hypervisor.get(machine.uuid).nics:
        if nic.mac == mac and nic.kind == "direct" and nic.device:
            links.prepare_nic(nic.device, None)


def _retell(context: Context, machine: FoundMachine, nic: Nic, told: str) -> None:
    claim = addresses.claim_of(nic)._replace(told=told) if told else NicClaim(nic.mac)
    context.store.retell(machine.uuid, machine.name, claim)


def put_back(
    context: Context,
    machine: FoundMachine,
    mac: Mac,
    facts: Mapping[str, Any],
    routes: list[shims.GuestRoute],
    work: Work,
) -> None:
    """Undoes a killed change, from any state: wiring, link, leases and seed as they were."""
    before = Nic.from_json(facts["told"]) if facts["told"] else Nic(mac)
    with work.step("lease-back"):
        _retell(context, machine, before, facts["told"])
    # Once no lease holds them, and before a parent becomes passthrough's again, which leaves no room for the shim.
    with work.step("routes-away"):
        shims.release(context, routes)
    if facts["live"]:
        with work.step("plug-back"):
            plug_back(context, machine, mac, facts["live"], facts.get("parent", ""))
            _restore_running(context, machine, mac, facts["live"])
    if facts["saved"]:
        with work.step("saved-back"):
            _update(context, machine, facts["saved"], live=False)
    with work.step("routes-back"):
        shims.ensure(context, guest_routes(before))
    with work.step("seed-back"):
        guest.rewrite_seed(context, machine)


def _restore_running(context: Context, machine: FoundMachine, mac: Mac, old: str) -> None:
    found = next((nic for nic in context.hypervisor.get(machine.uuid).nics if nic.mac == mac), None)
    if found is None or context.hypervisor.state(machine.uuid) in OFF:
        return
    _update(context, machine, with_link(_now(context, machine, mac), link_of(old)), live=True)
    if found.mode in _LIVE_MODES and found.device:
        _set_mode_back(found.device, found.mode)


def _set_mode_back(device: str, mode: MacvtapMode) -> None:
    # Somebody may have deleted the macvtap of a running guest.
    with contextlib.suppress(NotFound):
        links.set_mode(device, mode)


def _set_link(context: Context, plan: Plan, state: str, work: Work, undo: Undo) -> None:
    machine, mac = plan.machine, plan.found.mac
    for live, wanted, text in (
        (True, plan.live, context.hypervisor.live_definition(machine.uuid)),
        (False, plan.config, context.hypervisor.definition(machine.uuid)),
    ):
        xml = find_nic_xml(text, mac)
        if not wanted or not xml:
            continue
        with work.step("link-live" if live else "link-saved"):
            _undo_update(context, machine, xml, undo, live=live)
            _update(context, machine, with_link(xml, state), live=live)


def _undo_update(context: Context, machine: FoundMachine, xml: str, undo: Undo, *, live: bool) -> None:
    undo.then(lambda: _update(context, machine, xml, live=live))


def _rewrite_told(
    context: Context, plan: Plan, pace: str, old_routes: Sequence[shims.GuestRoute], work: Work, undo: Undo
) -> tuple[Nic, list[str]]:
    """Leases, routes and the seed follow the NIC."""
    machine, before, after = plan.machine, plan.before, plan.after
    notes: list[str] = []
    store = context.store
    was = store.told_of(machine.uuid).get(before.mac, "")
    # Both once the old leases are back.
    undo.then(lambda: guest.rewrite_seed(context, machine))
    undo.then(lambda: shims.release(context, guest_routes(after)))
    with work.step("lease"):
        undo.then(lambda: _retell(context, machine, before, was))
        after = _claim(context, plan, work)
    if after.network and after.addressing != before.addressing:
        after, notes = _ask(context, plan, after, pace, work)
    routes = guest_routes(after)
    with work.step("routes"):
        if plan.live:
            shims.ensure(context, routes)
        shims.release(context, [route for route in old_routes if route not in routes])
    if plan.config and guest.seed_of(context, machine):
        with work.step("seed"):
            guest.rewrite_seed(context, machine)
    return after, notes


def _claim(context: Context, plan: Plan, work: Work) -> Nic:
    """The leases of before for those of after, in one transaction."""
    machine, after = plan.machine, plan.after

    def claim(leases: Leases) -> Mapping[str, Any]:
        nonlocal after
        leases.give_back(after.mac)
        after = addresses.claim(leases, machine.uuid, machine.name, [after], plan.segments)[0]
        return _with_routes(work, after)

    work.claim_again(claim)
    return after


def _with_routes(work: Work, nic: Nic) -> Mapping[str, Any]:
    return {**work.facts, **shims.as_facts(guest_routes(nic))}


def _ask(context: Context, plan: Plan, after: Nic, pace: str, work: Work) -> tuple[Nic, list[str]]:
    from provisioner.actions import probing  # which a NIC on a bare parent has no use for

    machine = plan.machine

    def claim(leases: Leases, found: Sequence[InUse], avoid: Collection[Address]) -> Mapping[str, Any]:
        nonlocal after
        after = probing.take_others(leases, machine.uuid, machine.name, [after], plan.segments, found, avoid)[0]
        return _with_routes(work, after)

    with contextlib.closing(probing.Question(context, work, [after], pace)) as question:
        notes = probing.hear(context, work, question, lambda: [after], claim, pace)
    return after, notes
