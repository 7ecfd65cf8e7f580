"""The frames that ask for an address, byte by byte, and what other frames say about one."""

from __future__ import annotations

import ipaddress
import os
import struct

import pytest

from provisioner.errors import Usage
from provisioner.host import wire

OURS = bytes.fromhex("525400000001")
THEIRS = bytes.fromhex("525400000099")
NONCE = bytes.fromhex("0102030405ff")
V4 = ipaddress.ip_address("192.0.2.77").packed
V6 = ipaddress.ip_address("2001:db8::1234:5678").packed
NOBODY4, NOBODY6 = bytes(4), bytes(16)
ALL_NODES = ipaddress.ip_address("ff02::1").packed


def arp(
    mac: bytes = THEIRS,
    sender: bytes = V4,
    target: bytes = NOBODY4,
    operation: int = 2,
    head: str = "0001080006 04",
) -> bytes:
    body = bytes.fromhex(head) + struct.pack(">H", operation) + mac + sender + OURS + target
    return OURS + mac + b"\x08\x06" + body


def neighbour(
    kind: int = 136,
    target: bytes = V6,
    options: bytes = b"",
    *,
    mac: bytes = THEIRS,
    source: bytes = V6,
    destination: bytes = ALL_NODES,
    code: int = 0,
    hops: int = 255,
    length: int | None = None,
    version: int = 6,
    header: int = 58,
) -> bytes:
    """With no checksum: `claim` looks at none."""
    message = struct.pack(">BBHI", kind, code, 0, 0) + target + options
    size = len(message) if length is None else length
    ip = struct.pack(">IHBB", version << 28, size, header, hops) + source + destination
    return bytes.fromhex("333300000001") + mac + b"\x86\xdd" + ip + message


def solicitation(options: bytes = b"", *, source: bytes = NOBODY6, destination: bytes | None = None) -> bytes:
    group = ipaddress.ip_address("ff02::1:ff34:5678").packed
    return neighbour(135, V6, options, source=source, destination=destination or group)


def test_the_arp_probe_is_rfc_5227s() -> None:
    assert wire.arp_probe(OURS, V4) == bytes.fromhex(
        "ffffffffffff 525400000001 0806"
        "0001 0800 06 04 0001"
        "525400000001 00000000"  # from 0.0.0.0
        "000000000000 c000024d"
    )


def test_the_solicitation_is_that_of_duplicate_address_detection() -> None:
    assert wire.solicitation(OURS, V6, NONCE) == bytes.fromhex(
        "3333ff345678 525400000001 86dd"
        "60000000 0020 3a ff"
        "00000000000000000000000000000000"  # from ::
        "ff0200000000000000000001ff345678"
        "87 00 7588 00000000"
        "20010db8000000000000000012345678"
        "0e 01 0102030405ff"  # RFC 7527's nonce, and no link-layer address
    )


@pytest.mark.parametrize("address", ["2001:db8::", "fe80::ffff:ffff:ffff:ffff", "fd00:ffff:ffff::ff00:1"])
def test_the_checksum_sums_up_to_all_ones(address: str) -> None:
    frame = wire.solicitation(OURS, ipaddress.ip_address(address).packed, NONCE)
    covered = frame[22:54] + struct.pack(">II", 32, 58) + frame[54:]
    total = sum(struct.unpack(f">{len(covered) // 2}H", covered))
    assert total % 0xFFFF == 0


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (arp(), wire.Claim(V4, THEIRS)),
        (arp(operation=1, target=bytes(4)), wire.Claim(V4, THEIRS)),
        (arp(operation=1, target=V4), wire.Claim(V4, THEIRS)),  # gratuitous
        (arp(operation=1, sender=NOBODY4, target=V4), wire.Claim(V4, THEIRS)),  # another's probe
        (arp() + bytes(18), wire.Claim(V4, THEIRS)),  # filled up to Ethernet's 60 bytes
        (neighbour(), wire.Claim(V6, THEIRS)),
        (neighbour() + bytes(6), wire.Claim(V6, THEIRS)),
        (neighbour(options=b"\x02\x01" + OURS), wire.Claim(V6, OURS)),
        (neighbour(options=b"\x02\x01" + bytes(6)), wire.Claim(V6, THEIRS)),
        (neighbour(options=b"\xfe\x02" + bytes(14) + b"\x02\x01" + OURS), wire.Claim(V6, OURS)),
        (solicitation(), wire.Claim(V6, THEIRS)),
        (solicitation(b"\x0e\x01" + NONCE), wire.Claim(V6, THEIRS, NONCE)),
        (wire.arp_probe(OURS, V4), wire.Claim(V4, OURS)),
        (wire.solicitation(OURS, V6, NONCE), wire.Claim(V6, OURS, NONCE)),
    ],
)
def test_who_claims_an_address(frame: bytes, said: wire.Claim) -> None:
    assert wire.claim(frame) == said


@pytest.mark.parametrize(
    "frame",
    [
        arp(operation=3),
        arp(sender=NOBODY4, target=V4),  # an answer from nobody
        arp(mac=bytes(6)),
        arp(mac=b"\xff" * 6),
        arp(head="0006 0800 06 04"),
        arp(head="0001 86dd 06 04"),
        arp(head="0001 0800 08 04"),
        arp(head="0001 0800 06 10"),
        arp()[:12] + b"\x81\x00\x00\x32" + arp()[12:],
        arp()[:12] + b"\x88\xa8\x00\x32" + arp()[12:],
        arp()[:12] + b"\x88\xb5" + arp()[14:],
        neighbour(hops=64),
        neighbour(code=1),
        neighbour(kind=134),
        neighbour(version=4),
        neighbour(header=17),
        neighbour(target=ALL_NODES),
        neighbour(length=23),
        neighbour(length=25),
        neighbour(options=b"\x02\x00" + OURS),
        neighbour(options=b"\x02\x02" + OURS),
        neighbour(options=b"\x02"),
        neighbour(mac=b"\x33" * 6),
        neighbour()[:12] + b"\x81\x00\x00\x32" + neighbour()[12:],
        solicitation(source=ipaddress.ip_address("2001:db8::7").packed),  # which looks for its neighbour
        solicitation(destination=ALL_NODES),
    ],
)
def test_what_claims_nothing(frame: bytes) -> None:
    assert wire.claim(frame) is None


@pytest.mark.parametrize(
    "whole", [arp(), neighbour(options=b"\x02\x01" + OURS), solicitation(b"\x0e\x01" + NONCE)], ids=["arp", "na", "ns"]
)
def test_a_frame_that_is_cut_off_claims_nothing(whole: bytes) -> None:
    assert wire.claim(whole)
    assert [length for length in range(len(whole)) if wire.claim(whole[:length])] == []


def test_no_frame_is_too_strange_to_read() -> None:
    for _ in range(300):
        noise = os.urandom(90)
        for kind in (arp(), neighbour(), solicitation()):
            at = noise[0] % len(kind)
            wire.claim(kind[:at] + noise[: noise[1] % 90] + kind[at:])
            wire.claim(kind[:54] + noise[: noise[2] % 90])


def test_the_full_timing_is_rfc_5227s() -> None:
    pace = wire.RFC
    assert (pace.wait, pace.packets, pace.spacing, pace.spacing + pace.jitter, pace.listen) == (1, 3, 1, 2, 2)


def test_three_packets_in_300_ms() -> None:
    pace = wire.FAST
    assert pace.packets == 3
    assert pace.wait + (pace.packets - 1) * (pace.spacing + pace.jitter) + pace.listen == pytest.approx(0.3)


def test_no_network_of_more_than_1024_addresses_is_swept() -> None:
    with pytest.raises(Usage, match=r"10\.0\.0\.0/21 has 2048 addresses") as refused:
        wire.sweep("eth0", ipaddress.IPv4Network("10.0.0.0/21"))
    assert "10.0.0.0/22" in refused.value.hint


def test_nothing_is_asked_for_no_address() -> None:
    assert wire.probe("no-such-link", []) == {}
    assert wire.Probing("no-such-link", []).result() == {}
