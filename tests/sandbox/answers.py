"""Asks the LAN for addresses, each many times over, and prints every MAC that ever answered: `address mac` a line.

By ARP and by neighbour solicitation as a machine asks that wants to talk, so with its own address. Runs on the LAN peer.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import sys
import time
from pathlib import Path

from provisioner.host import frames

#: How long the answers to one round may take, and to the last.
PAUSE, PATIENCE = 0.01, 0.5


def question(mac: bytes, own: bytes, address: bytes) -> bytes:
    if len(address) == 4:
        probe = frames.arp_probe(frames.BROADCAST, mac, address)
        return probe[:28] + own + probe[32:]
    group, destination = frames.solicited_node(address)
    asked = struct.pack(">BBHI", frames.SOLICITATION, 0, 0, 0) + address + bytes((frames.SOURCE_MAC, 1)) + mac
    return frames.icmpv6(group, mac, own, destination, asked)


def answer(frame: bytes) -> tuple[bytes, bytes] | None:
    """Address and MAC, of an ARP reply or an advertisement."""
    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02":
        return frame[28:32], frame[22:28]
    if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_ICMPV6 and frame[54] == frames.ADVERTISEMENT:
        return frame[62:78], frame[80:86]
    return None


def main(times: int, pairs: list[str]) -> None:
    mac = bytes.fromhex(Path("/sys/class/net/eth0/address").read_text().replace(":", ""))
    asked = [[ipaddress.ip_address(word).packed for word in pair.split(",")] for pair in pairs]
    found = set[tuple[bytes, bytes]]()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("eth0", 0))
        for left in reversed(range(times)):
            for own, address in asked:
                wire.send(question(mac, own, address))
            until = time.monotonic() + (PAUSE if left else PATIENCE)
            while (wait := until - time.monotonic()) > 0 and select.select([wire], [], [], wait)[0]:
                frame, place = wire.recvfrom(2048)
                if place[2] != socket.PACKET_OUTGOING and (one := answer(frame)):
                    found.add(one)
    for address, who in found:
        print(ipaddress.ip_address(address), who.hex(":"))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
