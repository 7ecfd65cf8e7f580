"""Sends a ping, a broadcast and a neighbour solicitation between stations of a sandbox, and counts what arrives.

Runs on the switch's node, from where every node's processes are seen, and so every network namespace; all sockets are
this one process's. Takes JSON on standard input: `stations`, each with the path of its network namespace, its device
and its two addresses, and `pairs` of their names. Writes a list of JSON objects, one for each pair in that order: how
often each probe of the first station's arrived at the second, and at the first for the pings' answers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

from provisioner.host import namespaces

ETH_P_ALL, ETH_P_ARP, ETH_P_IPV6 = 3, 0x0806, 0x86DD
#: IEEE 802's number for local experiments: no program answers it.
ETH_P_EXPERIMENT = 0x88B5
PACKET_OUTGOING = 4
BROADCAST = b"\xff" * 6
UNKNOWN = bytes(6)

#: How long the answers may take: many times what they do take, since a busy machine runs the kernel's queues late.
PATIENCE = 1.5


@dataclass
class Station:
    device: str
    v4: str
    v6: str
    wire: socket.socket
    echo4: socket.socket
    echo6: socket.socket

    @property
    def mac(self) -> bytes:
        return bytes(self.wire.getsockname()[4])


def open_station(facts: dict[str, str]) -> Station:
    """Its sockets; a socket stays in the network namespace that it was made in."""
    space = os.open(facts["netns"], os.O_RDONLY)
    namespaces.setns(space, namespaces.CLONE_NEWNET)
    os.close(space)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    wire.bind((facts["device"], 0))
    echo4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    echo6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    for opened in (wire, echo4, echo6):
        opened.setblocking(False)
    return Station(facts["device"], facts["v4"], facts["v6"], wire, echo4, echo6)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(kind: int, number: int) -> bytes:
    """ICMP 8 or ICMPv6 128; the kernel fills in the checksum of the latter."""
    message = struct.pack(">BBHHH", kind, 0, 0, number, 1)
    return message[:2] + struct.pack(">H", checksum(message)) + message[4:]


def arp_request(mac: bytes, number: int) -> bytes:
    """As RFC 5227 probes: nobody learns from it, and nobody has the address (RFC 2544's) that it asks for."""
    asked = bytes([198, 18, *number.to_bytes(2)])
    return BROADCAST + mac + struct.pack(">HHHBBH", ETH_P_ARP, 1, 0x0800, 6, 4, 1) + mac + bytes(4) + UNKNOWN + asked


def solicitation(mac: bytes, target: str, number: int) -> bytes:
    """To the target's own multicast group, but for an address that differs above its last 24 bits: no answer."""
    low = ipaddress.IPv6Address(target).packed[13:]
    asked = bytes.fromhex("20010db8ffff") + number.to_bytes(2) + bytes(5) + low
    group = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + low
    source = bytes.fromhex("fe80000000000000") + mac[:3] + b"\xff\xfe" + mac[3:]
    message = struct.pack(">BBHI", 135, 0, 0, 0) + asked
    total = checksum(source + group + struct.pack(">II", len(message), 58) + message)
    message = message[:2] + struct.pack(">H", total) + message[4:]
    packet = struct.pack(">IHBB", 6 << 28, len(message), 58, 255) + source + group + message
    return b"\x33\x33\xff" + low + mac + struct.pack(">H", ETH_P_IPV6) + packet


def what_is(frame: bytes) -> tuple[str, int] | None:
    """Which probe a frame is, and of which pair."""
    kind = int.from_bytes(frame[12:14])
    if kind == ETH_P_EXPERIMENT:
        return "known", int.from_bytes(frame[14:16])
    if kind == ETH_P_ARP and frame[38:40] == bytes([198, 18]):
        return "arp", int.from_bytes(frame[40:42])
    if kind == ETH_P_IPV6 and frame[54:55] == b"\x87" and frame[62:68] == bytes.fromhex("20010db8ffff"):
        return "ns", int.from_bytes(frame[68:70])
    return None


def receive(station: Station, which: socket.socket) -> tuple[str, int] | None:
    data, sender = which.recvfrom(2048)
    if which is station.wire:
        return None if sender[2] == PACKET_OUTGOING else what_is(data)
    if which is station.echo4:
        answer = data[(data[0] & 15) * 4 :]
        return ("ping4", int.from_bytes(answer[4:6])) if answer[0] == 0 else None
    return ("ping6", int.from_bytes(data[4:6])) if data[0] == 129 else None


def measure(stations: dict[str, Station], pairs: list[list[str]]) -> list[dict[str, int]]:
    """Sends everything at once and listens for PATIENCE."""
    found = [dict.fromkeys(("ping4", "ping6", "known", "arp", "ns"), 0) for _ in pairs]
    owners = {
        opened: (name, station)
        for name, station in stations.items()
        for opened in (station.wire, station.echo4, station.echo6)
    }
    for number, (sender, receiver) in enumerate(pairs):
        one, other = stations[sender], stations[receiver]
        one.wire.send(arp_request(one.mac, number))
        one.wire.send(solicitation(one.mac, other.v6, number))
        one.wire.send(other.mac + one.mac + struct.pack(">HH", ETH_P_EXPERIMENT, number) + bytes(46))
        one.echo4.sendto(echo_request(8, number), (other.v4, 0))
        one.echo6.sendto(echo_request(128, number), (other.v6, 0))
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select(list(owners), [], [], left)
        for opened in readable:
            name, station = owners[opened]
            heard = None
            with contextlib.suppress(OSError):  # "no route to host" of a ping before
                heard = receive(station, opened)
            if heard is None:
                continue
            what, number = heard
            # A pings' answer counts where it was asked, everything else where it was meant to go.
            if name == pairs[number][0 if what.startswith("ping") else 1]:
                found[number][what] += 1
    return found


def main() -> None:
    asked: dict[str, Any] = json.load(sys.stdin)
    stations = {name: open_station(facts) for name, facts in asked["stations"].items()}
    json.dump(measure(stations, asked["pairs"]), sys.stdout)


if __name__ == "__main__":
    main()
