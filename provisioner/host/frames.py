"""Ethernet frames, and raw sockets that send and hear them: what asking the LAN and listening to guests have in common.

Addresses and MACs are bytes in network order here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from provisioner.errors import MacvmError, NotFound, Unable
from provisioner.host import bpf

# linux/if_ether.h, linux/if_arp.h, linux/if_packet.h, asm-generic/socket.h: what the socket module has no names for.
ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_ETH_P_ALL, _ARPHRD_ETHER = 0x0003, 1
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST, _PACKET_IGNORE_OUTGOING = 263, 1, 0, 23
_SO_RCVBUFFORCE = 33

ARP_REQUEST, ARP_REPLY = 1, 2
#: Messages and options of neighbour discovery (RFC 4861).
SOLICITATION, ADVERTISEMENT, SOURCE_MAC, TARGET_MAC = 135, 136, 1, 2
BROADCAST = b"\xff" * 6
#: What the addresses of all solicited-node groups begin with.
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")

#: Frames sent in one go and the seconds until the next ones: 4,000 a second, where a network card's queue holds 1,000
#: and so does a macvlan's queue of broadcasts.
BATCH, PAUSE = 16, 0.004

_RECEIVE_BUFFER = 1 << 20


def arp_probe(to: bytes, mac: bytes, address: bytes) -> bytes:
    """The question for an address that comes from 0.0.0.0 (RFC 5227, 2.1.1), so that nobody learns from it."""
    ethernet = to + mac + struct.pack(">H", ETH_P_ARP)
    head = struct.pack(">HHBBH", _ARPHRD_ETHER, ETH_P_IP, 6, 4, ARP_REQUEST)
    return ethernet + head + mac + bytes(4) + bytes(6) + address


def icmpv6(to: bytes, mac: bytes, source: bytes, destination: bytes, message: bytes, hop_by_hop: bytes = b"") -> bytes:
    """A message with its checksum filled in, behind hop-by-hop options where there are any: of six bytes, or of eight
    more for each step."""
    pseudo = source + destination + struct.pack(">II", len(message), socket.IPPROTO_ICMPV6)
    body = message[:2] + struct.pack(">H", _checksum(pseudo + message)) + message[4:]
    kind = socket.IPPROTO_ICMPV6
    if hop_by_hop:
        body = bytes((kind, len(hop_by_hop) // 8)) + hop_by_hop + body
        kind = socket.IPPROTO_HOPOPTS
    ip = struct.pack(">IHBB", 6 << 28, len(body), kind, 255) + source + destination
    return to + mac + struct.pack(">H", ETH_P_IPV6) + ip + body


def solicited_node(address: bytes) -> tuple[bytes, bytes]:
    """The MAC and the IPv6 address of the group in which an address is asked for (RFC 4291, 2.7.1; RFC 2464, 7)."""
    return b"\x33\x33\xff" + address[-3:], SOLICITED_NODE + address[-3:]


def _checksum(data: bytes) -> int:
    """RFC 1071; of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def options(data: bytes) -> dict[int, bytes] | None:
    """Options of neighbour discovery by their number; None where one is malformed, and so all of the frame."""
    found: dict[int, bytes] = {}
    while data:
        length = data[1] * 8 if len(data) > 1 else 0
        if not 0 < length <= len(data):
            return None
        found.setdefault(data[0], data[2:length])
        data = data[length:]
    return found


def is_unicast(mac: bytes) -> bool:
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


class Use(NamedTuple):
    """What a raw socket is for, in the words of its errors: there is no link … `at`; it is down: `down`; `needs` … a
    raw socket; the kernel refused to `do` it. `gone` is the error for a link that is not there."""

    at: str
    down: str
    needs: str
    do: str
    gone: type[NotFound] = NotFound


@contextmanager
def refusals(device: str, use: Use) -> Iterator[None]:
    """The kernel's errors as ours."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number in (errno.ENODEV, errno.ENXIO):
            raise use.gone(f"there is no link {device} {use.at}", "`ip link` shows all there are") from error
        if number == errno.ENETDOWN:
            raise Unable(f"{device} is down: {use.down}", f"ip link set {device} up") from error
        needs = f"{use.needs} {device} needs a raw socket, which"
        if number in (errno.EPERM, errno.EACCES):
            raise Unable(f"{needs} wants CAP_NET_RAW", "run as root: sudo macvm …") from error
        if number == errno.EAFNOSUPPORT:
            raise Unable(f"{needs} this kernel has not", "modprobe af_packet") from error
        reason = f"the kernel refused to {use.do} {device}: {errno.errorcode.get(number, str(error))}"
        raise MacvmError(reason, "`dmesg | tail` may say more") from error


def open_wire(device: str, program: bytes, groups: Iterable[bytes] = (), *, outgoing: bool) -> socket.socket:
    """A raw socket that hears what a filter keeps, with multicast to groups' MACs, and with what leaves by the device
    where that is asked for. Raises OSError (ENODEV for no such link), Unable for no Ethernet.

    One for all protocols with a filter rather than one for each: the kernel takes 8 to 16 ms to close one (seen), and
    this one also hears what a link with macvlans of its own hands on to them. Nothing comes in before the filter is in
    place, since only `bind` makes it hear.
    """
    try:
        index = socket.if_nametoindex(device)  # `bind` cuts a long name short, and takes "" for all links
    except OSError as error:  # which has no number
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), device) from error
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        bpf.attach(wire, program)
        if not outgoing:
            with suppress(OSError):  # since Linux 4.20; else our own MAC tells them
                wire.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        with suppress(PermissionError):  # CAP_NET_ADMIN; a few hundred answers fit without
            wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        wire.bind((device, _ETH_P_ALL))
        if wire.getsockname()[3] != _ARPHRD_ETHER:
            raise Unable(f"{device} is no Ethernet link, and has no LAN to ask", "`ip -d link` shows each link's kind")
        for group in groups:
            member = struct.pack("iHH8s", index, _PACKET_MR_MULTICAST, len(group), group)
            wire.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
    except BaseException:
        wire.close()
        raise
    return wire
