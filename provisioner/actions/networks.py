"""Networks: made, shown, brought up again after a reboot, and deleted."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from provisioner.actions import probing, vlans
from provisioner.actions.addresses import get_network, segment_of
from provisioner.actions.parents import Links, check_parent, choose_parent
from provisioner.actions.wiring import Findings
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, Usage
from provisioner.host import netlink, wire
from provisioner.host.leases import Lease
from provisioner.host.netlink import Link
from provisioner.host.networks import Conflict, in_use, network_exists
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import check_name, shim_mac
from provisioner.model.network import (
    AnyNetwork,
    Network,
    Range,
    Subnet,
    assemble_subnets,
    check_disjoint,
    check_reserved,
    overlap,
)
from provisioner.model.nic import Address, check_mtu
from provisioner.model.shim import OWNER_PREFIX
from provisioner.model.vlan import vlan_parent

#: Addresses in the range that is proposed for a subnet that the LAN's DHCP server shares.
_PROPOSED_BITS = 5


class NetworkRequest(NamedTuple):
    """What `network create` is asked for; `parent` empty for the default route's link."""

    name: str
    parent: str = ""
    mode: MacvtapMode = MacvtapMode.BRIDGE
    subnets: tuple[AnyNetwork, ...] = ()
    gateways: tuple[Address, ...] = ()
    ranges: tuple[Range, ...] = ()
    reserved: tuple[tuple[str, Address], ...] = ()
    dns: tuple[Address, ...] = ()
    mtu: int | None = None
    shim: bool = True


class SubnetView(NamedTuple):
    """`size` counts the addresses that may be given out, `used` those that are held, in the range or beside it."""

    subnet: str
    gateway: str | None
    range: str | None
    size: int
    used: int
    free: int


class LeaseView(NamedTuple):
    address: str
    owner: str
    mac: str
    since: str


class NetworkView(NamedTuple):
    """`macs_on_parent` counts the MACs that the switch may learn behind the parent, its own among them; None where the
    parent is not there."""

    name: str
    parent: str
    mode: str
    subnets: tuple[SubnetView, ...]
    reserved: dict[str, str]
    dns: tuple[str, ...]
    mtu: int | None
    shim: bool
    macs_on_parent: int | None
    leases: tuple[LeaseView, ...]
    conflicts: tuple[Conflict, ...]


def create(context: Context, request: NetworkRequest) -> NetworkView:
    """Raises Problems with everything that stands in the way; Taken, Unable from the kernel, and nothing is left."""
    context.require_local_root("making a network")
    network = plan(context, request)
    with context.lock(vlans.lock_name(network.parent)):
        context.store.networks.add(network)
        try:
            vlans.ensure(context, network.parent)
        except BaseException:
            context.store.networks.remove(network.name)
            raise
    return show(context, network.name)


def plan(context: Context, request: NetworkRequest, *, anew: bool = True) -> Network:
    """Changes nothing. `anew` False for one that is there, and is to be so. Raises Problems."""
    findings, links = Findings(), Links.read()
    network = Network(request.name, request.parent, request.mode, (), request.reserved, request.dns, request.mtu)
    network = network._replace(shim=request.shim)
    others = [other for other in _all(context) if anew or other.name != request.name]
    with findings.checking():
        check_name(request.name, "a network's name")
        if any(other.name == request.name for other in others):
            raise network_exists(request.name)
    with findings.checking():
        network = network._replace(parent=_choose_parent(context, request, links))
        with findings.checking():
            network = network._replace(subnets=_choose_subnets(context, request, links, network.parent, others))
            check_reserved(network.subnets, request.reserved)
            check_disjoint(network, others)
            _check_room(network)
            for subnet in network.subnets:
                check_mtu(request.mtu, subnet.subnet)
    findings.finish()
    return network


def _all(context: Context) -> list[Network]:
    store = context.reading_store
    return store.networks.all() if store else []


def _choose_parent(context: Context, request: NetworkRequest, links: Links) -> str:
    """The name of the link that NICs will sit on, which for a VLAN may have to be made. What a NIC may take from the
    host by passthrough is asked when it comes."""
    name = choose_parent(links, request.parent or context.settings.parent, request.mode)
    vlan = vlan_parent(name) if links.find(name) is None else None
    if vlan is None or links.find(vlan.link):
        return check_parent(links, vlan.link if vlan else name, request.mode, request.mtu, take=True).name
    vlans.check(links, vlan)
    check_parent(links, vlan.base, MacvtapMode.BRIDGE, request.mtu, take=True)
    return vlan.link


def _choose_subnets(
    context: Context, request: NetworkRequest, links: Links, parent: str, others: Sequence[Network]
) -> tuple[Subnet, ...]:
    if request.subnets:
        return assemble_subnets(request.subnets, request.gateways, request.ranges)
    link = links.find(parent)
    own = [interface.network for interface in netlink.addresses(link.index)] if link else []
    if link is None or not own:
        raise Usage(f"{parent} has no address to tell a subnet by", "say --subnet, such as --subnet 192.0.2.0/24")
    if not request.ranges:
        raise _range_needed(context, link, own, others)
    # Those of the parent's subnets that a range is given in; without one none of its addresses are macvm's to give.
    chosen = [
        subnet for subnet in own if any(range_.first in Range(subnet[0], subnet[-1]) for range_ in request.ranges)
    ]
    return assemble_subnets(chosen or own, request.gateways, request.ranges)


def _range_needed(context: Context, link: Link, own: Sequence[AnyNetwork], others: Sequence[Network]) -> Usage:
    subnet = next((one for one in own if one.version == 4), own[0])
    proposed = _propose(context, link, subnet, others) if isinstance(subnet, ipaddress.IPv4Network) else None
    said = f"{subnet} is {link.name}'s own subnet, which the LAN's DHCP server shares: which range of it is macvm's?"
    if proposed:
        return Usage(said, f"--ip-range {proposed}: nobody answered there; see that the DHCP server leaves it alone")
    return Usage(said, "say --ip-range, and see that the DHCP server leaves it alone")


def _propose(
    context: Context, link: Link, subnet: ipaddress.IPv4Network, others: Sequence[Network]
) -> ipaddress.IPv4Network | None:
    """The highest block of a subnet, or of its last 1024 addresses, in which nobody answers, and no machine that is off
    has its address."""
    room = subnet if subnet.prefixlen >= 22 else ipaddress.ip_network((int(subnet[-1]) - 1023, 22))
    bits = min(_PROPOSED_BITS, 32 - subnet.prefixlen - 2)
    if bits < 1 or not link.up:
        return None
    try:
        with probing.vantage(link) as device:
            taken = set(wire.sweep(device, ipaddress.IPv4Network(room)))
    except MacvmError:
        return None
    segment = segment_of(Network("", link.name))
    taken |= segment.reserved
    store = context.reading_store
    taken |= {ipaddress.ip_address(lease.address) for lease in store.leases(parent=link.name)} if store else set()
    given = [one.given_out for other in others if other.parent == link.name for one in other.subnets]
    blocks = list(ipaddress.IPv4Network(room).subnets(new_prefix=32 - bits))
    for block in reversed(blocks):
        mine = Range(block[0], block[-1])
        if not any(address in mine for address in taken) and not any(overlap(mine, range_) for range_ in given):
            return block
    return None


def _check_room(network: Network) -> None:
    segment = segment_of(network)
    for subnet in network.subnets:
        if segment.pool(subnet).size == 0:
            raise Usage(f"{subnet.given_out} has no address left for a guest", "choose a larger --ip-range or --subnet")


def making_lines(network: Network) -> list[str]:
    """The `ip` lines that make what a network needs on the host."""
    return vlans.making_lines(network.parent)


def removing_lines(context: Context, network: Network) -> list[str]:
    """The `ip` lines that amount to deleting a network."""
    others = [other for other in _all(context) if other.name != network.name and other.parent == network.parent]
    return [] if others else vlans.removing_lines(context, network.parent)


def list_all(context: Context) -> list[NetworkView]:
    """Raises Unable for another host's: the store and the links here say nothing of it."""
    context.require_local("looking at networks")
    links = Links.read()
    return [_view(context, network, links) for network in _all(context)]


def show(context: Context, name: str) -> NetworkView:
    """Raises NotFound; Unable as `list_all`."""
    context.require_local("looking at networks")
    return _view(context, get_network(context, name), Links.read())


def _view(context: Context, network: Network, links: Links) -> NetworkView:
    store = context.reading_store
    assert store is not None  # it has the network
    used, segment = store.networks.used(network.name), segment_of(network)
    bare = [(ipaddress.ip_address(lease.address), lease) for lease in store.leases(parent=network.parent, bare=True)]
    subnets, leases = [], store.leases(network=network.name)
    for one in network.subnets:
        pool = segment.pool(one)
        # Held without a network, and so not to be given out.
        beside = [lease for address, lease in bare if address in pool]
        leases += beside
        size, held = pool.size, used.get(str(one.subnet), 0) + len(beside)
        gateway, range_ = str(one.gateway) if one.gateway else None, str(one.range) if one.range else None
        subnets.append(SubnetView(str(one.subnet), gateway, range_, size, held, max(0, size - held)))
    parent = links.find(network.parent)
    # Those of endpoints are on links in other namespaces.
    macs = (
        {parent.mac, *(link.mac for link in links.on(parent)), *netlink.macs_behind(parent.index)} if parent else set()
    )
    return NetworkView(
        name=network.name,
        parent=network.parent,
        mode=network.mode.value,
        subnets=tuple(subnets),
        reserved={name: str(address) for name, address in network.reserved},
        dns=tuple(map(str, network.dns)),
        mtu=network.mtu,
        shim=network.shim,
        macs_on_parent=len(macs) if parent else None,
        leases=tuple(LeaseView(lease.address, lease.machine, _mac(lease, parent), lease.since) for lease in leases),
        conflicts=tuple(store.networks.conflicts(network.name)),
    )


def _mac(lease: Lease, parent: Link | None) -> str:
    """An endpoint that shares its parent's MAC is known to the store by its kind and name, a shim by its networks."""
    if lease.owner.startswith(OWNER_PREFIX) and parent:
        return shim_mac(parent.mac)
    shared = lease.mac.startswith(("ipvlan:", "passthrough:"))
    return parent.mac if shared and parent else lease.mac


def delete(context: Context, names: Iterable[str]) -> list[str]:
    """Each with the VLAN link, where macvm made it and no other network is on it; nothing before all are known to be
    free. Returns their names. Raises NotFound; Taken while NICs are on one, naming their holders."""
    context.require_local_root("deleting a network")
    doomed = [check_delete(context, name) for name in dict.fromkeys(names)]
    for network in doomed:
        with context.lock(vlans.lock_name(network.parent)):
            context.store.networks.remove(network.name)
            if not any(other.parent == network.parent for other in context.store.networks.all()):
                vlans.release(context, network.parent)
    return [network.name for network in doomed]


def check_delete(context: Context, name: str) -> Network:
    """A network that nothing is on. Changes nothing. Raises as `delete` does."""
    network = get_network(context, name)
    store = context.reading_store
    holders = store.networks.holders(name) if store else []
    if holders:
        raise in_use(name, holders)
    return network


def up(context: Context) -> list[str]:
    """Makes the VLAN links again that are missing; any number of times. Returns the names of those made.

    Goes on past an error. Raises Problems.
    """
    context.require_local_root("bringing networks up")
    findings, made = Findings(), []
    for parent, names in _by_parent(context.store.networks.all()).items():
        with findings.checking(), context.lock(vlans.lock_name(parent)):
            try:
                if vlans.ensure(context, parent):
                    made.append(parent)
            except NotFound as error:
                raise NotFound(f"{error.message}, for {names}", error.hint) from error
    findings.finish()
    return made


def _by_parent(networks: Iterable[Network]) -> dict[str, str]:
    """Each parent, and which networks are on it in words."""
    found: dict[str, list[str]] = {}
    for network in networks:
        found.setdefault(network.parent, []).append(network.name)
    return {parent: f"the network{'s' * (len(names) > 1)} {', '.join(names)}" for parent, names in found.items()}


def up_lines(context: Context) -> list[str]:
    """The `ip` lines that amount to `up`, and what it would complain of."""
    lines, links = list[str](), Links.read()
    for parent, names in _by_parent(_all(context)).items():
        making = vlans.making_lines(parent)
        if not making and links.find(parent) is None:
            making = [f"# there is no link {parent} on this host, for {names}; macvm makes VLAN links alone"]
        lines += making
    return lines
