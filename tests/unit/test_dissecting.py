"""What one frame tells of a guest's addresses, byte by byte; and that none, however malformed, does harm."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.host import frames, hearing
from provisioner.host.dissecting import Heard, parse
from tests.unit.test_wire import arp, neighbour

GUEST, OTHER, SERVER = (f"52:54:00:00:00:{end}" for end in ("77", "78", "01"))
MAC, FOREIGN = (bytes.fromhex(mac.replace(":", "")) for mac in (GUEST, OTHER))
MACS = (GUEST, "52:54:00:00:00:55")
V4, V6 = ipaddress.ip_address("192.0.2.77"), ipaddress.ip_address("2001:db8::77")
LOCAL6, ROUTER6 = ipaddress.ip_address("fe80::77"), ipaddress.ip_address("2001:db8::1")

#: Written down field by field after RFC 2131, 2: a unicast acknowledgement to the guest.
ACK = bytes.fromhex(
    "525400000077 525400000001 0800"
    "45c0 011c 0000 0000 40 11 f35d c0000201 c000024d"
    "0043 0044 0108 0000"
    "02 01 06 00 01020304 0000 0000 00000000 c000024d c0000201 00000000 525400000077 00000000000000000000"
    + "00" * 192
    + "63825363 35 01 05 36 04 c0000201 33 04 00000078 ff 0000000000"
)


def dhcp(
    kind: int,
    *,
    given: str = "0.0.0.0",
    own: str = "0.0.0.0",
    requested: str = "",
    operation: int = 2,
    client: bytes = MAC,
    source: bytes = FOREIGN,
    to: bytes = b"\xff" * 6,
    ports: tuple[int, int] = (67, 68),
    options: bytes = b"",
    header: bytes = b"",
    fragment: int = 0,
) -> bytes:
    packed = [ipaddress.ip_address(word).packed for word in (own, given)]
    message = struct.pack(">4BIHH4s4s8x6s10x192x", operation, 1, 6, 0, 1, 0, 0, *packed, client)
    message += bytes.fromhex("63825363") + options + bytes((53, 1, kind))
    message += b"\x32\x04" + ipaddress.ip_address(requested).packed if requested else b""
    udp = struct.pack(">HHHH", *ports, 9 + len(message), 0) + message + b"\xff"
    size = 20 + len(header)
    ip = struct.pack(">BBHHHBBH8x", 0x40 | size // 4, 0, size + len(udp), 0, fragment, 64, 17, 0) + header
    return to + source + b"\x08\x00" + ip + udp


def option6(kind: int, data: bytes) -> bytes:
    return struct.pack(">HH", kind, len(data)) + data


def lease6(address: str = "2001:db8::77", valid: int = 120, inner: bytes = b"", beside: bytes = b"") -> bytes:
    given = ipaddress.ip_address(address).packed + struct.pack(">II", 60, valid) + inner
    return option6(3, struct.pack(">III", 1, 30, 60) + option6(5, given) + beside)


def dhcp6(kind: int, options: bytes, *, to: bytes = MAC, source: bytes = FOREIGN, server: bool = True) -> bytes:
    message = bytes((kind, 1, 2, 3)) + options
    ports = (547, 546) if server else (546, 547)
    udp = struct.pack(">HHHH", *ports, 8 + len(message), 0) + message
    ip = struct.pack(">IHBB", 6 << 28, len(udp), socket.IPPROTO_UDP, 64) + bytes(32)
    return to + source + b"\x86\xdd" + ip + udp


def advertises(flags: int = 0x20, **words: object) -> bytes:
    frame = bytearray(neighbour(mac=MAC, target=V6.packed, **words))  # type: ignore[arg-type]
    frame[58] = flags
    return bytes(frame)


def solicits(source: object = V6, options: bytes = b"", mac: bytes = MAC) -> bytes:
    packed = ipaddress.ip_address(str(source)).packed
    return neighbour(135, ROUTER6.packed, options, mac=mac, source=packed)


REFUSED = option6(13, b"\0\2no")

SAID = [
    (arp(MAC, V4.packed, operation=1), "192.0.2.77", "arp"),
    (arp(MAC, V4.packed, operation=2), "192.0.2.77", "arp"),
    (arp(MAC, V4.packed, V4.packed, operation=1), "192.0.2.77", "arp"),  # gratuitous
    (arp(MAC, bytes((169, 254, 3, 4)), operation=1), "169.254.3.4", "arp"),
    (arp(MAC, V4.packed) + bytes(18), "192.0.2.77", "arp"),  # filled up
    (advertises(), "2001:db8::77", "nd"),
    (advertises(source=LOCAL6.packed), "2001:db8::77", "nd"),
    (advertises(0x40, source=V6.packed), "2001:db8::77", "nd"),  # to a neighbour that only makes sure
    (advertises(options=b"\x02\x01" + MAC), "2001:db8::77", "nd"),
    (solicits(), "2001:db8::77", "nd"),
    (solicits(options=b"\x01\x01" + MAC), "2001:db8::77", "nd"),
    (solicits(LOCAL6), "fe80::77", "nd"),
]

NOT_SAID = [
    arp(MAC, bytes(4), V4.packed, operation=1),  # a probe
    arp(MAC, V4.packed, operation=3),
    arp(MAC, bytes((127, 0, 0, 1)), operation=1),
    arp(MAC, bytes((224, 0, 0, 1)), operation=1),
    arp(MAC, b"\xff" * 4, operation=1),
    arp(MAC, bytes((0, 1, 2, 3)), operation=1),
    arp(FOREIGN, V4.packed, operation=1),  # another's
    arp(MAC, V4.packed)[:22] + FOREIGN + arp(MAC, V4.packed)[28:],  # of another, as of a virtual router
    arp(MAC, V4.packed, head="0006 0800 06 04"),
    arp(MAC, V4.packed)[:12] + b"\x81\x00\x00\x32" + arp(MAC, V4.packed)[12:],
    advertises(0x40, source=LOCAL6.packed),  # for another, by proxy
    advertises(options=b"\x02\x01" + FOREIGN),
    advertises(code=1),
    advertises(hops=64),
    advertises(length=23),
    advertises(options=b"\x02\x00" + MAC),
    neighbour(mac=MAC, target=bytes(15) + b"\1"),
    neighbour(mac=MAC, target=frames.SOLICITED_NODE + bytes(3)),
    neighbour(mac=MAC, header=17),
    neighbour(mac=FOREIGN),
    neighbour(134, mac=MAC),  # a router's advertisement
    solicits("::"),  # duplicate address detection
    solicits(options=b"\x01\x01" + FOREIGN),
    solicits(mac=FOREIGN),
    MAC[:6] + MAC + b"\x08\x00" + bytes(60),
]


@pytest.mark.parametrize(("frame", "address", "how"), SAID)
def test_what_a_guest_says_of_itself(frame: bytes, address: str, how: str) -> None:
    assert parse(frame, True, MACS) == [Heard(GUEST, ipaddress.ip_address(address), how)]
    assert parse(frame, False, MACS) == [], "what comes in with the guest's MAC is another's"
    assert parse(frame, True, (OTHER,)) == []


@pytest.mark.parametrize("frame", NOT_SAID)
def test_what_is_no_word_of_its_own(frame: bytes) -> None:
    assert parse(frame, True, MACS) == []
    assert parse(frame, False, MACS) == []


GIVEN = Heard(GUEST, V4, "dhcp")
GIVEN6 = Heard(GUEST, V6, "dhcp")

ANSWERS = [
    (ACK, [GIVEN]),
    (dhcp(5, given="192.0.2.77"), [GIVEN]),
    (dhcp(5, given="192.0.2.77", to=MAC), [GIVEN]),
    (dhcp(5, given="192.0.2.77", header=bytes(8)), [GIVEN]),
    (dhcp(5, given="192.0.2.77", options=b"\0\0\x0c\x02hi"), [GIVEN]),
    (dhcp(6), [Heard(GUEST, ipaddress.ip_address("0.0.0.0"), "dhcp", True)]),
    (dhcp6(7, lease6()), [GIVEN6]),
    (dhcp6(7, option6(1, b"who") + option6(13, b"\0\0fine") + lease6()), [GIVEN6]),
    (dhcp6(7, lease6() + lease6("2001:db8::78")), [GIVEN6, GIVEN6._replace(address=V6 + 1)]),
    (dhcp6(7, lease6(valid=0)), [GIVEN6._replace(lost=True)]),
    (dhcp6(7, lease6(inner=REFUSED)), []),
    (dhcp6(7, lease6(beside=REFUSED)), []),
    (dhcp6(7, lease6() + REFUSED), []),
    (dhcp6(2, lease6()), []),  # an offer
    (dhcp6(7, lease6(), to=FOREIGN), []),
    (dhcp6(7, lease6("ff02::1")), []),
    (dhcp6(7, lease6(), server=False), []),
    (dhcp(2, given="192.0.2.77"), []),  # an offer
    (dhcp(5), []),  # to an INFORM
    (dhcp(5, given="192.0.2.77", client=FOREIGN), []),
    (dhcp(5, given="192.0.2.77", operation=1), []),
    (dhcp(5, given="192.0.2.77", ports=(68, 67)), []),
    (dhcp(5, given="192.0.2.77", fragment=0x2000), []),
    (dhcp(5, given="192.0.2.77", fragment=1), []),
    (dhcp(5, given="192.0.2.77", options=b"\x0c\xffhi"), []),
    (dhcp(5, given="192.0.2.77", options=b"\xff"), []),
    (dhcp(5, given="127.0.0.1"), []),
]


@pytest.mark.parametrize(("frame", "told"), ANSWERS)
def test_what_a_dhcp_server_tells_a_guest(frame: bytes, told: list[Heard]) -> None:
    assert parse(frame, False, MACS) == told
    assert parse(frame[:6] + MAC + frame[12:], True, MACS) == [], "a guest that serves DHCP itself"


LOST, LOST6 = GIVEN._replace(lost=True), GIVEN6._replace(lost=True)


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (dhcp(7, own="192.0.2.77", operation=1, source=MAC, ports=(68, 67)), [LOST]),
        (dhcp(4, requested="192.0.2.77", operation=1, source=MAC, ports=(68, 67)), [LOST]),
        (dhcp(4, operation=1, source=MAC, ports=(68, 67)), []),
        (dhcp(3, requested="192.0.2.77", operation=1, source=MAC, ports=(68, 67)), []),
        (dhcp(7, own="192.0.2.77", operation=1, source=MAC, ports=(68, 67), client=FOREIGN), []),
        (dhcp6(8, lease6(), source=MAC, server=False), [LOST6]),
        (dhcp6(9, lease6(), source=MAC, server=False), [LOST6]),
        (dhcp6(3, lease6(), source=MAC, server=False), []),
        (dhcp6(8, lease6(), source=MAC), []),
    ],
)
def test_what_a_guest_gives_back(frame: bytes, told: list[Heard]) -> None:
    assert parse(frame, True, MACS) == told
    assert parse(frame, False, MACS) == []


WHOLE = [(frame, True) for frame, *_ in SAID] + [(frame, False) for frame, told in ANSWERS if told]


@pytest.mark.parametrize(("whole", "outgoing"), WHOLE)
def test_a_frame_that_is_cut_off_tells_nothing(whole: bytes, outgoing: bool) -> None:
    end = 14 + int.from_bytes(whole[16:18]) if whole[12:14] == b"\x08\x00" else len(whole)
    padding = 18 if len(whole) == 60 else 0
    for length in range(min(end, len(whole)) - padding):
        assert parse(whole[:length], outgoing, MACS) == []


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_do_no_harm(frame: bytes, outgoing: bool) -> None:
    parse(frame, outgoing, MACS)


@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(12, 400), st.integers(0, 255)), max_size=8))
def test_frames_with_bytes_changed_do_no_harm(whole: tuple[bytes, bool], changes: list[tuple[int, int]]) -> None:
    frame = bytearray(whole[0])
    for place, byte in changes:
        frame[place % len(frame)] = byte
    assert {said.mac for said in parse(bytes(frame), whole[1], MACS)} <= set(MACS)


@given(st.binary(max_size=80), st.sampled_from([b"\x08\x06", b"\x86\xdd", b"\x08\x00"]), st.booleans())
def test_random_packets_do_no_harm(packet: bytes, kind: bytes, outgoing: bool) -> None:
    parse(MAC + MAC + kind + packet, outgoing, MACS)


def test_made_up_sources_are_in_their_network_and_of_one_group() -> None:
    for word in ("fe80::/64", "2001:db8::/64", "2001:db8:0:0:1::/104", "2001:db8::/48"):
        network = ipaddress.IPv6Network(word)
        one, other = (hearing._nobody(MAC, network) for _ in range(2))
        assert ipaddress.ip_address(one) in network
        assert one[13:] == MAC[3:]
        assert one != other or network.prefixlen == 104


def test_the_question_to_the_guest_alone() -> None:
    assert frames.arp_probe(MAC, FOREIGN, V4.packed) == bytes.fromhex(
        "525400000077 525400000078 0806 0001 0800 06 04 0001 525400000078 00000000 000000000000 c000024d"
    )
    frame = hearing._echo(MAC, FOREIGN, ipaddress.IPv6Network("fe80::/64"), bytes.fromhex("800400000000"))
    assert frame[:22] == MAC + FOREIGN + bytes.fromhex("86dd 60000000 0010 00 ff")
    assert frame[54:64] == bytes.fromhex("3a00 8004 00000000 8000")
    covered = frame[22:54] + struct.pack(">II", 8, 58) + frame[62:]
    assert sum(struct.unpack(f">{len(covered) // 2}H", covered)) % 0xFFFF == 0
