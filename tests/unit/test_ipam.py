"""Which address a network gives out next: the pure choice as tables, and the same against the real store."""

from __future__ import annotations

import ipaddress
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from provisioner.errors import Taken
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import Store, open_store
from provisioner.model.ipam import Pick, Pool, pick, pool_of
from provisioner.model.network import Network, Subnet, parse_range, parse_subnet
from provisioner.model.nic import Address

ip = ipaddress.ip_address


def subnet(text: str, gateway: str = "", range_: str = "") -> Subnet:
    return Subnet(parse_subnet(text), ip(gateway) if gateway else None, parse_range(range_) if range_ else None)


# what a pool holds


@pytest.mark.parametrize(
    ("one", "reserved", "size", "free", "kept"),
    [
        (subnet("192.0.2.0/24"), "", 254, "192.0.2.1 192.0.2.254", "192.0.2.0 192.0.2.255 192.0.3.1 2001:db8::1"),
        (subnet("192.0.2.0/24", "192.0.2.1"), "192.0.2.9", 252, "192.0.2.2", "192.0.2.1 192.0.2.9"),
        (
            subnet("192.0.2.0/24", "192.0.2.1", "192.0.2.64/27"),
            "",
            32,
            "192.0.2.64 192.0.2.95",
            "192.0.2.63 192.0.2.96",
        ),
        (subnet("192.0.2.0/24", "192.0.2.70", "192.0.2.64/27"), "192.0.2.70", 31, "192.0.2.71", "192.0.2.70"),
        (subnet("192.0.2.0/24", "", "192.0.2.0/28"), "", 15, "192.0.2.15", "192.0.2.0"),
        (subnet("192.0.2.0/24", "", "192.0.2.240/28"), "", 15, "192.0.2.240", "192.0.2.255"),
        (subnet("192.0.2.0/30"), "", 2, "192.0.2.1 192.0.2.2", "192.0.2.0 192.0.2.3"),
        # RFC 3021, and a host's own
        (subnet("192.0.2.8/31"), "", 2, "192.0.2.8 192.0.2.9", "192.0.2.7 192.0.2.10"),
        (subnet("192.0.2.8/31", "192.0.2.8"), "", 1, "192.0.2.9", "192.0.2.8"),
        (subnet("192.0.2.9/32"), "", 1, "192.0.2.9", ""),
        (subnet("192.0.2.9/32", "192.0.2.9"), "", 0, "", "192.0.2.9"),
        # RFC 6164
        (subnet("2001:db8::/127"), "", 2, "2001:db8:: 2001:db8::1", "2001:db8::2"),
        (subnet("2001:db8::9/128"), "", 1, "2001:db8::9", ""),
        # the subnet-router anycast address alone
        (subnet("2001:db8::/126"), "", 3, "2001:db8::1 2001:db8::3", "2001:db8::"),
        (subnet("2001:db8::/64", "fe80::1"), "", 2**64 - 1, "2001:db8::ffff:ffff:ffff:ffff", "2001:db8:: fe80::1"),
        (subnet("192.0.2.0/24"), "192.0.2.0 198.51.100.1 2001:db8::1", 254, "192.0.2.1", "192.0.2.0"),
    ],
)
def test_a_pool(one: Subnet, reserved: str, size: int, free: str, kept: str) -> None:
    pool = pool_of(one, frozenset(ip(word) for word in reserved.split()))
    assert pool.size == size
    assert [word for word in free.split() if ip(word) not in pool] == []
    assert [word for word in kept.split() if ip(word) in pool] == []


POOL = pool_of(subnet("192.0.2.0/29", "192.0.2.3"))  # .1 .2 .4 .5 .6


def pick_last(
    start: int | None, held: Iterable[int] = (), released: Iterable[int] = ()
) -> tuple[int, int | None] | None:
    """`pick` in terms of last octets."""
    base, gone, back = int(ip("192.0.2.0")), set(held), list(released)
    found = pick(
        POOL,
        None if start is None else ip(base + start),
        lambda address: int(address) - base in gone or int(address) - base in back,
        [ip(base + last) for last in back],
        lambda: {base + last for last in gone},
    )
    return found and (int(found.address) - base, None if found.next is None else int(found.next) - base)


@pytest.mark.parametrize(
    ("start", "held", "released", "picked"),
    [
        (0, (), (), (1, 2)),
        (3, (), (), (4, 5)),  # over the gateway
        (1, (1, 2), (), (4, 5)),  # over what was given by hand
        (5, (5,), (1,), (6, 7)),  # what nobody has had comes first
        (7, (6,), (2, 1), (2, None)),  # then what was given back, longest ago first
        (None, (4, 5, 6), (2, 1), (2, None)),
        (5, (5, 6), (3, 1), (1, None)),  # an address that became the gateway is skipped where it waits
        (None, (1, 2, 4, 6), (), (5, None)),  # passed over once, free since
        (None, (1, 2, 4, 5, 6), (), None),
        (1, (1, 2, 4, 5, 6), (), None),
    ],
)
def test_the_next_address(
    start: int | None, held: tuple[int, ...], released: tuple[int, ...], picked: tuple[int, int | None] | None
) -> None:
    assert pick_last(start, held, released) == picked


def test_the_last_address_of_all_has_none_after_it() -> None:
    pool = Pool(ip("2001:db8::fffe"), ip("2001:db8::ffff"), frozenset())
    assert pick(pool, ip("2001:db8::ffff"), lambda _: False, [], set) == Pick(ip("2001:db8::ffff"), None)


def test_a_huge_pool_is_not_searched() -> None:
    pool = pool_of(subnet("2001:db8::/64"))
    first = pick(pool, pool.first, lambda address: int(address) < int(pool.first) + 1000, [], set)
    assert first == Pick(ip("2001:db8::3e8"), ip("2001:db8::3e9"))
    assert pick(pool, None, lambda _: False, [], set) is None


# the same against the store: two networks share one parent's subnet by ranges, and each has an IPv6 one

NETWORKS = (
    Network(
        "low",
        "eth0",
        subnets=(subnet("192.0.2.0/24", "192.0.2.3", "192.0.2.0-192.0.2.6"), subnet("2001:db8::/64", "fe80::1")),
        reserved=(("printer", ip("192.0.2.5")),),
    ),
    Network("high", "eth0", subnets=(subnet("192.0.2.0/24", "", "192.0.2.252/30"), subnet("2001:db8:0:1::/127"))),
    Network(
        "tiny",
        "eth0",
        subnets=(subnet("198.51.100.8/31"), subnet("198.51.100.77/32"), subnet("2001:db8:0:2::9/128")),
    ),
)
POOLS = {(network.name, one): pool_of(one, network.never_given()) for network in NETWORKS for one in network.subnets}
#: What may be given by hand, each pool's first addresses and the one before: in its network, or on the bare parent.
BY_HAND = sorted(
    {ip(int(pool.first) + step) for pool in POOLS.values() for step in range(min(8, pool.size + 2))}, key=str
)


def expected_fresh(pool: Pool) -> list[Address]:
    """The first addresses of a pool, found one by one."""
    kind, numbers = type(pool.first), range(int(pool.first), min(int(pool.last), int(pool.first) + 200) + 1)
    return [kind(number) for number in numbers if kind(number) not in pool.never]


class Leased(RuleBasedStateMachine):
    """A list of those nobody has had and a queue of those given back, beside a store that is closed and opened."""

    held = Bundle("held")

    @initialize()
    def make(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store: Store = open_store(self.folder)
        for network in NETWORKS:
            self.store.networks.add(network)
        self.fresh = {key: expected_fresh(pool) for key, pool in POOLS.items()}
        self.queue: dict[tuple[str, Subnet], list[Address]] = {key: [] for key in POOLS}
        self.claimed: dict[str, tuple[str, Address]] = {}  # MAC: network, empty for the bare parent, and address
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def _mac(self) -> str:
        self.number += 1
        return f"52:54:00:00:{self.number >> 8:02x}:{self.number & 255:02x}"

    def _taken(self) -> set[Address]:
        return {address for _, address in self.claimed.values()}

    def _expect(self, key: tuple[str, Subnet], avoid: set[Address]) -> Address | None:
        """Takes it out of the list or the queue."""
        pool, unfit = POOLS[key], self._taken() | avoid
        first_round = [address for address in self.fresh[key] if address not in unfit | set(self.queue[key])]
        if first_round:
            self.fresh[key] = self.fresh[key][self.fresh[key].index(first_round[0]) + 1 :]
            return first_round[0]
        back = [address for address in self.queue[key] if address not in unfit and address in pool]
        passed = [] if pool.size > 200 else [one for one in expected_fresh(pool) if one not in unfit]
        chosen = (back or passed or [None])[0]
        if chosen is not None:
            self.fresh[key] = []
        return chosen

    def _note(self, mac: str, network: str, address: Address) -> None:
        self.claimed[mac] = network, address
        for (name, _), queue in self.queue.items():
            if name == network and address in queue:
                queue.remove(address)

    def _forget(self, mac: str) -> None:
        network, address = self.claimed.pop(mac)
        for (name, one), queue in self.queue.items():
            if name == network and address.version == one.subnet.version and address in one.subnet:
                queue.append(address)

    def _claim_next(self, key: tuple[str, Subnet], mac: str, avoid: set[Address]) -> Address | None:
        (name, one), pool = key, POOLS[key]
        with self.store.claiming() as leases:
            picked = leases.pick(name, "eth0", str(one.subnet), pool, avoid)
            if picked is None:
                return None
            leases.advance(name, str(one.subnet), picked)
            leases.claim("owner", "vm", [NicClaim(mac, (LeaseClaim("eth0", str(picked.address)),), network=name)])
        return picked.address

    @rule(target=held, key=st.sampled_from(sorted(POOLS, key=str)))
    def next_one(self, key: tuple[str, Subnet]) -> object:
        mac = self._mac()
        expected, before = self._expect(key, set()), self._taken()
        got = self._claim_next(key, mac, set())
        assert got == expected
        if got is None:
            assert [one for one in expected_fresh(POOLS[key]) if one not in before] == [], "exhausted, and one is free"
            return multiple()
        assert got in POOLS[key]
        assert got not in before
        self._note(mac, key[0], got)
        return mac

    @rule(target=held, address=st.sampled_from(BY_HAND), bare=st.booleans())
    def by_hand(self, address: Address, bare: bool) -> object:
        inside = [name for (name, _), pool in POOLS.items() if address in pool]
        name = inside[0] if inside and not bare else ""
        mac, is_taken = self._mac(), address in self._taken()
        claim = NicClaim(mac, (LeaseClaim("eth0", str(address)),), network=name)
        if is_taken:
            with pytest.raises(Taken, match=f"{address} is held by machine vm"):
                self.store.claim("owner", "vm", [claim])
            return multiple()
        self.store.claim("owner", "vm", [claim])
        self._note(mac, name, address)
        return mac

    @rule(mac=consumes(held))
    def release(self, mac: str) -> None:
        self.store.release_mac(mac)
        self._forget(mac)

    @rule(mac=held)
    def in_use_on_the_lan(self, mac: str) -> None:
        """What probing does: another is taken by the same MAC; where there is none, nothing has changed."""
        name, address = self.claimed[mac]
        key = next((key for key, pool in POOLS.items() if key[0] == name and address in pool), None)
        if key is None:
            return
        fresh, queue = list(self.fresh[key]), list(self.queue[key])
        self._forget(mac)
        expected = self._expect(key, {address})
        with self.store.claiming() as leases:
            leases.give_back(mac)
            picked = leases.pick(name, "eth0", str(key[1].subnet), POOLS[key], {address})
            assert (picked.address if picked else None) == expected
            leases.record_conflict(name, address, "52:54:00:ff:ff:ff")
            if picked:
                leases.advance(name, str(key[1].subnet), picked)
                lease = LeaseClaim("eth0", str(picked.address))
                leases.claim("owner", "vm", [NicClaim(mac, (lease,), network=name)])
            else:
                back = LeaseClaim("eth0", str(address))
                leases.claim("owner", "vm", [NicClaim(mac, (back,), network=name)])
        if picked:
            self._note(mac, name, picked.address)
            assert str(address) in {one.address for one in self.store.networks.conflicts(name)}
        else:
            self.claimed[mac], self.fresh[key], self.queue[key] = (name, address), fresh, queue

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = open_store(self.folder)

    @invariant()
    def all_that_is_held_is_there(self) -> None:
        if not hasattr(self, "store"):
            return
        there = {lease.mac: (lease.network, ip(lease.address)) for lease in self.store.leases()}
        assert there == self.claimed
        assert len(self._taken()) == len(self.claimed)


TestLeased = Leased.TestCase
TestLeased.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
