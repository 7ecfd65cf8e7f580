"""The host's own macvlan on a parent, and a route and a neighbour entry for each guest address behind it.

What is wanted on it is a function of the store (`model.shim`); it is compared with what the kernel has, adds come
before removes, and a second time changes nothing. `arp_filter` keeps the shim from answering the LAN for the host's
address beside the parent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from provisioner.context import Context
from provisioner.errors import MacvmError, Taken, Unable
from provisioner.host import links, log, netlink, routing
from provisioner.host.netlink import Link
from provisioner.host.routing import ForeignRoute
from provisioner.host.store import Store
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import packed_mac, shim_mac, shim_name
from provisioner.model.nic import Address, Interface, Nic
from provisioner.model.reach import Place, Station, expected
from provisioner.model.shim import OWNER_PREFIX, Guest, Guests, ShimSet, source_for, unreachable, wanted

_ALIAS = f"{links.MARK}shim:"

#: What a shim is set to before it comes up, below /proc/sys/net. The host takes no address of its own on it.
_SYSCTLS = (
    ("ipv4/conf/{}/arp_filter", "1"),
    ("ipv6/conf/{}/addr_gen_mode", "1"),
    ("ipv6/conf/{}/autoconf", "0"),
    ("ipv6/conf/{}/accept_ra", "0"),
    ("ipv6/conf/{}/proxy_ndp", "1"),
    # By default the kernel answers a proxied solicitation up to 0.8 s late (0.3 to 0.8 s seen, first packet).
    ("ipv6/neigh/{}/proxy_delay", "0"),
    # Of the shim alone: without it the kernel does not answer for a proxied address.
    ("ipv6/conf/{}/forwarding", "1"),
)


_MODES = {mode.value: mode for mode in MacvtapMode}


class GuestRoute(NamedTuple):
    """A guest's address, the MAC it is at, and the parent it is behind."""

    address: Address
    mac: str
    parent: str


def as_facts(routes: Iterable[GuestRoute]) -> dict[str, Any]:
    """For the journal: what `removal.Remains.read` makes routes of again."""
    return {"routes": [[str(route.address), route.mac, route.parent] for route in routes]}


def reaches_host(mode: MacvtapMode) -> bool:
    """Whether a shim can reach a guest in this mode at all, be it by a switch that sends frames back."""
    return expected(Station(Place.HOST), Station(mode), hairpin=True).unicast


def is_served(nic: Nic) -> bool:
    """Whether the host's side is to follow a NIC's addresses."""
    return nic.shim and nic.direct and reaches_host(nic.mode)


def guest_routes(nic: Nic) -> list[GuestRoute]:
    """What the host's side of a NIC wants: a route for each address that a shim can reach. On a network the shim itself
    gets an address where the parent has none."""
    if not is_served(nic):
        return []
    addresses = nic.addressing.addresses
    reached = [address for address in addresses if nic.network or pinned_source(nic.parent, address)]
    return [GuestRoute(address, nic.mac, nic.parent) for address in reached]


def routes_of(store: Store, owner: str) -> list[GuestRoute]:
    """What a machine's leases want on the host, and what it was heard to have."""
    wanted = [(lease.address, lease.mac, lease.parent) for lease in store.leases(owner=owner) if lease.served]
    if store.has_heard():
        macs = store.told_of(owner)
        wanted += [(one.address, one.mac, one.parent) for one in store.heard.all() if one.mac in macs]
    return [GuestRoute(ipaddress.ip_address(address), mac, parent) for address, mac, parent in wanted]


def pinned_source(parent: str, address: Address) -> Address | None:
    """The parent's own address in the guest's subnet."""
    return source_for(address, netlink.addresses(netlink.get_link(parent).index))


def find_shim(parent: Link, there: Sequence[Link] | None = None) -> Link | None:
    """macvm's shim on a parent, however the two are named by now. Here and below `there` are the host's links, for who
    has looked already."""
    on_it = (link for link in there or netlink.links() if link.lower == parent.index)
    return next((link for link in on_it if _is_shim(link)), None)


def with_shim(there: Iterable[Link]) -> list[Link]:
    """Those of a host's links, all of which are given, that have a shim."""
    everything = list(there)
    parents = {link.lower for link in everything if _is_shim(link)}
    return [link for link in everything if link.index in parents]


def _is_shim(link: Link) -> bool:
    return link.alias.startswith(_ALIAS)


def _lock_name(parent: str) -> str:
    return shim_name(parent)


class Outcome(NamedTuple):
    """What could not be done for a parent's guests: for some the host has no address to speak from, and to others there
    is a route already that macvm did not make."""

    unreachable: list[Guest]
    foreign: list[ForeignRoute]


def reconcile(context: Context, parent: str) -> Outcome:
    """Has a parent's shim, its routes, entries and proxies be what the store's leases want; any number of times. A shim
    that nothing is behind goes. A parent that is gone is fine: what was on it went with it."""
    link = _find_parent(parent)
    if link is None:
        _give_back(context, parent, [])
        return Outcome([], [])
    with context.lock(_lock_name(parent)):
        there = netlink.links()
        guests = reached_behind(context.store, link, there)
        own = netlink.addresses(link.index)
        want = wanted(own, guests)
        beyond = {one: mac for one, mac in guests.items() if one not in want.routes}
        given = _given(context, link, own) if beyond else []
        routes = routing.HostRoutes.read()
        foreign = routes.foreign(guests)
        if given or foreign:
            theirs = {one.address.packed for one in foreign}
            want = wanted(own, {one: mac for one, mac in guests.items() if one not in theirs}, given)
        # An address that the shim was given has made it.
        shim, held = find_shim(link, None if given else there), set(context.store.others.held())
        if want:
            shim = _ensure_shim(link, shim)
            have = routing.read(shim, routes)
            if want != have:
                routing.change(shim, want - have, have - want, routes)
        elif shim and (guests_on(context.store, link, there) or not held.isdisjoint(names_of(link, there))):
            routing.change(shim, ShimSet(), routing.read(shim, routes))
        elif shim:
            remove(shim)
        _give_back(context, parent, own)
        return Outcome(unreachable(given, beyond), foreign)


def _find_parent(parent: str) -> Link | None:
    """Under the name that the store has, and libvirt's XML: a parent that was renamed is known by the shim on it."""
    link = netlink.find_link(parent)
    if link is None:
        there = netlink.links()
        on_it = {one.lower for one in there if one.alias == _ALIAS + parent}
        renamed = next((one for one in there if one.index in on_it), None)
        link = renamed._replace(name=parent) if renamed else None
    return link


def _given(context: Context, parent: Link, own: Sequence[Interface]) -> list[Interface]:
    """The shim's own addresses, for guests that the parent has none for."""
    from provisioner.actions import shim_addresses

    return shim_addresses.claim(context, parent.name, own, lambda: _ensure_shim(parent, find_shim(parent)))


def _give_back(context: Context, parent: str, own: Sequence[Interface]) -> None:
    if context.store.leases(owner=OWNER_PREFIX + parent):
        from provisioner.actions import shim_addresses

        shim_addresses.give_back(context, parent, own)


def reached_behind(store: Store, parent: Link, there: Sequence[Link] | None = None) -> Guests:
    """Of `guests_on`, those that a shim reaches: none in private or passthrough mode, which may be heard all the same,
    and what it sends to a VEPA guest goes by way of the switch."""
    there = there or netlink.links()
    guests = guests_on(store, parent, there)
    away = out_of_reach(modes_behind(store, parent, there), parent, set(guests.values())) if guests else set()
    return {one: mac for one, mac in guests.items() if mac not in away} if away else guests


def out_of_reach(modes: Mapping[bytes, MacvtapMode], parent: Link, macs: Collection[bytes]) -> set[bytes]:
    """Those of the MACs that no shim of the parent reaches. The switch is asked only where it matters."""
    here = {mac: mode for mac, mode in modes.items() if mac in macs}
    away = {mac for mac, mode in here.items() if not reaches_host(mode)}
    vepa = {mac for mac, mode in here.items() if mode is MacvtapMode.VEPA}
    return away | vepa if vepa and not _sends_back(parent) else away


def modes_behind(store: Store, parent: Link, there: Sequence[Link] | None = None) -> dict[bytes, MacvtapMode]:
    """Modes of the guests on a parent by their packed MACs: as the kernel has them, else as they were told. One that is
    not there is in mode bridge, or none of libvirt's."""
    told = [mode for mode in MacvtapMode if mode is not MacvtapMode.BRIDGE]
    found: dict[str, MacvtapMode] = {mac: mode for mode in told for mac in store.macs_told(mode)}
    for link in there or netlink.links():
        if link.lower == parent.index and link.mode in _MODES:
            found[link.mac] = _MODES[link.mode]
    return {packed_mac(mac): mode for mac, mode in found.items()}


def _sends_back(parent: Link) -> bool:
    """Whether the switch sends frames back to a parent; taken to do so where it cannot be asked."""
    from provisioner.host import hairpin  # for the rare VEPA guest

    named = next((link.name for link in netlink.links() if link.index == parent.index), parent.name)
    try:
        return not parent.up or not parent.carrier or hairpin.is_on(named)
    except Unable:  # only root can
        return True


def names_of(parent: Link, there: Sequence[Link] | None = None) -> list[str]:
    """What the store, and libvirt's XML, may know a parent by: one that was renamed by its old name too, which the shim
    on it keeps."""
    there = there or netlink.links()
    now = [link.name for link in there if link.index == parent.index]
    before = [link.alias.removeprefix(_ALIAS) for link in there if _is_shim(link) and link.lower == parent.index]
    return list(dict.fromkeys((parent.name, *now, *before)))


def guests_on(store: Store, parent: Link, there: Sequence[Link] | None = None) -> Guests:
    """`guests_behind` each name of a parent."""
    first, *others = [guests_behind(store, name) for name in names_of(parent, there)]
    for more in others:
        first = more | first
    return first


def guests_behind(store: Store, parent: str) -> Guests:
    """Those that the host is to reach through a parent's shim."""
    guests = routing.packed(store.held_behind(parent, served=True))
    # A lease is surer than the user's word, and that than what was heard; and who was heard first keeps what another
    # says that it has too.
    told = [(one.address, one.mac) for one in store.others.behind(parent)]
    heard = [(one.address, one.mac) for one in reversed(store.heard.behind(parent))]
    if heard:
        beyond = routers()  # which no guest becomes by saying so
        heard = [(address, mac) for address, mac in heard if address not in beyond]
    if not told and not heard:
        return guests
    left_alone = {row["address"] for row in store.held_behind(parent, served=False)}
    beside = routing.packed([(address, mac) for address, mac in (*heard, *told) if address not in left_alone])
    return {one: mac for one, mac in beside.items() if not ipaddress.ip_address(one).is_link_local} | guests


def routers() -> set[str]:
    """Addresses that the host sends to by way of: a route through a shim to one of them takes the router's place."""
    return {str(route.gateway) for route in netlink.routes() if route.gateway}


def hold(context: Context, parent: Link) -> Link:
    """Makes a parent's shim, which then stays until `let_go`, whatever is behind it."""
    with context.lock(_lock_name(parent.name)):
        context.store.others.hold(parent.name)
        shim = _ensure_shim(parent, find_shim(parent))
        # Again, for a shim that was there: firewalld may have been started, or told of the parent, since.
        _join_zone(parent.name, shim.name)
        return shim


def let_go(context: Context, parent: Link) -> bool:
    """Removes a parent's shim with all that is on it. Whether there was one."""
    with context.lock(_lock_name(parent.name)):
        for name in names_of(parent):
            context.store.others.let_go(name)
        shim = find_shim(parent)
        if shim:
            remove(shim)
        return shim is not None


def remove(shim: Link) -> None:
    """With all that is on it, and its place in a zone of firewalld."""
    from provisioner.host import firewalld  # a shim comes and goes seldom

    log.step(f"shim {shim.name} goes")
    links.remove(shim)
    firewalld.leave(shim.name)


def _join_zone(parent: str, shim: str) -> None:
    from provisioner.host import firewalld

    firewalld.join(parent, shim)


def ensure(context: Context, routes: Iterable[GuestRoute]) -> list[str]:
    """Brings up the shims that the routes need, and all that belongs on them. Returns what could not be done for these
    routes. Raises Taken for a route to one of them that another program made.

    To be called once the leases are claimed.
    """
    notes: list[str] = []
    for parent, mine in _by_parent(routes).items():
        outcome = reconcile(context, parent)
        for one in outcome.foreign:
            if one.address in mine:
                raise Taken(
                    f"there is a route to {one.address} through {one.device} already, and macvm did not make it",
                    f"remove it (ip route del {one.address} dev {one.device}), or use --no-shim",
                )
        notes += [
            f"no route to {guest.address}: {parent} has no address in its subnet, so the host has none to speak from"
            for guest in outcome.unreachable
            if guest.address in mine
        ]
    return notes


def _by_parent(routes: Iterable[GuestRoute]) -> dict[str, set[Address]]:
    found: dict[str, set[Address]] = {}
    for route in routes:
        found.setdefault(route.parent, set()).add(route.address)
    return found


def _ensure_shim(parent: Link, shim: Link | None) -> Link:
    """`shim` is that which is there."""
    if shim is None:
        name = shim_name(parent.name)
        log.step(f"shim {name} on {parent.name}")
        try:
            shim = links.add_macvlan(name, parent, shim_mac(parent.mac), _ALIAS + parent.name)
        except Taken as error:
            hint = f"rename or remove it (ip link del {name}), or use --no-shim"
            raise Taken(f"there is a link {name} already, and it is not macvm's shim", hint) from error
        _join_zone(parent.name, name)
    for key, value in _SYSCTLS:
        links.sysctl("net/" + key.format(shim.name), value)
    if not shim.up:
        links.set_up(shim)
    return shim


def making_lines(parent: Link) -> list[str]:
    """The `ip`, `sysctl` and `firewall-cmd` lines that amount to making the shim of a parent."""
    from provisioner.host import firewalld

    name = shim_name(parent.name)
    # With slashes: a dot in the name, as of a VLAN's shim, would part it.
    keys = [f"sysctl -w net/{key.format(name)}={value}" for key, value in _SYSCTLS]
    made = f"ip link add {name} link {parent.name} address {shim_mac(parent.mac)} type macvlan mode bridge"
    joined = firewalld.joining_lines(parent.name, name)
    return [made, f"ip link set {name} alias {_ALIAS}{parent.name}", *joined, *keys, f"ip link set {name} up"]


def removing_lines(shim: str) -> list[str]:
    from provisioner.host import firewalld

    return [f"ip link del {shim}", *firewalld.leaving_lines(shim)]


def give_way(context: Context, parent: str) -> None:
    """Removes macvm's shim from a parent that a passthrough NIC is about to take. Raises Taken while guests use it."""
    link = netlink.find_link(parent)
    if link is None:
        return
    with context.lock(_lock_name(parent)):
        shim = find_shim(link)
        others = [other.address for other in context.store.others.behind(parent)]
        users = others + sorted({lease.machine for lease in context.store.leases(parent=parent) if lease.served})
        if shim and users:
            hint = "choose another --parent, or delete those machines; macvm shim forget lets go of an address"
            raise Taken(f"{parent} is held by {shim.name}, through which the host reaches {', '.join(users)}", hint)
        if shim:
            remove(shim)


def release(context: Context, routes: Iterable[GuestRoute]) -> None:
    """Takes the routes away, and each shim that no lease needs any more. Gone already is fine.

    To be called once the leases are released: a shim stays while any lease is behind it.
    """
    problems: list[MacvmError] = []
    for parent in _by_parent(routes):
        try:
            reconcile(context, parent)
        except MacvmError as error:
            problems.append(error)
    if problems:
        raise Unable("; ".join(problem.message for problem in problems), problems[0].hint)
