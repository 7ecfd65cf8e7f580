"""A network: a named LAN segment with the addresses that macvm may give out there."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from provisioner.errors import Taken, Usage
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import check_name, printable
from provisioner.model.nic import Address, Interface, check_usable, parse_address

AnyNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What is no unicast address of a LAN's: this network, loopback, link-local, multicast, the limited broadcast address
#: (RFC 6890); unspecified, loopback, IPv4-mapped, link-local and multicast (RFC
#: 4291).
_UNFIT = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
)


class Range(NamedTuple):
    """The addresses from `first` to `last`, both of them included."""

    first: Address
    last: Address

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address):
            return False
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        blocks = list(ipaddress.summarize_address_range(self.first, self.last))
        return str(blocks[0]) if len(blocks) == 1 else f"{self.first}-{self.last}"


class Subnet(NamedTuple):
    """One subnet of a network. `range` None: all of it."""

    subnet: AnyNetwork
    gateway: Address | None = None
    range: Range | None = None

    @property
    def given_out(self) -> Range:
        """What addresses are taken from, with those in it that nobody may have."""
        return self.range or Range(self.subnet[0], self.subnet[-1])


class Network(NamedTuple):
    """`parent` is the host link that NICs sit on. `reserved` are names and addresses that are kept free; `mtu` in
    bytes, None for the parent's own; `shim` False leaves the host's side alone."""

    name: str
    parent: str
    mode: MacvtapMode = MacvtapMode.BRIDGE
    subnets: tuple[Subnet, ...] = ()
    reserved: tuple[tuple[str, Address], ...] = ()
    dns: tuple[Address, ...] = ()
    mtu: int | None = None
    shim: bool = True

    def subnet_of(self, address: Address) -> Subnet | None:
        return next((one for one in self.subnets if _inside(address, one.subnet)), None)

    def reserved_name(self, address: Address) -> str | None:
        """What an address is kept for: the name given to it, or what it is to the guests."""
        if any(one.gateway == address for one in self.subnets):
            return "the gateway"
        if address in self.dns:
            return "a name server"
        return next((name for name, kept in self.reserved if kept == address), None)

    def never_given(self) -> frozenset[Address]:
        """Gateways, name servers and reserved addresses."""
        gateways = (one.gateway for one in self.subnets if one.gateway)
        return frozenset((*gateways, *self.dns, *(address for _, address in self.reserved)))

    def to_json(self) -> str:
        """For the store: what `from_json` makes a network of again."""
        facts = {
            "name": self.name,
            "parent": self.parent,
            "mode": self.mode.value,
            "subnets": [
                {
                    "subnet": str(one.subnet),
                    "gateway": str(one.gateway) if one.gateway else None,
                    "range": [str(end) for end in one.range] if one.range else None,
                }
                for one in self.subnets
            ],
            "reserved": [[name, str(address)] for name, address in self.reserved],
            "dns": [str(server) for server in self.dns],
            "mtu": self.mtu,
            "shim": self.shim,
        }
        return json.dumps(facts)

    @classmethod
    def from_json(cls, text: str) -> Network:
        facts = json.loads(text)
        subnets = tuple(
            Subnet(
                ipaddress.ip_network(one["subnet"]),
                ipaddress.ip_address(one["gateway"]) if one["gateway"] else None,
                Range(*map(ipaddress.ip_address, one["range"])) if one["range"] else None,
            )
            for one in facts["subnets"]
        )
        return cls(
            name=facts["name"],
            parent=facts["parent"],
            mode=MacvtapMode(facts["mode"]),
            subnets=subnets,
            reserved=tuple((name, ipaddress.ip_address(address)) for name, address in facts["reserved"]),
            dns=tuple(map(ipaddress.ip_address, facts["dns"])),
            mtu=facts["mtu"],
            shim=facts["shim"],
        )


def _inside(address: Address, subnet: AnyNetwork) -> bool:
    return address.version == subnet.version and address in subnet


def parse_subnet(text: str) -> AnyNetwork:
    """Raises Usage, also for an address inside a subnet, and for subnets that no guest lives in."""
    text = text.strip()
    address, slash, _ = text.partition("/")
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        hint = "ADDRESS/LENGTH, such as 192.0.2.0/24 or 2001:db8::/64"
        raise Usage(f"{printable(text)} is no subnet", hint) from None
    first = parse_address(address, "subnet")  # a zone, which ipaddress takes, is none of a subnet's
    if not slash:
        likely = ipaddress.ip_network((first, 24 if first.version == 4 else 64), strict=False)
        raise Usage(f"{text} has no length", f"say it: {likely}")
    if first != found.network_address:
        raise Usage(f"{text} is an address in a subnet, not a subnet", f"did you mean {found}?")
    for unfit in map(ipaddress.ip_network, _UNFIT):
        if found.overlaps(unfit):
            said = f"no guest can live in {found}" if found == unfit else f"no guest can live in {found}: {unfit}"
            raise Usage(said, "a unicast subnet, such as 192.0.2.0/24 or 2001:db8::/64")
    return found


def parse_range(text: str) -> Range:
    """`192.0.2.64/27`, or `192.0.2.64-192.0.2.80`. Raises Usage."""
    hint = "FIRST-LAST, or ADDRESS/LENGTH, such as 192.0.2.64/27"
    first, sign, last = text.strip().partition("-")
    if sign:
        start, end = parse_address(first), parse_address(last)
        if start.version != end.version:
            raise Usage(f"{start}-{end} is no range: its ends are of two families", hint)
        if int(start) > int(end):
            raise Usage(f"{start}-{end} is no range: it ends before it begins", hint)
        return Range(start, end)
    if "/" not in first:
        raise Usage(f"{printable(first)} is no range", hint)
    found = parse_subnet(first)
    return Range(found[0], found[-1])


def parse_reserved(text: str) -> tuple[str, Address]:
    """`router=192.0.2.5`. Raises Usage."""
    name, sign, address = text.partition("=")
    if not sign:
        raise Usage(f"{printable(text)} is no name and address", "NAME=ADDRESS, such as printer=192.0.2.9")
    return check_name(name.strip(), "the name of an address"), parse_address(address)


def assemble_subnets(
    subnets: Sequence[AnyNetwork], gateways: Iterable[Address], ranges: Iterable[Range]
) -> tuple[Subnet, ...]:
    """Subnets, each with the gateway and the range that lie in it. Raises Usage for one that lies in none, or two in
    one."""
    for number, one in enumerate(subnets):
        for other in subnets[:number]:
            if one.overlaps(other):
                raise Usage(f"the subnets {other} and {one} overlap", "give each address space once")
    made = [Subnet(subnet) for subnet in subnets]
    # A gateway inside a subnet leaves the others to the link-local ones, which lie in none.
    for gateway in sorted(gateways, key=lambda gateway: gateway.is_link_local):
        at = _routed_by(made, gateway)
        if made[at].gateway:
            raise Usage(f"{made[at].subnet} has two gateways, {made[at].gateway} and {gateway}", "give it one")
        if not gateway.is_link_local:
            check_usable(_interface(gateway, made[at].subnet))
        made[at] = made[at]._replace(gateway=gateway)
    for range_ in ranges:
        at = _place(made, range_.first, f"range {range_}")
        if not _inside(range_.last, made[at].subnet):
            raise Usage(f"range {range_} reaches beyond {made[at].subnet}", "choose a range inside the subnet")
        if made[at].range:
            raise Usage(f"{made[at].subnet} has two ranges, {made[at].range} and {range_}", "give it one")
        made[at] = made[at]._replace(range=range_)
    return tuple(made)


def _interface(address: Address, subnet: AnyNetwork) -> Interface:
    return ipaddress.ip_interface((address, subnet.prefixlen))


def _routed_by(subnets: Sequence[Subnet], gateway: Address) -> int:
    # RFC 4861: an IPv6 router announces itself by its link-local address, which lies in no subnet of ours.
    if gateway.version == 6 and gateway.is_link_local:
        ours = [number for number, one in enumerate(subnets) if one.subnet.version == 6]
        if ours:
            return next((number for number in ours if not subnets[number].gateway), ours[-1])
    return _place(subnets, gateway, f"gateway {gateway}")


def _place(subnets: Sequence[Subnet], address: Address, what: str) -> int:
    for number, one in enumerate(subnets):
        if _inside(address, one.subnet):
            return number
    all_of_them = ", ".join(str(one.subnet) for one in subnets) or "none"
    raise Usage(f"{what} lies in no subnet of the network ({all_of_them})", "check it, or add the --subnet")


def check_reserved(subnets: Sequence[Subnet], reserved: Sequence[tuple[str, Address]]) -> None:
    """Raises Usage for a name or address given twice, or an address in no subnet."""
    names: dict[str, Address] = {}
    for name, address in reserved:
        _place(subnets, address, f"{name}={address}")
        if name in names:
            raise Usage(f"the name {name} is given to {names[name]} and {address}", "give each address its own name")
        if address in names.values():
            raise Usage(f"{address} is reserved twice", "reserve it once")
        names[name] = address


def check_decided(network: Network, parent: str, mode: MacvtapMode | None) -> None:
    """Raises Usage where a NIC says, beside its network, a parent or mode that is not the network's."""
    for what, said, has in (("--parent", parent, network.parent), ("--mode", mode, network.mode)):
        if said and said != has:
            shown = has.value if isinstance(has, MacvtapMode) else has
            hint = f"leave {what} out, or make a network for it: macvm network create"
            raise Usage(f"{what} is decided by the network {network.name}: {shown}", hint)


def check_given(network: Network, interface: Interface) -> Subnet:
    """The subnet of an address that is to be static on a network: in its range, and kept for nobody. One without a
    length is a /32 or /128. Raises Usage, Taken."""
    address = interface.ip
    subnet = network.subnet_of(address)
    if subnet is None:
        there = ", ".join(str(one.subnet) for one in network.subnets)
        raise Usage(f"{address} is in no subnet of the network {network.name} ({there})", "choose another with --ip")
    given = interface.network.prefixlen
    if given not in (interface.max_prefixlen, subnet.subnet.prefixlen):
        raise Usage(
            f"{interface} does not fit {subnet.subnet} of {network.name}", f"leave the length out: --ip {address}"
        )
    kept = network.reserved_name(address)
    if kept:
        raise Taken(f"{address} is kept for {kept} in the network {network.name}", "choose another, or --ip auto")
    if address not in subnet.given_out:
        raise Usage(
            f"{address} is outside the range {subnet.given_out} of the network {network.name}", "choose one inside it"
        )
    return subnet


def overlap(mine: Range, other: Range) -> Range | None:
    """The addresses that two ranges share."""
    if mine.first.version != other.first.version:
        return None
    first, last = max(int(mine.first), int(other.first)), min(int(mine.last), int(other.last))
    if first > last:
        return None
    kind = type(mine.first)
    return Range(kind(first), kind(last))


def check_disjoint(network: Network, others: Iterable[Network]) -> None:
    """Raises Taken where another network on the same parent gives out addresses of this one's, with those of both."""
    for other in others:
        if other.parent != network.parent:
            continue
        for mine in network.subnets:
            for theirs in other.subnets:
                both = overlap(mine.given_out, theirs.given_out)
                if both:
                    # A lab's file need not name the parent.
                    where = f", on {network.parent} too" if network.parent else ""
                    raise Taken(
                        f"{mine.subnet} overlaps {theirs.subnet} of the network {other.name}{where}: "
                        f"both would give out {both}",
                        "give each of them its own --ip-range",
                    )
