"""What shims and their routes would be changed by, with the lines of `ip` and `sysctl` that amount to the same."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from provisioner.actions import networks, shimming, shims
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import NotFound
from provisioner.host import links, netlink, routing
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import packed_mac, shim_name
from provisioner.model.nic import Address
from provisioner.model.shim import Guest, ShimSet, To, unpacked, wanted

_OURS = f"protocol {links.PROTOCOL}"


def routing_lines(
    context: Context,
    routes: Iterable[GuestRoute],
    networked: Collection[str] | None = None,
    modes: Mapping[str, MacvtapMode] = MappingProxyType({}),
) -> list[str]:
    """The lines that make routes, and the shims of their parents, where they are not there.

    Nothing for a guest that the parent has no address to reach from, unless it is `networked`, on a network, which then
    has one for the shim; None: they all are. `modes` are those that guests will be in, by their MACs.
    """
    lines: list[str] = []
    store = context.reading_store
    for parent, mine in _by_parent(routes).items():
        link = netlink.get_link(parent)
        there = shims.modes_behind(store, link) if store else {}
        there |= {packed_mac(mac): mode for mac, mode in modes.items()}
        away = shims.out_of_reach(there, link, {packed_mac(route.mac) for route in mine})
        if any(there[mac] is MacvtapMode.VEPA for mac in away):
            lines.append(f"# the switch sends {parent} nothing back, and so no route leads to guests in VEPA mode")
        if reached := [route for route in mine if packed_mac(route.mac) not in away]:
            lines += _making_lines(link, reached, networked)
    return lines


def _by_parent(routes: Iterable[GuestRoute]) -> dict[str, list[GuestRoute]]:
    found: dict[str, list[GuestRoute]] = {}
    for route in routes:
        found.setdefault(route.parent, []).append(route)
    return found


def _making_lines(parent: Link, routes: Sequence[GuestRoute], networked: Collection[str] | None) -> list[str]:
    shim = shims.find_shim(parent)
    name = shim.name if shim else shim_name(parent.name)
    guests = routing.packed([(str(route.address), route.mac) for route in routes])
    want = wanted(netlink.addresses(parent.index), guests)
    # Which address it will be is known once the LAN was asked.
    others = [
        f"# gives {name} an address of the network's pool, and a route to {route.address} from there"
        for route in routes
        if route.address.packed not in want.routes and (networked is None or str(route.address) in networked)
    ]
    if not want and not others:
        return []
    have = routing.read(shim) if shim else ShimSet()
    lines = [] if shim else shims.making_lines(parent)
    new = want - have
    for address in _in_order(new.neighbours):
        one = ipaddress.ip_address(address)
        mac = new.neighbours[address].hex(":")
        lines.append(f"ip -{one.version} neigh replace {one} lladdr {mac} dev {name} nud permanent {_OURS}")
    lines += [f"ip -6 neigh add proxy {ipaddress.ip_address(one)} dev {name}" for one in sorted(new.proxies)]
    for address in _in_order(new.routes):
        one = ipaddress.ip_address(address)
        verb = "replace" if address in have.routes else "add"
        route = f"ip -{one.version} route {verb} {one}/{one.max_prefixlen} dev {name}"
        route += f" src {ipaddress.ip_address(new.routes[address])} proto {links.PROTOCOL}"
        lines.append(f"{route} scope link" if one.version == 4 else route)
    return lines + others


def _in_order(addresses: Iterable[bytes]) -> list[bytes]:
    """IPv4 before IPv6."""
    return sorted(addresses, key=lambda one: (len(one), one))


def on_networks(context: Context, parent: str) -> set[str]:
    """Addresses on a parent that networks gave out."""
    leases = context.reading_store.leases(parent=parent) if context.reading_store else []
    return {lease.address for lease in leases if lease.network}


def unrouting_lines(context: Context, routes: Iterable[GuestRoute], let_go: Collection[str] = ()) -> list[str]:
    """The `ip` lines that take routes away, what they alone needed, and each shim that nothing else is behind.
    `let_go` are parents whose shim is not to stay for its own sake any more."""
    lines, store = [], context.reading_store
    held = set(store.others.held()) - {*let_go} if store else set()
    for parent, mine in {**{one: [] for one in let_go}, **_by_parent(routes)}.items():
        link = netlink.find_link(parent)
        shim = shims.find_shim(link) if link else None
        if shim is None:
            continue
        going = {route.address.packed for route in mine}
        have = routing.read(shim)
        for address in _in_order(going & have.routes.keys()):
            lines.append(f"ip route del {ipaddress.ip_address(address)} dev {shim.name} proto {links.PROTOCOL}")
        for address in _in_order(going & have.neighbours.keys()):
            lines.append(f"ip neigh del {ipaddress.ip_address(address)} dev {shim.name}")
        if parent not in held and not (shims.guests_behind(store, parent).keys() - going if store else ()):
            lines += shims.removing_lines(shim.name)
            continue
        needed = {source for address, source in have.routes.items() if address not in going}
        for address in sorted(have.proxies - needed):
            lines.append(f"ip -6 neigh del proxy {ipaddress.ip_address(address)} dev {shim.name}")
        for address in sorted(have.own - needed):
            one = ipaddress.ip_address(address)
            lines.append(f"ip addr del {one}/{one.max_prefixlen} dev {shim.name}")
    return lines


def up(context: Context, parent: str, to: Sequence[To], *, known: bool = False) -> list[str]:
    """What is asked from a shim can only be known once there is one."""
    if not parent and not to:
        links_up = networks.up_lines(context)
        there = [one for one in shimming.known_parents(context) if netlink.find_link(one)]
        lines = [line for one in there for line in up(context, one, to)]
        return [*links_up, *lines] or ([] if known else up(context, shimming.choose(context, "").name, to))
    link = shimming.choose(context, parent)
    store = context.reading_store
    guests = unpacked(shims.guests_on(store, link)) if store else []
    guests += [Guest(one.address, one.mac) for one in to if one.address and one.mac]
    routes = [GuestRoute(guest.address, guest.mac, link.name) for guest in dict.fromkeys(guests)]
    lines = routing_lines(context, routes, on_networks(context, link.name))
    making = [] if shims.find_shim(link) else shims.making_lines(link)
    lines = [*making, *(line for line in lines if line not in making)]
    asked = [str(one.block or one.address) for one in to if not one.mac]
    return [
        *lines,
        *(f"# asks {what} from {shim_name(link.name)}, and the same for each MAC that answers" for what in asked),
    ]


def down(context: Context, parent: str) -> list[str]:
    link = shimming.choose_down(parent)
    shim = shims.find_shim(link)
    return shims.removing_lines(shim.name) if shim else []


def forget(context: Context, address: Address) -> list[str]:
    store = context.reading_store
    found = [other for other in store.others.all() if other.address == str(address)] if store else []
    if not found:
        raise NotFound(f"{address} was not told by --to", "macvm shim status")
    return unrouting_lines(context, [GuestRoute(address, one.mac, one.parent) for one in found])
