"""What shims and their routes would be changed by, with the lines of `ip` and `sysctl` that amount to the same."""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.actions import shimming, shims
from provisioner.context import Context
from provisioner.errors import NotFound
from provisioner.host import links, netlink
from provisioner.model.names import shim_name
from provisioner.model.nic import Address
from provisioner.model.shim import Guest, To, unpacked


def shim_lines(route: shims.GuestRoute, *, on_network: bool = True) -> list[str]:
    """The `ip` and `sysctl` lines that make a route and its shim. Nothing for a guest that the parent has no address to
    reach from, unless it is on a network, which then has one for the shim."""
    parent = netlink.get_link(route.parent)
    source = shims.pinned_source(route.parent, route.address)
    shim = shims.find_shim(parent)
    name = shim.name if shim else shim_name(parent.name)
    lines = [] if shim else shims.making_lines(parent)
    if source is None and not on_network:
        return []
    if source is None:
        # Which it will be is known once the LAN was asked.
        return [*lines, f"# gives {name} an address of the network's pool, and a route to {route.address} from there"]
    family = f"ip -{source.version}"
    lines.append(f"{family} neigh replace {route.address} lladdr {route.mac} dev {name} nud permanent")
    if source.version == 6:
        lines.append(f"ip -6 neigh add proxy {source} dev {name}")
    whole = f"{route.address}/{route.address.max_prefixlen}"
    route_words = f"{family} route add {whole} dev {name} src {source} proto {links.PROTOCOL}"
    return [*lines, f"{route_words} scope link" if source.version == 4 else route_words]


def on_networks(context: Context, parent: str) -> set[str]:
    """Addresses on a parent that networks gave out."""
    leases = context.reading_store.leases(parent=parent) if context.reading_store else []
    return {lease.address for lease in leases if lease.network}


def unrouting_lines(context: Context, routes: Sequence[shims.GuestRoute]) -> list[str]:
    """The `ip` lines that take routes away, and each shim that nothing else is behind."""
    lines = []
    for route in routes:
        name = _shim_name(route.parent)
        if name:
            lines.append(f"ip route del {route.address} dev {name} proto {links.PROTOCOL}")
            lines.append(f"ip neigh del {route.address} dev {name}")
    store, going = context.reading_store, {(route.parent, route.address) for route in routes}
    parents = dict.fromkeys(route.parent for route in routes)
    kept = set(store.others.held()) if store else set()
    for parent in parents:
        behind = unpacked(shims.guests_behind(store, parent)) if store else []
        kept |= {parent for guest in behind if (parent, guest.address) not in going}
    parents = dict.fromkeys(parent for parent in parents if parent not in kept)
    return [*lines, *(line for name in map(_shim_name, parents) if name for line in shims.removing_lines(name))]


def _shim_name(parent: str) -> str:
    """Empty where there is none."""
    link = netlink.find_link(parent)
    shim = shims.find_shim(link) if link else None
    return shim.name if shim else ""


def up(context: Context, parent: str, to: Sequence[To], *, known: bool = False) -> list[str]:
    """What is asked from a shim can only be known once there is one."""
    if not parent and not to:
        there = [one for one in shimming.known_parents(context) if netlink.find_link(one)]
        lines = [line for one in there for line in up(context, one, to)]
        return lines or ([] if known else up(context, shimming.choose(context, "").name, to))
    link = shimming.choose(context, parent)
    lines = [] if shims.find_shim(link) else shims.making_lines(link)
    store = context.reading_store
    guests = unpacked(shims.guests_behind(store, link.name)) if store else []
    guests += [Guest(one.address, one.mac) for one in to if one.address and one.mac]
    making, networked = shims.making_lines(link), on_networks(context, link.name)
    for guest in guests:
        route = shims.GuestRoute(guest.address, guest.mac, link.name)
        found = shim_lines(route, on_network=str(guest.address) in networked)
        lines += [line for line in found if line not in lines and line not in making]
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
    return unrouting_lines(context, [shims.GuestRoute(address, one.mac, one.parent) for one in found])
