"""Asking the LAN for addresses: kernels that hold them answer, and what else is on the wire does not mislead."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.errors import MacvmError, NotFound, Unable
from provisioner.host import namespaces, wire
from tests.netns.conftest import ip
from tests.unit.test_wire import arp, neighbour

pytestmark = pytest.mark.usefixtures("lan")

SHIM, PEER, GUEST = "52:54:00:00:00:01", "52:54:00:00:00:9e", "52:54:00:00:00:77"
PEER_MAC = bytes.fromhex(PEER.replace(":", ""))
PARENT = "52:54:00:00:00:02"
ETH_P_ALL, OUTGOING = 3, 4

TAKEN4, TAKEN6, FREE4, FREE6 = map(
    ipaddress.ip_address, ("192.0.2.10", "2001:db8::10", "192.0.2.20", "2001:db8:0:1::20")
)
#: For tests that send something after the first packet was seen: time enough on a busy machine, and no more than that.
SLOW = wire.Pace(3, 0.15, 0.15)
#: For tests in which the probing never comes to its own end.
ENDLESS = wire.Pace(2, 60, 60)


class Elsewhere:
    """A network namespace beside the test's own."""

    def __init__(self) -> None:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        namespaces.unshare(namespaces.CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        namespaces.setns(own, namespaces.CLONE_NEWNET)
        os.close(own)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        namespaces.setns(self.fd, namespaces.CLONE_NEWNET)
        try:
            yield
        finally:
            namespaces.setns(own, namespaces.CLONE_NEWNET)
            os.close(own)

    def take(self, link: str, *addresses: object) -> None:
        """Moves a link in there, and gives it addresses."""
        ip("link set", link, "netns", f"/proc/{os.getpid()}/fd/{self.fd}")
        with self.inside():
            ip("link set", link, "up")
            for address in addresses:
                ip("addr add", address, "dev", link, *(["nodad"] if ":" in str(address) else []))

    def wire(self, link: str) -> socket.socket:
        """A raw socket on a link in there; one that hears nothing for 10 s raises TimeoutError."""
        with self.inside():
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        opened.bind((link, ETH_P_ALL))
        opened.settimeout(10)
        return opened


def other_namespace() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    os.close(made.fd)


@pytest.fixture
def peer(lan: None) -> Iterator[Elsewhere]:
    """Another host of the LAN, which holds TAKEN4 and TAKEN6 on its `far`; on this side there is a `shim` on `eth0`."""
    ip("link set far address", PEER)
    ip("link set eth0 address", PARENT)
    ip("link add shim link eth0 address", SHIM, "type macvlan mode bridge")
    # As macvm's shims are.
    Path("/proc/sys/net/ipv6/conf/shim/disable_ipv6").write_text("1")
    ip("link set shim up")
    for made in other_namespace():
        made.take("far", f"{TAKEN4}/24", f"{TAKEN6}/64")
        # The kernel drops what is sent until it has seen, a little later, that the veth has carrier.
        for _ in range(100):
            if len(wire.probe("shim", [TAKEN4, TAKEN6], pace=wire.Pace(1, 0, 0.05))) == 2:
                break
        yield made


@pytest.fixture
def far(peer: Elsewhere) -> Iterator[socket.socket]:
    with peer.wire("far") as opened:
        yield opened


def seen(far: socket.socket, kind: bytes, mac: str = SHIM) -> bytes:
    """The next question from that MAC, the shim's or the parent's, by ARP or for FREE6 as `kind`, the Ethernet type."""
    while True:
        frame, (_, _, direction, *_) = far.recvfrom(2048)
        if direction == OUTGOING or frame[6:14] != bytes.fromhex(mac.replace(":", "")) + kind:
            continue
        if kind == b"\x08\x06" or frame[62:78] == FREE6.packed:
            return frame


def seen_question(far: socket.socket) -> None:
    seen(far, b"\x08\x06")


def test_taken_and_free_addresses_of_both_families_at_once(peer: Elsewhere) -> None:
    asked = [FREE4, TAKEN6, FREE6, TAKEN4]
    assert wire.probe("shim", asked) == {TAKEN4: PEER, TAKEN6: PEER}
    assert wire.Probing("shim", iter(asked)).result() == {TAKEN4: PEER, TAKEN6: PEER}


def test_a_link_that_the_kernel_has_no_ipv6_on_hears_holders_too(peer: Elsewhere) -> None:
    # Below IPv6's least MTU. With disable_ipv6 alone the kernel still is in the group of all nodes.
    ip("link set shim mtu 1000")
    assert wire.probe("shim", [TAKEN6, FREE6]) == {TAKEN6: PEER}


def test_nobody_there(peer: Elsewhere) -> None:
    assert wire.probe("shim", [FREE4, FREE6]) == {}


def test_it_ends_once_every_address_is_known_to_be_taken(peer: Elsewhere) -> None:
    assert wire.probe("shim", [TAKEN4, TAKEN6], pace=ENDLESS) == {TAKEN4: PEER, TAKEN6: PEER}


def test_the_frames_byte_by_byte(peer: Elsewhere, far: socket.socket) -> None:
    probing = wire.Probing("shim", [FREE4, FREE6], pace=SLOW)
    arps, solicitations = [], []
    for _ in range(3):
        arps.append(seen(far, b"\x08\x06"))
        solicitations.append(seen(far, b"\x86\xdd"))
    assert probing.result() == {}
    golden = bytes.fromhex("ffffffffffff52540000000108060001080006040001525400000001000000000000000000 00c0000214")
    assert arps == [golden] * 3
    head = bytes.fromhex("3333ff00002052540000000186dd6000000000203aff" + "00" * 16 + "ff02" + "00" * 9 + "01ff000020")
    for frame in solicitations:
        assert len(frame) == 86
        assert frame[:56] == head + b"\x87\x00"
        assert frame[58:80] == bytes(4) + FREE6.packed + b"\x0e\x01"
    assert len({frame[80:] for frame in solicitations}) == 1


def test_a_sibling_is_heard_from_a_shim_but_not_from_the_parent(peer: Elsewhere) -> None:
    addresses = [ipaddress.ip_address(word) for word in ("192.0.2.30", "2001:db8::30")]
    ip("link add guest link eth0 address", GUEST, "type macvlan mode bridge")
    for other in other_namespace():
        other.take("guest", *(f"{address}/{24 if address.version == 4 else 64}" for address in addresses))
        assert wire.probe("shim", addresses) == dict.fromkeys(addresses, GUEST)
        assert wire.probe("eth0", addresses) == {}, "then a shim would not be needed"


def test_a_macvlan_can_ask_as_soon_as_it_is_up(peer: Elsewhere) -> None:
    for number in range(3):
        ip(f"link add asks{number} link eth0 type macvlan mode bridge")
        ip(f"link set asks{number} up")
        assert wire.probe(f"asks{number}", [TAKEN4, TAKEN6], pace=ENDLESS) == {TAKEN4: PEER, TAKEN6: PEER}


def test_a_mac_that_is_ignored_is_no_conflict(peer: Elsewhere) -> None:
    ip("link add guest link eth0 address", GUEST, "type macvlan mode bridge")
    for other in other_namespace():
        other.take("guest", f"{FREE4}/24")
        asked = [TAKEN4, TAKEN6, FREE4]
        assert wire.probe("shim", asked, ignore=[PEER.upper()]) == {FREE4: GUEST}
        assert wire.probe("shim", asked, ignore={PEER, GUEST}) == {}


def test_two_that_probe_for_one_address_hear_one_another(peer: Elsewhere) -> None:
    ours = wire.Probing("shim", [FREE4, FREE6], pace=SLOW)
    with peer.inside():
        theirs = wire.Probing("far", [FREE4, FREE6], pace=SLOW)
    # Whoever hears the other gives way at once, and the other may then have heard nothing.
    at_us, at_them = ours.result(), theirs.result()
    for address in (FREE4, FREE6):
        assert at_us.get(address) == PEER or at_them.get(address) == SHIM


def test_a_kernel_that_is_about_to_take_the_address_is_heard(peer: Elsewhere, far: socket.socket) -> None:
    probing = wire.Probing("shim", [FREE6], pace=wire.Pace(1, 0, 10))
    seen(far, b"\x86\xdd")
    with peer.inside():
        ip("addr add", f"{FREE6}/64", "dev far")  # with its own duplicate address detection
    assert probing.result() == {FREE6: PEER}


@pytest.mark.parametrize(("device", "mac"), [("shim", SHIM), ("eth0", PARENT)])
def test_our_own_question_that_comes_back_is_no_conflict(
    peer: Elsewhere, far: socket.socket, device: str, mac: str
) -> None:
    probing = wire.Probing(device, [FREE4, FREE6], pace=SLOW)
    question4, question6 = seen(far, b"\x08\x06", mac), seen(far, b"\x86\xdd", mac)
    # A switch that sends it back; and a Wi-Fi repeater, which puts its own MAC in front.
    for frame in (question4, question6, question6[:6] + PEER_MAC + question6[12:]):
        far.send(frame)
    assert probing.result() == {}


def test_a_gratuitous_arp_is_a_conflict(peer: Elsewhere, far: socket.socket) -> None:
    probing = wire.Probing("shim", [FREE4], pace=ENDLESS)
    seen_question(far)
    far.send(b"\xff" * 6 + arp(PEER_MAC, FREE4.packed, FREE4.packed, operation=1)[6:])
    assert probing.result() == {FREE4: PEER}


def good(address: wire.Address) -> bytes:
    if address.version == 4:
        return b"\xff" * 6 + arp(PEER_MAC, address.packed)[6:]
    return neighbour(target=address.packed, mac=PEER_MAC)


def tagged(frame: bytes, vlan: int, kind: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack(">HH", kind, vlan) + frame[12:]


def test_frames_that_are_malformed_or_another_vlans_say_nothing(peer: Elsewhere, far: socket.socket) -> None:
    probing = wire.Probing("shim", [FREE4, FREE6], pace=SLOW)
    seen_question(far)
    for whole in map(good, (FREE4, FREE6)):
        for length in range(14, len(whole)):
            far.send(whole[:length])
        for frame in (tagged(whole, 50), tagged(whole, 50, 0x88A8), tagged(tagged(whole, 50), 60)):
            far.send(frame)
        far.send(whole[:12] + os.urandom(60))
        far.send(whole[:14] + os.urandom(80))
        far.send(whole[:6] + b"\xff" * 6 + whole[12:22] + b"\xff" * 6 + whole[28:])
    far.send(neighbour(target=FREE6.packed, mac=PEER_MAC, hops=64))
    far.send(neighbour(target=FREE6.packed, mac=PEER_MAC, options=b"\x02\x00"))
    assert probing.result() == {}


def test_a_priority_tag_is_no_vlan(peer: Elsewhere, far: socket.socket) -> None:
    probing = wire.Probing("shim", [FREE4, FREE6], pace=ENDLESS)
    seen_question(far)
    for address in (FREE4, FREE6):
        far.send(tagged(good(address), 0x6000))
    assert probing.result() == {FREE4: PEER, FREE6: PEER}


def test_a_flood_of_frames_does_not_hold_up_the_clock(peer: Elsewhere, far: socket.socket) -> None:
    asked = [FREE4.packed, TAKEN4.packed]
    with wire._open("shim", asked) as opened:
        for _ in range(200):
            far.send(good(ipaddress.ip_address("192.0.2.15")))  # between the two: it passes the kernel's filter
        far.send(good(FREE4))
        talk, gulps = wire._Talk(opened, asked, ()), 0
        while select.select([opened], [], [], 5 if not talk.taken else 0)[0]:
            talk.hear()
            gulps += 1
    assert talk.taken == {FREE4.packed: PEER}
    assert gulps > 2


def test_of_the_lans_frames_only_those_that_matter_come_in(peer: Elsewhere, far: socket.socket) -> None:
    with wire._open("shim", [FREE4.packed, FREE6.packed]) as opened:
        nearby = [ipaddress.ip_address(word) for word in ("192.0.2.19", "192.0.2.21", "2001:db8::1f", "2001:db8::21")]
        for frame in (*map(good, nearby), good(FREE4)[:12] + b"\x08\x00" + bytes(60), *map(good, (FREE4, FREE6))):
            far.send(frame)
        came = []
        while len(came) < 2 and select.select([opened], [], [], 10)[0]:
            came.append(opened.recv(2048))
    assert came == [good(FREE4), good(FREE6)]


def test_a_sweep_finds_the_three_that_answer(peer: Elsewhere) -> None:
    there = [ipaddress.ip_address(word) for word in ("192.0.2.1", "192.0.2.10", "192.0.2.254")]
    with peer.inside():
        for address in (there[0], there[2]):
            ip("addr add", f"{address}/24", "dev far")
    assert wire.sweep("shim", ipaddress.IPv4Network("192.0.2.0/24")) == dict.fromkeys(there, PEER)


def test_a_thousand_questions_overflow_no_queue(peer: Elsewhere) -> None:
    with peer.inside():
        # Broadcasts wait in a queue, which is a thousand long unless told otherwise, for the macvlans of a host.
        ip("link add guest link far address", GUEST, "type macvlan mode bridge bcqueuelen 40")
        ip("link set guest up")
        ip("route add local 198.18.0.0/22 dev lo")
        Path("/proc/sys/net/ipv4/conf/far/arp_ignore").write_text("8")
    found = wire.sweep("shim", ipaddress.IPv4Network("198.18.0.0/22"), pace=wire.Pace(2, 0.1, 0.2))
    assert (len(found), set(found.values())) == (1022, {GUEST})


def test_a_thousand_answers_are_all_heard(peer: Elsewhere) -> None:
    with peer.inside():
        ip("route add local 198.18.0.0/22 dev lo")
    with wire._open("shim", [ipaddress.ip_address(word).packed for word in ("198.18.0.0", "198.18.3.255")]) as opened:
        hosts = [address.packed for address in ipaddress.IPv4Network("198.18.0.0/22").hosts()]
        talk = wire._Talk(opened, hosts, ())
        left = hosts
        while left:
            left = talk.ask(left)
        # Nobody has listened until now: the answers waited.
        while talk.open_questions() and select.select([opened], [], [], 5)[0]:
            talk.hear()
    assert (len(talk.taken), set(talk.taken.values())) == (1022, {PEER})


def test_stopped_it_gives_what_was_heard_until_then(peer: Elsewhere, far: socket.socket) -> None:
    probing = wire.Probing("shim", [FREE4, TAKEN4], pace=wire.Pace(3, 0.2, 60))
    asked = [seen(far, b"\x08\x06")[38:42] for _ in range(4)]
    assert asked == [FREE4.packed, TAKEN4.packed, FREE4.packed, FREE4.packed], "what is known is not asked again"
    probing.stop()
    assert "probe-lan" not in {thread.name for thread in threading.enumerate()}
    assert probing.result() == {TAKEN4: PEER}
    probing.stop()


def test_stopped_before_it_began_it_says_nothing(peer: Elsewhere) -> None:
    probing = wire.Probing("shim", [FREE4], pace=wire.Pace(1, 0, 60, wait=60))
    probing.stop()
    assert probing.result() == {}


@pytest.mark.parametrize("device", ["eth9", "", "shim567890123456789"])
def test_no_such_link(peer: Elsewhere, device: str) -> None:
    ip("link add shim56789012345 link eth0 type macvlan mode bridge")  # what a name cut short would be
    ip("link set shim56789012345 up")
    with pytest.raises(NotFound, match=f"no link {device} ") as refused:
        wire.probe(device, [FREE4])
    assert refused.value.hint


def test_a_link_that_is_down(peer: Elsewhere) -> None:
    ip("link set shim down")
    with pytest.raises(Unable, match="shim is down") as refused:
        wire.Probing("shim", [FREE4, FREE6]).result()
    assert refused.value.hint == "ip link set shim up"


def test_a_link_that_was_down_when_it_was_bound_to(peer: Elsewhere) -> None:
    ip("link set shim down")
    with wire._open("shim", [TAKEN4.packed]) as opened:
        ip("link set shim up")
        talk = wire._Talk(opened, [TAKEN4.packed], ())
        wire._converse(talk, opened, SLOW, None)
    assert talk.taken == {TAKEN4.packed: PEER}


def test_a_link_without_ethernet() -> None:
    with pytest.raises(Unable, match="lo is no Ethernet link"):
        wire.probe("lo", [FREE4])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [("link del shim", NotFound, "no link shim"), ("link set shim down", Unable, "shim is down")],
)
@pytest.mark.parametrize("pace", [SLOW, wire.Pace(1, 0, 0.3)], ids=["between", "after"])
def test_a_link_that_goes_meanwhile(
    peer: Elsewhere, far: socket.socket, change: str, error: type[MacvmError], text: str, pace: wire.Pace
) -> None:
    probing = wire.Probing("shim", [FREE4], pace=pace)
    seen_question(far)
    ip(change)
    with pytest.raises(error, match=text):
        probing.result()


def test_without_rights(peer: Elsewhere) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            wire.probe("shim", [FREE4])
        except MacvmError as error:
            os.write(write, f"{type(error).__name__}: {error.message} ({error.hint})".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as told:
        text = told.read()
    os.waitpid(child, 0)
    assert text.startswith("Unable: asking the LAN on shim needs a raw socket, which wants CAP_NET_RAW (run as root")
