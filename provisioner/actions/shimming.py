"""What a user does with shims: up, down, status, and serving guests that libvirt does not know."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from provisioner.actions import discovery, firewall, networks, shims
from provisioner.actions.firewall import FirewallView
from provisioner.actions.parents import Links, check_parent, choose_parent
from provisioner.actions.views import MachineView, NicView
from provisioner.actions.wiring import Findings
from provisioner.context import Context
from provisioner.errors import NotFound, Taken, Usage
from provisioner.host import netlink, routing, wire
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import packed_mac
from provisioner.model.nic import Address, check_usable
from provisioner.model.reach import Place, Station, expected
from provisioner.model.shim import To, unpacked, unreachable


class GuestView(NamedTuple):
    """An address behind a shim. `owner` is the machine or endpoint that holds it, None for one told by `--to`; `route`
    tells whether the host's side is as it should be, and `reason` why not."""

    address: str
    mac: str
    owner: str | None
    source: str
    route: bool
    reason: str


class UnreachedView(NamedTuple):
    """A NIC on the parent that the shim does not serve, and why."""

    owner: str
    mac: str
    mode: str
    reason: str


class ShimView(NamedTuple):
    """`shim` and `mac` are None where there is no shim on the parent. `firewall` is what this host's own firewall keeps
    from coming in by the shim, though not by the parent."""

    parent: str
    shim: str | None
    mac: str | None
    up: bool
    guests: tuple[GuestView, ...]
    unreached: tuple[UnreachedView, ...]
    firewall: tuple[FirewallView, ...]


def up_all(context: Context, *, known: bool = False) -> list[ShimView]:
    """Brings back all that there was, as after a reboot: the VLAN links of networks, the shims, every route.

    As a user says it, each of these shims then stays until `down`, and where there was nothing the default route's link
    gets one. With `known`, as each boot says it, a shim that nobody asked for goes with its last guest as before, and
    nothing is made of nothing. Goes on past an error. Raises Problems.
    """
    context.require_local_root("bringing shims up")
    findings, made = Findings(), list[ShimView]()
    with findings.checking():
        networks.up(context)
    for parent in known_parents(context) or ([] if known else [""]):
        with findings.checking():
            if _has_passthrough(parent):
                made += status(context, parent)
            else:
                made.append(_up_again(context, parent) if known else up(context, parent))
    findings.finish()
    return made


def _has_passthrough(parent: str) -> bool:
    """Whether a guest has a parent for itself, which leaves no room for a shim until it ends."""
    host = Links.read()
    link = host.find(parent)
    return link is not None and any(one.mode == MacvtapMode.PASSTHROUGH.value for one in host.on(link))


def _up_again(context: Context, parent: str) -> ShimView:
    if parent in context.store.others.held():
        return up(context, parent)
    link = choose(context, parent)
    # A guest that libvirt starts at boot may be at another address by now.
    _discover(context, link)
    shims.reconcile(context, link.name)
    return status_of(context, link, Links.read(), _machines(context))


def known_parents(context: Context) -> list[str]:
    """Parents that a guest is served behind, or whose shim was brought up, as they are called now. VLANs come last."""
    store = context.reading_store
    if store is None:
        return []
    found = {lease.parent for lease in store.leases() if lease.served} | {other.parent for other in store.others.all()}
    found |= {one.parent for one in store.heard.all()} | set(store.others.held())
    there = {name: link.name for link in shims.with_shim(Links.read().all) for name in shims.names_of(link)}
    return sorted({there.get(name, name) for name in found}, key=lambda name: ("." in name, name))


def up(context: Context, parent: str, to: Sequence[To] = ()) -> ShimView:
    """Makes the shim of a parent, and has the host reach every guest behind it whose address is known; any number of
    times. `to` are guests that libvirt does not know: found by asking from the shim, and kept until `forget`.

    Raises NotFound for an address that does not answer, Taken for one that is known to be another's.
    """
    context.require_local_root("bringing a shim up")
    link = choose(context, parent)
    before = link.name in context.store.others.held()
    shim = shims.hold(context, link)
    try:
        found = _find(context, link, shim, to)
    except BaseException:
        if not before:
            context.store.others.let_go(link.name)
        shims.reconcile(context, link.name)
        raise
    for address, mac in found:
        context.store.others.keep(link.name, str(address), mac)
    _discover(context, link)
    shims.reconcile(context, link.name)
    return status_of(context, link, Links.read(), _machines(context))


def _discover(context: Context, parent: Link) -> None:
    """Asks guests whose address nobody knows, or who may have another one by now, whoever made them; forgets what those
    had that run no more."""
    from provisioner.actions import views

    listing = views.look(context)
    if listing.problem:
        return  # who runs is not known
    nics = discovery.direct_nics(listing.machines)
    discovery.follow(context, context.store.heard.keep_only([nic.mac for nic in nics]))
    heard = [nic for nic in nics if any(address.source == "wire" for address in nic.addresses)]
    asked = [nic for nic in nics if nic.parent == parent.name and (discovery.is_silent(nic) or nic in heard)]
    discovery.ask(context, asked)


def choose(context: Context, parent: str) -> Link:
    """The link that a shim is to be made on. Raises NotFound, Unable, Taken where passthrough leaves no room."""
    host = Links.read()
    name = choose_parent(host, parent or context.settings.parent, MacvtapMode.BRIDGE)
    return check_parent(host, name, MacvtapMode.BRIDGE, None, take=True)


def _find(context: Context, parent: Link, shim: Link, to: Sequence[To]) -> list[tuple[Address, str]]:
    """Who is at the addresses that are to be served: found by ARP and neighbour solicitation from the shim."""
    own = {interface.ip for _, interface in netlink.all_addresses()}
    holders = {lease.address: lease.machine for lease in context.store.leases(parent=parent.name)}
    found = [(one.address, one.mac) for one in to if one.address and one.mac]
    asked = [one.address for one in to if one.address and not one.mac]
    for address in (*asked, *(address for address, _ in found)):
        if address in own:
            raise Taken(f"{address} is this host's own address", "name a guest's")
        if str(address) in holders:
            raise Taken(f"{address} is held by {holders[str(address)]}, which is served without --to", "leave it out")
    _check_addresses(parent, [*asked, *(address for address, _ in found)])
    for address, mac in found:
        if str(address) in shims.routers() and not _is_behind(parent, mac):
            hint = f"where a guest is the router: --to {address}, and macvm asks who has it"
            raise Taken(f"{address} is that of a router of this host's, and {mac} is no macvlan on {parent.name}", hint)
    answers = wire.probe(shim.name, asked) if asked else {}
    silent = [str(address) for address in asked if address not in answers]
    if silent:
        raise NotFound(
            f"{', '.join(silent)} does not answer on {parent.name}",
            f"is it up, on this LAN, in mode bridge? or say its MAC: --to {silent[0]},52:54:00:12:34:56",
        )
    for address, mac in answers.items():
        if not _is_behind(parent, mac):
            raise Usage(
                f"{address} is at {mac}, which is no macvlan on {parent.name}: the host reaches it over the LAN",
                "leave it out; where its macvlan is down or an ipvlan, a shim cannot serve it",
            )
    blocks = [one.block for one in to if one.block]
    taken = {*own, *(ipaddress.ip_address(text) for text in holders)}
    swept = list[tuple[Address, str]]()
    for block in blocks:
        here = wire.sweep(shim.name, block).items()
        new = [(address, mac) for address, mac in here if address not in taken and _is_behind(parent, mac)]
        if not new:
            context.say(f"nobody behind {parent.name} that libvirt does not know answers in {block}")
        swept += new
    return [*found, *answers.items(), *swept]


def _check_addresses(parent: Link, addresses: Iterable[Address]) -> None:
    """Raises Usage for one that no guest behind a parent can have."""
    own = netlink.addresses(parent.index)
    for address in addresses:
        length = next((mine.network.prefixlen for mine in own if address in mine.network), address.max_prefixlen)
        check_usable(ipaddress.ip_interface((address, length)))
        if address.is_link_local:
            raise Usage(f"{address} is link-local, which a shim leads nowhere to", "another address of the guest's")


def _is_behind(parent: Link, mac: str) -> bool:
    """Whether a MAC is a macvlan's on this parent, in whatever namespace: a LAN peer is reached without a shim, and a
    route through it would go the long way."""
    on_it = {link.mac for link in Links.read().on(parent)}
    return mac in on_it or mac in netlink.macs_behind(parent.index)


def _machines(context: Context) -> Sequence[MachineView]:
    from provisioner.actions import views

    return (*views.look(context).machines, *views.endpoints(context))


def status(context: Context, parent: str = "") -> list[ShimView]:
    """Of one parent, or of all that have a shim or a guest that wants one. Raises NotFound."""
    host, machines = Links.read(), _machines(context)
    if parent:
        link = host.find(parent)
        if link is None:
            raise NotFound(f"there is no link {parent} on this host", "`ip link` shows all there are")
        return [status_of(context, link, host, machines)]
    store = context.reading_store
    names = {nic.parent for machine in machines for nic in machine.nics if nic.parent}
    names |= {lease.parent for lease in store.leases()} | set(store.others.held()) if store else set()
    names |= {link.name for link in shims.with_shim(host.all)}
    return [status_of(context, link, host, machines) for link in host.all if link.name in names]


def status_of(context: Context, parent: Link, host: Links, machines: Sequence[MachineView]) -> ShimView:
    shim, store = shims.find_shim(parent), context.reading_store
    names = shims.names_of(parent)
    guests = shims.guests_on(store, parent) if store else {}
    modes = shims.modes_behind(store, parent) if store else {}
    here = [nic for machine in machines for nic in machine.nics if nic.parent in names]
    modes |= {packed_mac(nic.mac): MacvtapMode.VEPA for nic in here if _is_vepa(nic)}
    away = shims.out_of_reach(modes, parent, modes)
    hairpin = not any(modes[mac] is MacvtapMode.VEPA for mac in away)
    guests = {address: mac for address, mac in guests.items() if mac not in away}
    leases = [lease for name in names for lease in store.leases(parent=name)] if store else []
    owners = {lease.address: lease.machine for lease in leases}
    routes = routing.HostRoutes.read()
    routed = routes.ours.get(shim.index, {}) if shim else {}
    foreign = {one.address: one.device for one in routes.foreign(guests)}
    heard = {nic.mac: machine.name for machine in machines for nic in machine.nics}
    outsiders = {guest.address for guest in unreachable(netlink.addresses(parent.index), guests)}
    outsiders -= {ipaddress.ip_address(lease.address) for lease in leases if lease.network}
    shown = []
    for guest in unpacked(guests):
        owner = owners.get(str(guest.address))
        reason = ""
        if guest.address in foreign:
            reason = f"a route through {foreign[guest.address]} is there already"
        elif guest.address.packed not in routed:
            outside = guest.address in outsiders
            reason = f"{parent.name} has no address in its subnet" if outside else "missing: macvm shim up"
        source = "lease" if owner else "wire" if guest.mac in heard else "told"
        owner = owner or heard.get(guest.mac)
        shown.append(GuestView(str(guest.address), guest.mac, owner, source, guest.address.packed in routed, reason))
    return ShimView(
        parent=parent.name,
        shim=shim.name if shim else None,
        mac=shim.mac if shim else None,
        up=bool(shim and shim.up),
        guests=tuple(shown),
        unreached=tuple(_unreached(parent, names, machines, {guest.mac for guest in shown}, hairpin)),
        firewall=tuple(firewall.closed(parent.name, shim.name)) if shim else (),
    )


def _is_vepa(nic: NicView) -> bool:
    return (nic.kernel_mode or nic.mode) == MacvtapMode.VEPA.value


def _unreached(
    parent: Link, names: Sequence[str], machines: Iterable[MachineView], served: set[str], hairpin: bool
) -> list[UnreachedView]:
    found = []
    for machine in machines:
        for nic in machine.nics:
            mode = nic.kernel_mode or nic.mode
            if nic.parent in names and mode and nic.mac not in served:
                reason = f"{machine.name} is off" if machine.state == "off" else _why(nic, mode, parent.name, hairpin)
                found.append(UnreachedView(machine.name, nic.mac, mode, reason))
    return found


def _why(nic: NicView, mode: str, parent: str, hairpin: bool) -> str:
    if mode in {one.value for one in MacvtapMode}:
        verdict = expected(Station(Place.HOST, parent), Station(MacvtapMode(mode), parent), hairpin)
        if not verdict.unicast:
            return verdict.reason
    elif mode == "source":
        return "mode source lets in only the MACs of its list, and a shim asks by broadcast"
    else:
        return "an ipvlan has its parent's MAC, and leaves no room for a shim"
    if discovery.is_silent(nic):
        return "no address of it is known: macvm shim up asks it"
    if taken := shims.routers().intersection(one.address for one in nic.addresses):
        one = min(taken)
        return f"{one} is the address of a router of this host's: macvm shim up --to {one} serves it all the same"
    return "left alone, as --no-shim asked"


def down(context: Context, parent: str) -> str:
    """Removes a parent's shim, with every route on it. What `--to` told stays for the next `up`. Returns its parent's
    name. Raises NotFound where there is none."""
    context.require_local_root("taking a shim down")
    link = choose_down(parent)
    shims.let_go(context, link)
    return link.name


def choose_down(parent: str) -> Link:
    """The parent whose shim is meant. Raises NotFound; Usage where there are several."""
    with_shim = shims.with_shim(Links.read().all)
    chosen = [link for link in with_shim if link.name == parent] if parent else with_shim
    if not chosen:
        on = ", ".join(link.name for link in with_shim)
        hint = f"there are shims on {on}" if with_shim else "macvm shim up makes one"
        raise NotFound(f"there is no shim on {parent}" if parent else "there is no shim on this host", hint)
    if len(chosen) > 1:
        raise Usage("there are several shims: say whose", f"one of {', '.join(link.name for link in chosen)}")
    return chosen[0]


def forget(context: Context, address: Address) -> str:
    """No longer serves an address that `--to` told. Returns its parent's name. Raises NotFound."""
    context.require_local_root("forgetting an address")
    found = [other for other in context.store.others.all() if other.address == str(address)]
    if not found:
        known = ", ".join(other.address for other in context.store.others.all())
        raise NotFound(f"{address} was not told by --to", f"there are {known}" if known else "macvm shim status")
    for other in found:
        context.store.others.forget(other.parent, other.address)
        shims.reconcile(context, other.parent)
    return found[0].parent
