"""Picks an address, given a pool and what is taken. The store claims it (`host.leases`)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import lru_cache
from typing import NamedTuple

from provisioner.model.network import Subnet
from provisioner.model.nic import Address

#: A pool of up to so many addresses is gone through once more before it is said to be exhausted: an address that was
#: passed over, as the host's own say, may have become free since.
_SEARCHABLE = 1 << 16


class Pool(NamedTuple):
    """The addresses from `first` to `last`, both included, but for `never`, which lie between them."""

    first: Address
    last: Address
    never: frozenset[Address]

    @property
    def size(self) -> int:
        """How many addresses may be given out."""
        return max(0, int(self.last) - int(self.first) + 1 - len(self.never))

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, type(self.first)) or address in self.never:
            return False
        return int(self.first) <= int(address) <= int(self.last)


@lru_cache(maxsize=64)  # a lab asks for its networks' once for each NIC
def pool_of(subnet: Subnet, reserved: frozenset[Address] = frozenset()) -> Pool:
    """What a subnet has to give out: its range, but for the subnet's own network and broadcast address, its gateway and
    what is reserved.

    All of a /31, /32 (RFC 3021) and of a /127, /128 (RFC 6164) may be used; in a larger IPv6 subnet the first address
    is every router's (RFC 4291, 2.6.1), and the last is like any other.
    """
    range_, whole = subnet.given_out, subnet.subnet
    never = {address for address in (*reserved, subnet.gateway) if address is not None and address in range_}
    if whole.prefixlen < whole.max_prefixlen - 1:
        never |= {whole[0]} & {range_.first}
        if whole.version == 4:
            never |= {whole[-1]} & {range_.last}
    return Pool(range_.first, range_.last, frozenset(never))


class Pick(NamedTuple):
    """An address, and where to begin the next time: the address after the last fresh one, None when all have been."""

    address: Address
    next: Address | None


def pick(
    pool: Pool,
    start: Address | None,
    is_held: Callable[[Address], bool],
    released: Iterable[Address],
    all_held: Callable[[], Container[int]],
) -> Pick | None:
    """The next address after the last one given, while there are such as nobody has had; then those that were given
    back, longest ago first. None: the pool is exhausted.

    `start` is an earlier pick's `next`; `is_held` also tells of those that were given back and wait for their turn;
    `all_held` are the held ones as numbers, asked for only before a pool is said to be exhausted.
    """
    fresh = _next_free(pool, start, is_held)
    if fresh is not None:
        return Pick(fresh, _after(fresh, pool))
    for address in released:
        if address in pool:
            return Pick(address, None)
    if int(pool.last) - int(pool.first) < _SEARCHABLE:
        return _passed_over(pool, all_held())
    return None


def _after(address: Address, pool: Pool) -> Address | None:
    return address + 1 if address < pool.last else None  # type: ignore[operator]


def _next_free(pool: Pool, start: Address | None, is_held: Callable[[Address], bool]) -> Address | None:
    number = None if start is None else max(int(start), int(pool.first))
    kind = type(pool.first)
    while number is not None and number <= int(pool.last):
        address = kind(number)
        if address not in pool.never and not is_held(address):
            return address
        number += 1
    return None


def _passed_over(pool: Pool, held: Container[int]) -> Pick | None:
    kind, never = type(pool.first), {int(address) for address in pool.never}
    for number in range(int(pool.first), int(pool.last) + 1):
        if number not in held and number not in never:
            return Pick(kind(number), None)
    return None
