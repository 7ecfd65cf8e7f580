"""The host's own macvlan on a parent, and a route and a neighbour entry for each guest address behind it.

Each measure answers something that was seen to go wrong with a plain macvlan and a route:
- the source is pinned to the parent's address, or the kernel may pick another NIC's;
- the neighbour entry is permanent, or the host would ask for the guest by broadcast with the shim's MAC, a LAN peer
  would learn that, and a host with strict rp_filter would drop the peer from then on;
- `arp_filter`, or both the parent and the shim would answer the LAN for the host's address;
- IPv6 needs a proxy entry, since neighbour discovery answers only on the link that has the address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from provisioner.context import Context
from provisioner.errors import MacvmError, Taken, Unable
from provisioner.host import links, netlink
from provisioner.host.leases import Lease
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import shim_mac, shim_name
from provisioner.model.nic import Address, Nic
from provisioner.model.reach import Place, Station, expected

_ALIAS = f"{links.MARK}shim:"

#: What a shim is set to before it comes up, below /proc/sys/net. The host takes no address of its own on it.
_SYSCTLS = (
    ("ipv4/conf/{}/arp_filter", "1"),
    ("ipv6/conf/{}/addr_gen_mode", "1"),
    ("ipv6/conf/{}/autoconf", "0"),
    ("ipv6/conf/{}/accept_ra", "0"),
    ("ipv6/conf/{}/proxy_ndp", "1"),
    # Of the shim alone: without it the kernel does not answer for a proxied address.
    ("ipv6/conf/{}/forwarding", "1"),
)


class GuestRoute(NamedTuple):
    """A guest's address, the MAC it is at, and the parent it is behind."""

    address: Address
    mac: str
    parent: str


def reaches_host(mode: MacvtapMode) -> bool:
    """Whether a shim can reach a guest in this mode at all, be it by a switch that sends frames back."""
    return expected(Station(Place.HOST), Station(mode), hairpin=True).unicast


def is_served(nic: Nic) -> bool:
    """Whether the host's side is to follow a NIC's addresses."""
    return nic.shim and nic.direct and reaches_host(nic.mode)


def guest_routes(nic: Nic) -> list[GuestRoute]:
    """What the host's side of a NIC wants: a route for each address that a shim can reach."""
    if not is_served(nic):
        return []
    addresses = [address for address in nic.addressing.addresses if pinned_source(nic.parent, address)]
    return [GuestRoute(address, nic.mac, nic.parent) for address in addresses]


def routes_of(leases: Iterable[Lease], owner: str) -> list[GuestRoute]:
    """What a machine's leases want on the host."""
    wanted = [lease for lease in leases if lease.owner == owner and lease.served]
    return [GuestRoute(ipaddress.ip_address(lease.address), lease.mac, lease.parent) for lease in wanted]


def pinned_source(parent: str, address: Address) -> Address | None:
    """The parent's own address in the guest's subnet."""
    own = netlink.addresses(netlink.get_link(parent).index)
    return next((mine.ip for mine in own if mine.version == address.version and address in mine.network), None)


def find_shim(parent: Link) -> Link | None:
    """macvm's shim on a parent, however the two are named by now."""
    for link in netlink.links():
        if link.alias.startswith(_ALIAS) and link.lower == parent.index:
            return link
    return None


def _lock_name(parent: str) -> str:
    return shim_name(parent)


def ensure(context: Context, routes: Iterable[GuestRoute]) -> list[str]:
    """Brings up the shims that the routes need, then the routes; any number of times. Returns what could not be done.

    Raises Taken for a route that another program made.
    """
    notes: list[str] = []
    for route in routes:
        source = pinned_source(route.parent, route.address)
        if source is None:
            notes.append(
                f"no route to {route.address}: {route.parent} has no address in its subnet, "
                "so the host has none to speak from"
            )
            continue
        with context.lock(_lock_name(route.parent)):
            shim = _ensure_shim(netlink.get_link(route.parent))
            _ensure_route(route, shim, source)
    return notes


def _ensure_shim(parent: Link) -> Link:
    shim = find_shim(parent)
    if shim is None:
        name = shim_name(parent.name)
        try:
            shim = links.add_macvlan(name, parent, shim_mac(parent.mac), _ALIAS + parent.name)
        except Taken as error:
            hint = f"rename or remove it (ip link del {name}), or use --no-shim"
            raise Taken(f"there is a link {name} already, and it is not macvm's shim", hint) from error
    for key, value in _SYSCTLS:
        links.sysctl("net/" + key.format(shim.name), value)
    if not shim.up:
        links.set_up(shim)
    return shim


def making_lines(parent: Link) -> list[str]:
    """The `ip` and `sysctl` lines that amount to making the shim of a parent."""
    name = shim_name(parent.name)
    # With slashes: a dot in the name, as of a VLAN's shim, would part it.
    keys = [f"sysctl -w net/{key.format(name)}={value}" for key, value in _SYSCTLS]
    made = f"ip link add {name} link {parent.name} address {shim_mac(parent.mac)} type macvlan mode bridge"
    return [made, f"ip link set {name} alias {_ALIAS}{parent.name}", *keys, f"ip link set {name} up"]


def _ensure_route(route: GuestRoute, shim: Link, source: Address) -> None:
    whole = ipaddress.ip_network(route.address)
    there = [found for found in netlink.routes() if found.destination == whole]
    foreign = [found for found in there if found.protocol != links.PROTOCOL]
    if foreign:
        device = next((link.name for link in netlink.links() if link.index == foreign[0].device), "?")
        raise Taken(
            f"there is a route to {route.address} through {device} already, and macvm did not make it",
            f"remove it (ip route del {route.address} dev {device}), or use --no-shim",
        )
    links.set_neighbour(route.address, shim, route.mac)
    if source.version == 6:
        links.add_proxy(source, shim)
    right = [found for found in there if found.device == shim.index and found.source == source]
    for stale in [found for found in there if found not in right]:
        links.remove_route(route.address, stale.device)
    if not right:
        links.add_route(route.address, shim, source)


def give_way(context: Context, parent: str) -> None:
    """Removes macvm's shim from a parent that a passthrough NIC is about to take. Raises Taken while guests use it."""
    link = netlink.find_link(parent)
    if link is None:
        return
    with context.lock(_lock_name(parent)):
        shim = find_shim(link)
        users = sorted({lease.machine for lease in context.store.leases() if lease.parent == parent and lease.served})
        if shim and users:
            hint = "choose another --parent, or delete those machines"
            raise Taken(f"{parent} is held by {shim.name}, through which the host reaches {', '.join(users)}", hint)
        if shim:
            links.remove(shim)


def release(context: Context, routes: Iterable[GuestRoute]) -> None:
    """Takes the routes away, and each shim that no lease needs any more. Gone already is fine.

    To be called once the leases are released: a shim stays while any lease is behind it.
    """
    problems: list[MacvmError] = []
    for route in routes:
        with context.lock(_lock_name(route.parent)):
            try:
                _release_route(context, route)
            except MacvmError as error:
                problems.append(error)
    if problems:
        raise Unable("; ".join(problem.message for problem in problems), problems[0].hint)


def _release_route(context: Context, route: GuestRoute) -> None:
    parent = netlink.find_link(route.parent)
    shim = find_shim(parent) if parent else None
    if shim is None:
        return
    held = [lease for lease in context.store.leases() if lease.parent == route.parent and lease.served]
    if not any(lease.address == str(route.address) for lease in held):
        links.remove_route(route.address, shim.index)
        links.remove_neighbour(route.address, shim.index)
        source = pinned_source(route.parent, route.address)
        others = [pinned_source(lease.parent, ipaddress.ip_address(lease.address)) for lease in held]
        if source and source.version == 6 and source not in others:
            links.remove_proxy(source, shim.index)
    if not held:
        links.remove(shim)
