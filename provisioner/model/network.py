"""A network: a named LAN segment with the addresses that macvm may give out there."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import check_name, printable
from provisioner.model.nic import Address, Interface, check_usable, parse_address

AnyNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


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
        """What an address is kept for: the name given to it, or `gateway`."""
        if any(one.gateway == address for one in self.subnets):
            return "gateway"
        return next((name for name, kept in self.reserved if kept == address), None)

    def never_given(self) -> set[Address]:
        """Gateways and reserved addresses."""
        return {one.gateway for one in self.subnets if one.gateway} | {address for _, address in self.reserved}

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
    try:
        found = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        hint = "ADDRESS/LENGTH, such as 192.0.2.0/24 or 2001:db8::/64"
        raise Usage(f"{printable(text)} is no subnet", hint) from None
    if "/" not in text:
        raise Usage(
            f"{printable(text)} has no length", f"say it: {found.network_address}/{24 if found.version == 4 else 64}"
        )
    if ipaddress.ip_interface(text.strip()).ip != found.network_address:
        raise Usage(f"{text.strip()} is an address in a subnet, not a subnet", f"did you mean {found}?")
    if found.is_multicast or found.is_loopback or found.is_link_local or found.network_address.is_unspecified:
        raise Usage(f"no guest can live in {found}", "a unicast subnet, such as 192.0.2.0/24 or 2001:db8::/64")
    return found


def parse_range(text: str) -> Range:
    """`192.0.2.64/27`, or `192.0.2.64-192.0.2.80`. Raises Usage."""
    first, sign, last = text.partition("-")
    if sign:
        ends = parse_address(first, "address"), parse_address(last, "address")
        if ends[0].version != ends[1].version or int(ends[0]) > int(ends[1]):
            raise Usage(f"{printable(text)} is no range: it ends before it begins", "FIRST-LAST, or ADDRESS/LENGTH")
        return Range(*ends)
    found = parse_subnet(text)
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
    for gateway in gateways:
        at = _place(made, gateway, f"gateway {gateway}")
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


def _place(subnets: Sequence[Subnet], address: Address, what: str) -> int:
    for number, one in enumerate(subnets):
        # RFC 4861: an IPv6 router announces itself by its link-local address, which lies in no subnet of ours.
        routes_here = address.is_link_local and one.subnet.version == address.version == 6 and not one.gateway
        if _inside(address, one.subnet) or routes_here:
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


def overlap(mine: Range, other: Range) -> Range | None:
    """The addresses that two ranges share."""
    if mine.first.version != other.first.version:
        return None
    first, last = max(int(mine.first), int(other.first)), min(int(mine.last), int(other.last))
    if first > last:
        return None
    kind = type(mine.first)
    return Range(kind(first), kind(last))
