"""What the host wants on a shim: a pure function of the parent's addresses and the guests behind it.

Each measure answers something that was seen to go wrong with a plain macvlan and a route (tests/sandbox/test_shims.py):
the source of each route is pinned to the parent's address, or the kernel may pick another NIC's; the neighbour entry is
permanent, or the host would ask for the guest by broadcast with the shim's MAC, a LAN peer would learn that, and a host
with strict rp_filter would drop the peer from then on; IPv6 needs a proxy entry for the host's address, since neighbour
discovery answers only on the link that has the address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.model.names import Mac, printable
from provisioner.model.nic import Address, Interface, parse_address

#: What the owner of a shim's own leases begins with; its parent follows. A machine's UUID has no slash.
OWNER_PREFIX = "shim/"

#: The shortest prefix of a block that is asked for address by address.
_LARGEST_BLOCK = 22


#: Guests by address, each with the MAC that it is at. Addresses are packed, and so are MACs, as the kernel has them:
#: a thousand guests as objects of `ipaddress` cost more time than the kernel takes to make their routes.
Guests = dict[bytes, bytes]


class Guest(NamedTuple):
    """Whom the host is to reach through a shim: an address, and the MAC that it is at."""

    address: Address
    mac: str


def unpacked(guests: Guests) -> list[Guest]:
    return [Guest(ipaddress.ip_address(address), mac.hex(":")) for address, mac in guests.items()]


class ShimSet(NamedTuple):
    """All that macvm keeps on one shim, packed. `routes` are guests' addresses, each with the source that the host
    speaks from; `neighbours` have their MACs; `proxies` are addresses of the host's that it answers for there; `own`
    are those that the shim itself has, in subnets in which the parent has none: /32 or /128, for a subnet on the shim
    would take the guests' routes (seen)."""

    routes: dict[bytes, bytes] = {}  # noqa: RUF012  # never changed
    neighbours: Guests = {}  # noqa: RUF012
    proxies: frozenset[bytes] = frozenset()
    own: frozenset[bytes] = frozenset()

    def __sub__(self, other: ShimSet) -> ShimSet:
        if self == other:
            return ShimSet()
        return ShimSet(
            dict(self.routes.items() - other.routes.items()),
            dict(self.neighbours.items() - other.neighbours.items()),
            self.proxies - other.proxies,
            self.own - other.own,
        )

    def __bool__(self) -> bool:
        return any(self)


class To(NamedTuple):
    """Whom the user wants served: an address, at a MAC where he said it, or all in a block that answer."""

    address: Address | None = None
    mac: str = ""
    block: ipaddress.IPv4Network | None = None


def parse_to(text: str) -> To:
    """`ADDRESS`, `ADDRESS,MAC` or an IPv4 block of at most 1024 addresses. Raises Usage."""
    word, sign, mac = text.partition(",")
    word = word.strip().removesuffix("/32" if ":" not in word else "/128")
    if "/" not in word:
        return To(parse_address(word), Mac.parse(mac) if sign else "")
    if sign:
        raise Usage(f"{printable(text)}: many addresses have no one MAC", "ADDRESS,MAC, or a block alone")
    try:
        block = ipaddress.ip_network(word.strip(), strict=False)
    except ValueError:
        raise Usage(f"{printable(text)} is no block of addresses", "such as 192.0.2.32/27") from None
    if not isinstance(block, ipaddress.IPv4Network) or block.prefixlen < _LARGEST_BLOCK:
        raise Usage(
            f"{block} is too large to ask for one address after the other",
            f"an IPv4 block of /{_LARGEST_BLOCK} or smaller, or single addresses",
        )
    return To(block=block)


def source_for(address: Address, own: Iterable[Interface]) -> Address | None:
    """The host's own address in a guest's subnet: its first there."""
    return next((mine.ip for mine in own if mine.version == address.version and address in mine.network), None)


def wanted(own: Sequence[Interface], guests: Guests, given: Sequence[Interface] = ()) -> ShimSet:
    """What is to be there for guests, from the parent's `own` addresses, and where it has none in a guest's subnet from
    those `given` to the shim. A guest in neither's subnets gets nothing, for the host has none to speak from."""
    routes, proxies, used = dict[bytes, bytes](), set[bytes](), set[bytes]()
    for mine in own:
        if found := _routed(mine, guests, routes):
            routes |= found
            if mine.version == 6:
                proxies.add(mine.ip.packed)
    for mine in given:
        if found := _routed(mine, guests, routes):
            routes |= found
            used.add(mine.ip.packed)
    neighbours = guests if len(routes) == len(guests) else {one: mac for one, mac in guests.items() if one in routes}
    return ShimSet(routes, neighbours, frozenset(proxies), frozenset(used))


def _routed(mine: Interface, guests: Guests, routed: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Guests in the subnet of one of the host's addresses, which have no route yet, with that address as source."""
    first, last, size = mine.network[0].packed, mine.network[-1].packed, mine.max_prefixlen // 8
    inside = [one for one in guests if first <= one <= last and len(one) == size]
    return dict.fromkeys((one for one in inside if one not in routed) if routed else inside, mine.ip.packed)


def unreachable(own: Sequence[Interface], guests: Guests) -> list[Guest]:
    """Those that none of these addresses of the host's is in a subnet with."""
    reached = wanted(own, guests).routes
    return (
        unpacked({one: mac for one, mac in guests.items() if one not in reached}) if len(reached) < len(guests) else []
    )
