"""What a frame tells of a guest's addresses.

Believed is what a guest says of itself: an ARP or neighbour message that carries its own MAC, and what a DHCP server
gave to that MAC. The source of an IP packet is no evidence, for a router sends others' packets on. One thing cannot be
told apart: an ARP *answer* of a guest with proxy ARP for somebody else's address looks like one for its own. It does
not answer `hearing.ask` so.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

from provisioner.host import frames
from provisioner.model.nic import Address

_ARP_HEAD = bytes.fromhex("000108000604")
_OVERRIDE = 0x20

#: RFC 2131, RFC 2132.
_COOKIE = bytes.fromhex("63825363")
SERVER, CLIENT = 67, 68
_REQUESTED, _MESSAGE = 50, 53
_DECLINE, _ACK, _NAK, _RELEASE = b"\4", b"\5", b"\6", b"\7"
#: RFC 8415.
SERVER6, CLIENT6 = 547, 546
_REPLY6, _RELEASE6, _DECLINE6 = 7, 8, 9
_IA_NA, _IA_ADDRESS, _STATUS = 3, 5, 13


class Heard(NamedTuple):
    """An address of the guest with this MAC. `how` is "arp", "nd" or "dhcp".

    With `lost` it has it no longer: it gave it back or declined it, or a DHCP server refused it; the server does not
    say which, so that 0.0.0.0 then stands for whatever IPv4 address DHCP gave to the guest before.
    """

    mac: str
    address: Address
    how: str
    lost: bool = False


def parse(frame: bytes, outgoing: bool, macs: Collection[str]) -> list[Heard]:
    """What an Ethernet frame tells of the addresses of the guests with these MACs, in lower case; nothing for most.

    `outgoing` is whether it comes from a guest: outgoing on a macvtap, incoming on a shim. Probes and duplicate address
    detection (RFC 5227, RFC 4862) tell nothing: somebody may yet object.
    """
    # Whoever learns the guest's address hears it from the guest's own MAC, never from another that says it is its.
    speaker = frame[6:12].hex(":")
    if outgoing and speaker not in macs:
        return []
    match frame[12:14]:
        case b"\x08\x06" if outgoing:
            return _arp(frame, speaker)
        case b"\x08\x00":
            ports, message = _udp4(frame)
            if outgoing:
                return _dhcp_given_back(message, speaker) if ports == (CLIENT, SERVER) else []
            return _dhcp_answer(message, macs) if ports == (SERVER, CLIENT) else []
        case b"\x86\xdd":
            header, payload = _ipv6(frame)
            if header == socket.IPPROTO_ICMPV6 and outgoing:
                return _neighbour(frame, payload, speaker)
            if header == socket.IPPROTO_UDP:
                return _dhcp6(payload, speaker if outgoing else "", frame[:6].hex(":"), macs)
    return []


def _arp(frame: bytes, speaker: str) -> list[Heard]:
    if len(frame) < 42 or frame[14:20] != _ARP_HEAD or frame[22:28] != frame[6:12]:
        return []
    if int.from_bytes(frame[20:22]) not in (frames.ARP_REQUEST, frames.ARP_REPLY):
        return []
    return _heard(speaker, frame[28:32], "arp")


def _heard(mac: str, packed: bytes, how: str, *, lost: bool = False) -> list[Heard]:
    """Nothing for what is no host's own address."""
    address = ipaddress.ip_address(packed)
    no_host = address.is_unspecified or address.is_multicast or address.is_loopback
    if no_host or (address.version == 4 and (packed[0] == 0 or packed[0] >= 240)):
        return []
    return [Heard(mac, address, how, lost)]


def _ipv6(frame: bytes) -> tuple[int, bytes]:
    """The kind of what an IPv6 packet carries, and that; (-1, b"") for none that is whole."""
    length = int.from_bytes(frame[18:20])
    if len(frame) < 54 + length or frame[14] >> 4 != 6:
        return -1, b""
    return frame[20], frame[54 : 54 + length]


def _neighbour(frame: bytes, message: bytes, speaker: str) -> list[Heard]:
    """Of an advertisement the target, of a solicitation the source; with the checks of RFC 4861, 7.1, but for the
    checksum, which a guest leaves to a card that the frame never comes to."""
    options = frames.options(message[24:])
    if len(message) < 24 or frame[21] != 255 or message[1] != 0 or options is None:
        return []
    source, target, mac = frame[22:38], message[8:24], frame[6:12]
    if message[0] == frames.SOLICITATION:
        return _heard(speaker, source, "nd") if options.get(frames.SOURCE_MAC, mac)[:6] == mac else []
    if message[0] != frames.ADVERTISEMENT or options.get(frames.TARGET_MAC, mac)[:6] != mac:
        return []
    # A proxy answers from its own address, and without the override flag (RFC 4861, 7.2.8), as for anycast.
    return _heard(speaker, target, "nd") if source == target or message[4] & _OVERRIDE else []


def _udp(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Both ports, source first, and the message; (0, 0) and b"" for none that is whole."""
    length = int.from_bytes(data[4:6])
    if not 8 <= length <= len(data):
        return (0, 0), b""
    return (int.from_bytes(data[:2]), int.from_bytes(data[2:4])), data[8:length]


def _udp4(frame: bytes) -> tuple[tuple[int, int], bytes]:
    header, length = (frame[14] & 0x0F) * 4 if len(frame) >= 34 else 0, int.from_bytes(frame[16:18])
    whole = 20 <= header <= length <= len(frame) - 14 and not int.from_bytes(frame[20:22]) & 0x3FFF
    if not whole or frame[14] >> 4 != 4 or frame[23] != socket.IPPROTO_UDP:
        return (0, 0), b""
    return _udp(frame[14 + header : 14 + length])


def _dhcp_options(message: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 240
    while at + 1 < len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        end = at + 2 + message[at + 1]
        if end > len(message):
            break
        found.setdefault(message[at], message[at + 2 : end])
        at = end
    return found


def _dhcp_client(message: bytes, operation: int) -> str:
    """The MAC of the client that a DHCP message is from (1) or for (2); empty for anything else."""
    if len(message) < 240 or message[:3] != bytes((operation, 1, 6)) or message[236:240] != _COOKIE:
        return ""
    return message[28:34].hex(":")


def _dhcp_answer(message: bytes, macs: Collection[str]) -> list[Heard]:
    client = _dhcp_client(message, 2)
    if client not in macs:
        return []
    kind = _dhcp_options(message).get(_MESSAGE)
    if kind == _ACK:  # the one to an INFORM gives no address
        return _heard(client, message[16:20], "dhcp")
    return [Heard(client, IPv4Address(0), "dhcp", lost=True)] if kind == _NAK else []


def _dhcp_given_back(message: bytes, speaker: str) -> list[Heard]:
    if _dhcp_client(message, 1) != speaker:
        return []
    options = _dhcp_options(message)
    kind, requested = options.get(_MESSAGE), options.get(_REQUESTED, b"")
    if kind == _RELEASE:
        return _heard(speaker, message[12:16], "dhcp", lost=True)
    return _heard(speaker, requested, "dhcp", lost=True) if kind == _DECLINE and len(requested) == 4 else []


def _dhcp6(payload: bytes, speaker: str, receiver: str, macs: Collection[str]) -> list[Heard]:
    """Of a reply to one of the guests by its MAC: a client's identifier may hold the MAC of another of its NICs."""
    ports, message = _udp(payload)
    kind = message[0] if message else 0
    if speaker:
        if ports != (CLIENT6, SERVER6) or kind not in (_RELEASE6, _DECLINE6):
            return []
        return [said for address, _ in _leases6(message) for said in _heard(speaker, address, "dhcp", lost=True)]
    if ports != (SERVER6, CLIENT6) or kind != _REPLY6 or receiver not in macs:
        return []
    return [said for address, valid in _leases6(message) for said in _heard(receiver, address, "dhcp", lost=valid == 0)]


def _leases6(message: bytes) -> Iterator[tuple[bytes, int]]:
    """Addresses that a message is about, each with the seconds that it is given for; none of what is refused."""
    options = list(_dhcp6_options(message[4:]))
    if _refused(options):
        return
    for kind, association in options:
        inner = list(_dhcp6_options(association[12:])) if kind == _IA_NA else []
        if not _refused(inner):
            for number, data in inner:
                if number == _IA_ADDRESS and len(data) >= 24 and not _refused(list(_dhcp6_options(data[24:]))):
                    yield data[:16], int.from_bytes(data[20:24])


def _refused(options: list[tuple[int, bytes]]) -> bool:
    return any(kind == _STATUS and data[:2] != b"\0\0" for kind, data in options)


def _dhcp6_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        end = 4 + int.from_bytes(data[2:4])
        if end > len(data):
            return
        yield int.from_bytes(data[:2]), data[4:end]
        data = data[end:]
