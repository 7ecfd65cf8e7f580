"""The addresses of NICs on a network: picked from its pools, or checked against them, and claimed in the store."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from provisioner.actions import shims
from provisioner.context import Context
from provisioner.errors import Taken, Usage
from provisioner.host import netlink, system
from provisioner.host.leases import LeaseClaim, Leases, NicClaim
from provisioner.model.nic import Address, Addressing, Interface, Nic

if TYPE_CHECKING:
    from provisioner.model.ipam import Pick, Pool
    from provisioner.model.network import Network, Subnet


class Segment(NamedTuple):
    """A network, and what of the host as it stands bears on it: `reserved` are addresses that the host itself or one of
    its routers has; `gateways` and `dns` serve guests in the host's own `subnets` where the network names none.
    `promised` are addresses that are given to those alone who ask for them by name."""

    network: Network
    reserved: frozenset[Address] = frozenset()
    subnets: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    gateways: tuple[Address, ...] = ()
    dns: tuple[Address, ...] = ()
    promised: frozenset[Address] = frozenset()

    def pool(self, subnet: Subnet) -> Pool:
        from provisioner.model.ipam import pool_of  # which a NIC on a bare parent has no use for

        return pool_of(subnet, self.network.never_given() | self.reserved)


def look_at(context: Context, name: str) -> Segment:
    """Raises NotFound."""
    return segment_of(get_network(context, name))._replace(promised=context.promised)


def get_network(context: Context, name: str) -> Network:
    """Raises NotFound."""
    from provisioner.host.networks import no_network

    coming = next((one for one in context.coming if one.name == name), None)
    if coming:
        return coming
    store = context.reading_store
    if store is None:
        raise no_network(name, [])
    return store.networks.get(name)


def segment_of(network: Network) -> Segment:
    """The host's addresses count wherever they are: to a guest that had one, the host would answer itself."""
    parent = netlink.find_link(network.parent)
    everywhere = netlink.all_addresses()
    own = [interface for index, interface in everywhere if parent and index == parent.index]
    routes = [route for route in netlink.routes() if route.gateway]
    here = [route for route in routes if parent and route.device == parent.index and route.destination.prefixlen == 0]
    # What the shim there has is one of the network's leases already.
    shim = shims.find_shim(parent) if parent and any(_is_whole(one) for _, one in everywhere) else None
    hosts = {interface.ip for index, interface in everywhere if shim is None or index != shim.index}
    return Segment(
        network,
        reserved=frozenset(hosts | {r.gateway for r in routes if r.gateway}),
        subnets=tuple(interface.network for interface in own),
        gateways=tuple(route.gateway for route in here if route.gateway),
        dns=system.name_servers() if own else (),
    )


def _is_whole(interface: Interface) -> bool:
    return interface.network.prefixlen == interface.max_prefixlen and not interface.is_loopback


def told_on(segment: Segment, asked: Addressing) -> Addressing:
    """A NIC's given addresses with length, gateways and name servers of its network. Raises Usage, Taken."""
    static = tuple(_checked(segment, interface) for interface in asked.static)
    return _complete(segment, asked._replace(static=static))


def _complete(segment: Segment, asked: Addressing) -> Addressing:
    gateways, dns = asked.gateways, asked.dns or segment.network.dns
    if not asked.gateways:
        found = (_gateway(segment, interface) for interface in asked.static)
        by_family = {gateway.version: gateway for gateway in found if gateway}
        gateways = tuple(by_family[version] for version in sorted(by_family))
    if not dns and any(_is_own(segment, interface) for interface in asked.static):
        dns = segment.dns
    return asked._replace(gateways=gateways, dns=dns)


def _is_own(segment: Segment, interface: Interface) -> bool:
    return any(interface.version == own.version and interface.ip in own for own in segment.subnets)


def _gateway(segment: Segment, interface: Interface) -> Address | None:
    subnet = segment.network.subnet_of(interface.ip)
    if subnet is None or subnet.gateway or not _is_own(segment, interface):
        return subnet.gateway if subnet else None
    return next((gateway for gateway in segment.gateways if gateway.version == interface.version), None)


def _checked(segment: Segment, interface: Interface) -> Interface:
    """A given address against the pool: in a subnet, in its range, and kept for nobody."""
    from provisioner.model.network import check_given  # with the network, it is there already

    address, subnet = interface.ip, check_given(segment.network, interface)
    if address in segment.reserved:
        raise Taken(f"{address} is this host's own, or its router's", "choose another, or --ip auto")
    if address not in segment.pool(subnet):
        raise Usage(
            f"{address} is an address of {subnet.subnet} that no guest may have", "choose another, or --ip auto"
        )
    return ipaddress.ip_interface((address, subnet.subnet.prefixlen))


def predict(context: Context, nic: Nic, segment: Segment, planned: Iterable[Nic]) -> Nic:
    """The NIC with the addresses that it would get now; nothing is claimed. Raises Taken where a pool is exhausted."""
    if context.reading_store is None:
        return nic
    avoid = {address for other in planned for address in other.addressing.addresses}
    with context.reading_store.looking([one.name for one in context.coming]) as leases:
        return _assigned(leases, nic, segment, avoid)[0]


def claim(
    leases: Leases,
    owner: str,
    machine: str,
    nics: Sequence[Nic],
    segments: Mapping[str, Segment],
) -> tuple[Nic, ...]:
    """Claims NICs for a machine in an open transaction; those whose addresses their network gives out get them now.

    Raises Taken for what another holds, and where a pool is exhausted.
    """
    claimed = []
    for nic in nics:
        settled = _settled(leases, nic, segments[nic.network]) if nic.addressing.auto else nic
        leases.claim(owner, machine, [claim_of(settled)])
        claimed.append(settled)
    return tuple(claimed)


def claim_others(
    leases: Leases, owner: str, machine: str, nic: Nic, segment: Segment, lost: Collection[Address]
) -> Nic:
    """Claims what the network gives out next in the place of addresses that a claimed NIC cannot have; it keeps the
    others. Raises Taken where a pool is exhausted."""
    leases.give_back(nic.mac)
    kept = tuple(interface for interface in nic.addressing.static if interface.ip not in lost)
    try:
        settled = _settled(leases, nic, segment, kept, lost)
    except Taken as error:
        # Else the count of those that are free would be a riddle.
        theirs = sorted(lost, key=lambda address: (address.version, int(address)))
        shown = ", ".join(map(str, theirs[:8])) + (f" and {len(theirs) - 8} more" if len(theirs) > 8 else "")
        raise Taken(f"{error.message}; others on the LAN have {shown}", error.hint) from error
    leases.claim(owner, machine, [claim_of(settled)])
    return settled


def _settled(
    leases: Leases, nic: Nic, segment: Segment, kept: tuple[Interface, ...] = (), avoid: Collection[Address] = ()
) -> Nic:
    settled, picks = _assigned(leases, nic, segment, avoid, kept)
    for subnet, picked in picks:
        leases.advance(nic.network, subnet, picked)
    return settled


def _assigned(
    leases: Leases, nic: Nic, segment: Segment, avoid: Collection[Address], kept: tuple[Interface, ...] = ()
) -> tuple[Nic, list[tuple[str, Pick]]]:
    """One address of each family, from the first subnet with room, beside those that are kept."""
    network, static = segment.network, list(kept)
    picks: list[tuple[str, Pick]] = []
    for version in {4, 6} - {interface.version for interface in kept}:
        subnets = [one for one in network.subnets if one.subnet.version == version]
        for one in subnets:
            text = str(one.subnet)
            picked = leases.pick(network.name, nic.parent, text, segment.pool(one), {*avoid, *segment.promised})
            if picked:
                static.append(ipaddress.ip_interface((picked.address, one.subnet.prefixlen)))
                picks.append((text, picked))
                break
        else:
            if subnets:
                raise _exhausted(leases, segment, subnets)
    in_order = tuple(sorted(static, key=lambda interface: interface.version))
    told = _complete(segment, nic.addressing._replace(static=in_order, gateways=(), dns=()))
    # What the user said beside `auto` stands; another subnet than was foreseen has another gateway.
    known = {one.gateway for one in network.subnets} | set(segment.gateways)
    said = tuple(gateway for gateway in nic.addressing.gateways if gateway not in known)
    told = told._replace(gateways=said or told.gateways, dns=nic.addressing.dns or told.dns)
    return nic._replace(addressing=told), picks


def _exhausted(leases: Leases, segment: Segment, subnets: Sequence[Subnet]) -> Taken:
    name = segment.network.name
    sizes = {one.given_out: segment.pool(one).size for one in subnets}
    pools = " and ".join(f"{size} address{'' if size == 1 else 'es'} in {where}" for where, size in sizes.items())
    found = {holder for one in subnets for holder in leases.holders(name, str(one.subnet), limit=9)}
    parent = segment.network.parent
    holders = sorted(found | {holder for one in subnets for holder in leases.holders_beside(parent, segment.pool(one))})
    shown = ", ".join(holders[:8]) + (" and others" if len(holders) > 8 else "")
    said = f", held by {shown}" if holders else ""
    return Taken(
        f"the pool of the network {name} is exhausted: {pools}{said}",
        f"{'delete one of them, or ' if holders else ''}make a network with more room; see macvm network show {name}",
    )


def claim_of(nic: Nic) -> NicClaim:
    """All that the store is to hold for a NIC: its MAC, and a lease for each static address."""
    addresses = nic.addressing.addresses if nic.direct else ()
    held = tuple(LeaseClaim(nic.parent, str(address), shims.is_served(nic)) for address in addresses)
    return NicClaim(nic.mac, held, nic.to_json(), nic.network)
