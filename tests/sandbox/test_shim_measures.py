"""Each measure of a shim's, with packets: what it guards holds; taken out by hand, the fault is there; and `shim up`
puts it back. Endpoints, real macvlans of the parent's, stand for guests."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from provisioner.actions.sandbox import Node, Process, Sandbox
from provisioner.model.names import shim_mac
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost
from tests.sandbox.test_reach import lay_cable

pytestmark = pytest.mark.xdist_group("shim measures")

HOST, LAN, G1, G2 = (tuple(text.format(n) for text in ("192.0.2.{}", "2001:db8::{}")) for n in (2, 1, 50, 51))

#: Of the host's eth0 (host/sandbox/layout.py).
PARENT = "02:00:c0:00:02:02"
SHIM = shim_mac(PARENT)


@pytest.fixture(scope="module")
def host() -> Iterator[KvmHost]:
    """With a store, so that snapshots compare. Its LAN peer believes whatever it hears at once: by default a peer takes
    one change of an entry a second, and who waits for that sees the same."""
    with make_sandbox() as box:
        made = KvmHost(box)
        made.settle_addresses()
        made.sh("sysctl -w net/ipv4/neigh/eth0/locktime=0", node=made.lan)
        made.macvm("endpoint", "create", "first")
        made.macvm("endpoint", "delete", "first")
        yield made


def add_endpoint(host: KvmHost, name: str, addresses: tuple[str, ...], *words: str) -> str:
    """Standard error of making it."""
    given = [word for one in addresses for word in ("--ip", f"{one}/{64 if ':' in one else 24}")]
    return host.macvm("endpoint", "create", name, "--parent", "eth0", *given, *words).stderr


@pytest.fixture
def guest(host: KvmHost) -> Iterator[KvmHost]:
    """The host with an endpoint g1, and a LAN peer that has heard nothing yet; afterwards it is as it was."""
    with host.unchanged():
        add_endpoint(host, "g1", G1)
        forget(host.lan)
        yield host
        host.macvm("endpoint", "delete", "g1")
        host.sh("macvm shim down || true")


@contextmanager
def strict(host: KvmHost) -> Iterator[None]:
    """With strict rp_filter (RFC 3704) on each link that there is or comes."""
    keys = "/proc/sys/net/ipv4/conf/*/rp_filter"
    host.sh(f"for key in {keys}; do echo 1 > $key; done")
    try:
        yield
    finally:
        host.sh(f"for key in {keys}; do echo 0 > $key; done")


def forget(node: Node) -> None:
    """Its neighbours, those that it heard."""
    node.run(["ip", "neigh", "flush", "all"], check=True)


def forget_in(host: KvmHost, *endpoints: str) -> None:
    for name in endpoints:
        host.macvm("endpoint", "exec", name, "--", "ip", "neigh", "flush", "all")


def reaches(node: Node, *addresses: str, wait: float = 2, through: tuple[str, ...] = ()) -> list[bool]:
    """Whether each answers a ping within so many seconds; all are sent at once."""
    script = 'for to in "$@"; do (ping -q -c1 -W$0 $to >/dev/null && echo $to) & done; wait'
    answered = node.run([*through, "bash", "-c", script, str(wait), *addresses], check=True).stdout.split()
    return [one in answered for one in addresses]


def reaches_from(host: KvmHost, endpoint: str, *addresses: str, wait: float = 2) -> list[bool]:
    return reaches(host.node, *addresses, wait=wait, through=("macvm", "endpoint", "exec", endpoint, "--"))


def answers(host: KvmHost, *asked: str, times: int = 3) -> set[tuple[str, str]]:
    """Each address with a MAC that answered the LAN peer for it. `asked` are `peer's own,asked for`."""
    words = [sys.executable, "-m", "tests.sandbox.answers", str(times), *asked]
    done = host.lan.run(words, check=True).stdout.splitlines()
    wanted = {one.partition(",")[2] for one in asked}
    return {(address, mac) for address, mac in (line.split() for line in done) if address in wanted}


def learnt(host: KvmHost, address: str) -> str:
    """The MAC that the LAN peer has for an address."""
    found = re.search(r"lladdr (\S+)", host.sh(f"ip neigh show {address}", node=host.lan))
    assert found, f"the LAN peer knows no {address}"
    return found[1]


# --- a measure each: it holds, it is taken out, it is back ------------------------------------------------------------


@pytest.fixture
def second_nic(fresh_box: Sandbox) -> KvmHost:
    """A host whose eth0 is on the LAN, and whose eth1, elsewhere, is the first of its links."""
    made = KvmHost(fresh_box)
    lay_cable(fresh_box, "lan0")
    made.sh("ip link set dev host1 nomaster", node=fresh_box.switch)
    made.sh(
        """ip addr flush dev eth0; ip link set eth0 down; ip link set eth0 name eth1
        ip addr add 198.51.100.2/24 brd + dev eth1; ip link set eth1 up
        ip link set lan0 down; ip link set lan0 name eth0
        ip addr add 192.0.2.2/24 brd + dev eth0; ip link set eth0 up; ip addr add 2001:db8::2/64 dev eth0 nodad"""
    )
    index = {name: int(made.sh(f"cat /sys/class/net/{name}/ifindex")) for name in ("eth0", "eth1")}
    assert index["eth1"] < index["eth0"]
    add_endpoint(made, "g1", G1)
    return made


def test_without_a_source_the_host_speaks_from_another_nics_address(second_nic: KvmHost) -> None:
    host = second_nic
    assert reaches(host.node, *G1) == [True, True]
    host.sh(f"ip route replace {G1[0]} dev mv-eth0 proto 109 scope link")
    assert "src 198.51.100.2" in host.sh(f"ip route get {G1[0]}")
    assert reaches(host.node, G1[0], wait=0.5) == [False]
    host.macvm("shim", "up", "eth0")
    assert f"src {HOST[0]}" in host.sh(f"ip route get {G1[0]}")
    assert reaches(host.node, *G1) == [True, True]
    assert reaches_from(host, "g1", *HOST) == [True, True]


def test_without_arp_filter_the_shim_answers_the_lan(guest: KvmHost) -> None:
    ask = f"{LAN[0]},{HOST[0]}"
    assert answers(guest, ask) == {(HOST[0], PARENT)}
    guest.sh("sysctl -w net/ipv4/conf/mv-eth0/arp_filter=0")
    assert answers(guest, ask) == {(HOST[0], PARENT), (HOST[0], SHIM)}
    guest.macvm("shim", "up", "eth0")
    assert answers(guest, ask) == {(HOST[0], PARENT)}
    forget_in(guest, "g1")
    assert reaches_from(guest, "g1", HOST[0]) == [True], "guests get their answer all the same"


def test_without_the_permanent_neighbour_the_lan_learns_the_shims_mac_and_loses_the_host(guest: KvmHost) -> None:
    with strict(guest):
        assert reaches(guest.lan, HOST[0]) == [True]
        assert reaches(guest.node, G1[0]) == [True]
        assert learnt(guest, HOST[0]) == PARENT
        guest.sh(f"ip neigh del {G1[0]} dev mv-eth0")
        assert reaches(guest.node, G1[0]) == [True], "it is asked for, by broadcast"
        assert learnt(guest, HOST[0]) == SHIM
        assert reaches(guest.lan, HOST[0], wait=0.5) == [False]
        guest.macvm("shim", "up", "eth0")
        # What a peer has learnt it believes until it has asked in vain, some 8 s.
        forget(guest.lan)
        assert reaches(guest.lan, HOST[0]) == [True]
        assert reaches(guest.node, G1[0]) == [True]
        assert learnt(guest, HOST[0]) == PARENT
        assert reaches(guest.lan, HOST[0]) == [True]


@pytest.mark.parametrize(
    "cut",
    [
        "sysctl -w net/ipv6/conf/mv-eth0/proxy_ndp=0",
        "sysctl -w net/ipv6/conf/mv-eth0/forwarding=0",
        f"ip neigh del proxy {HOST[1]} dev mv-eth0",
    ],
)
def test_without_the_ipv6_proxy_neither_way_works(guest: KvmHost, cut: str) -> None:
    def both_ways(wait: float) -> list[bool]:
        """From either side with a guest that has yet to ask for the host."""
        forget_in(guest, "g1")
        found = reaches(guest.node, G1[1], wait=wait)
        forget_in(guest, "g1")
        return found + reaches_from(guest, "g1", HOST[1], wait=wait)

    assert both_ways(2) == [True, True]
    guest.sh(cut)
    assert both_ways(0.5) == [False, False]
    assert reaches(guest.node, G1[0]) == [True]
    guest.macvm("shim", "up", "eth0")
    assert both_ways(2) == [True, True]


def test_with_a_subnet_on_the_shim_the_lan_is_lost_when_the_parent_was_down(guest: KvmHost) -> None:
    """The shim's own subnet is then the first route to the LAN. It is not macvm's to remove: the shim is made again."""

    def bounce() -> None:
        guest.sh("ip link set eth0 down; ip link set eth0 up; ip route add default via 192.0.2.1")
        guest.sh("ip addr add 2001:db8::2/64 dev eth0 nodad; ip -6 route add default via 2001:db8::1 dev eth0")
        guest.macvm("shim", "up", "eth0")

    with strict(guest):
        bounce()
        assert reaches(guest.lan, HOST[0]) == [True]
        guest.sh("ip addr add 192.0.2.3/24 dev mv-eth0")
        bounce()
        assert reaches(guest.lan, HOST[0], wait=0.5) == [False], "a peer that has the parent's MAC"
        assert (HOST[0], SHIM) in answers(guest, f"{LAN[0]},{HOST[0]}")
        guest.macvm("shim", "down", "eth0")
        guest.macvm("shim", "up", "eth0")
        forget(guest.lan)
        bounce()
        assert reaches(guest.lan, HOST[0]) == [True]
        assert reaches(guest.node, *G1) == [True, True]
    guest.settle_addresses()


# --- what the LAN sees of a host with a shim ---------------------------------------------------------------------------


def test_asked_a_hundred_times_by_arp_only_the_parent_answers_for_the_host(guest: KvmHost) -> None:
    assert answers(guest, f"{LAN[0]},{HOST[0]}", times=100) == {(HOST[0], PARENT)}


def test_a_hundred_times_the_lan_learns_the_parents_mac_for_the_host(guest: KvmHost) -> None:
    """By IPv6 the shim answers too, for it has to answer guests; but its answer does not override (RFC 4861, 7.2.8)."""
    once = "ip neigh flush all; ping -q -c1 -W1 {0} >/dev/null && ip neigh show {0} || exit 1"
    for address in HOST:
        script = f"for n in $(seq 100); do {once.format(address)}; done"
        found = re.findall(r"lladdr (\S+)", guest.sh(script, node=guest.lan))
        assert found == [PARENT] * 100, address


@contextmanager
def pinged(node: Node, *addresses: str) -> Iterator[None]:
    """Holds a continuous ping, 50 a second, to losing nothing while something is done and a little after."""
    running = [node.start(["ping", "-i", "0.02", "-W5", one]) for one in addresses]

    def heard(one: Process) -> list[int]:
        return [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", one.stdout)]

    def until_more() -> list[list[int]]:
        before, deadline = [len(heard(one)) for one in running], time.monotonic() + 10
        while any(len(heard(one)) < count + 5 for one, count in zip(running, before, strict=True)):
            assert time.monotonic() < deadline, f"no answer any more: {before}, {[len(heard(one)) for one in running]}"
            time.sleep(0.02)
        return [heard(one) for one in running]

    try:
        until_more()
        yield
        for address, numbers in zip(addresses, until_more(), strict=True):
            missing = set(range(1, max(numbers) + 1)) - set(numbers)
            assert not missing, f"{address}: {len(missing)} of {max(numbers)} pings lost"
    finally:
        for one in running:
            one.close()


def test_the_lan_loses_no_ping_to_the_host_while_shims_come_and_go(guest: KvmHost) -> None:
    with pinged(guest.lan, *HOST):
        for _ in range(10):
            guest.macvm("shim", "down", "eth0")
            guest.macvm("shim", "up", "eth0")


def test_with_strict_rp_filter_all_reach_one_another_before_during_and_after_a_shim(guest: KvmHost) -> None:
    add_endpoint(guest, "g2", G2)
    guest.macvm("shim", "down", "eth0")

    def check(host_and_guests: bool) -> None:
        forget(guest.lan)
        forget(guest.node)
        forget_in(guest, "g1", "g2")
        assert reaches(guest.lan, *HOST, *G1, *G2) == [True] * 6
        assert reaches(guest.node, *LAN) == [True] * 2
        assert reaches_from(guest, "g1", *LAN, *G2) == [True] * 4
        assert reaches_from(guest, "g2", *LAN, *G1) == [True] * 4
        wait = 2 if host_and_guests else 0.5
        assert reaches(guest.node, *G1, *G2, wait=wait) == [host_and_guests] * 4
        assert reaches_from(guest, "g1", *HOST, wait=wait) == [host_and_guests] * 2
        assert reaches_from(guest, "g2", *HOST, wait=wait) == [host_and_guests] * 2

    with strict(guest):
        check(host_and_guests=False)
        with pinged(guest.lan, *HOST, *G1), pinged(guest.node, *LAN):
            guest.macvm("shim", "up", "eth0")
        check(host_and_guests=True)
        with pinged(guest.lan, *HOST, *G1), pinged(guest.node, *LAN):
            guest.macvm("shim", "down", "eth0")
        check(host_and_guests=False)
    guest.macvm("endpoint", "delete", "g2")


# --- parents ----------------------------------------------------------------------------------------------------------


def test_a_parent_with_two_subnets_speaks_to_each_guest_from_its_own(guest: KvmHost) -> None:
    other = {"host": "198.51.100.2", "lan": "198.51.100.1", "g2": "198.51.100.50"}
    guest.sh(f"ip addr add {other['host']}/24 brd + dev eth0")
    guest.sh(f"ip addr add {other['lan']}/24 brd + dev eth0", node=guest.lan)
    add_endpoint(guest, "g2", (other["g2"], "2001:db8:1::50"), "--gateway", other["lan"])
    add_v6 = "ip addr {} 2001:db8:1::2/64 dev eth0"
    guest.sh(add_v6.format("add") + " nodad")
    guest.macvm("shim", "up", "eth0")
    guests = (*G1, other["g2"], "2001:db8:1::50")
    sources = [re.findall(r"src (\S+)", guest.sh(f"ip route get {one}"))[0] for one in guests]
    assert sources == [*HOST, other["host"], "2001:db8:1::2"]
    assert reaches(guest.node, *guests) == [True] * 4
    assert reaches_from(guest, "g1", *HOST) + reaches_from(guest, "g2", other["host"], "2001:db8:1::2") == [True] * 4
    asked = (f"{LAN[0]},{HOST[0]}", f"{other['lan']},{other['host']}")
    assert answers(guest, *asked, times=100) == {(HOST[0], PARENT), (other["host"], PARENT)}
    guest.macvm("endpoint", "delete", "g2")
    guest.sh(f"ip addr del {other['host']}/24 dev eth0; {add_v6.format('del')}")
    guest.sh(f"ip addr del {other['lan']}/24 dev eth0", node=guest.lan)


def test_a_parent_with_only_ipv6_serves_that(fresh_box: Sandbox) -> None:
    host = KvmHost(fresh_box)
    host.sh("ip -4 addr flush dev eth0")
    said = add_endpoint(host, "g1", G1)
    assert f"no route from this host to {G1[0]}: eth0 has no address in its subnet" in said
    assert reaches(host.node, LAN[1], *G1) == [True, False, True]
    assert reaches_from(host, "g1", HOST[1], *LAN) == [True] * 3
    assert reaches(host.lan, HOST[1], *G1) == [True] * 3
    found = {one["address"]: (one["route"], one["reason"]) for one in host.json("shim", "status", "eth0")[0]["guests"]}
    assert found == {G1[0]: (False, "eth0 has no address in its subnet"), G1[1]: (True, "")}
