"""How long after the first frame that tells a guest's address `macvm ip --wait` has printed it and ended.

The guest asks a DHCP server that is not there yet. While it is waited for the server comes, and everything on the
guest's own macvtap is read beside macvm.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from tests.bench.sides import MACVM, output

_CREATE = [MACVM, "create", "heard", "--ip", "dhcp", "--image", "tiny", "--virt-type", "qemu", "--quiet"]
_SERVER = [MACVM, "sandbox", "lan", "--", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]
_SERVER += ["--user=", "--interface=eth0", "--bind-interfaces", "--no-ping", "--leasefile-ro", "--pid-file"]
_SERVER += ["--dhcp-range=192.0.2.150,192.0.2.199"]

_EVERYTHING = 0x0003  # ETH_P_ALL, linux/if_ether.h
_LONGEST = 60.0


class Row(NamedTuple):
    """Milliseconds: the median and the worst."""

    title: str
    usual: float
    worst: float
    goal: str


def row(rounds: int) -> Row:
    """Wants the tiny image. Raises CalledProcessError."""
    spent = [_once() * 1000 for _ in range(rounds)]
    return Row("ip --wait after the frame", median(spent), max(spent), "under 100 ms")


def _once() -> float:
    output(_CREATE)
    try:
        nic = json.loads(output([MACVM, "show", "heard", "-o", "json"]))["nics"][0]
        with _listening(nic["device"], bytes.fromhex(nic["mac"].replace(":", ""))) as told:
            asked = subprocess.Popen([MACVM, "ip", "heard", "--wait", "60"], stdout=subprocess.PIPE)
            # Until it listens too; and the guest is booting anyway.
            time.sleep(2)
            server = subprocess.Popen(_SERVER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                asked.communicate(timeout=_LONGEST)
                ended = time.monotonic()
            finally:
                server.terminate()
                server.wait()
    finally:
        output([MACVM, "delete", "--yes", "--quiet", "heard"])
    if asked.returncode or not told:
        raise subprocess.CalledProcessError(asked.returncode, asked.args, stderr="no frame told the address")
    return ended - told[0]


@contextmanager
def _listening(device: str, mac: bytes) -> Iterator[list[float]]:
    """When the frames came that tell the address of who has the MAC."""
    told: list[float] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING)) as wire:
        wire.bind((device, _EVERYTHING))
        wire.settimeout(0.2)
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                try:
                    frame = wire.recv(2048)
                except TimeoutError:
                    continue
                if _tells(frame, mac):
                    told.append(time.monotonic())

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield told
        finally:
            done.set()
            listener.join()


def _tells(frame: bytes, mac: bytes) -> bool:
    """An ARP packet of the guest's with an address of its own, or a DHCP server's acknowledgement to it."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return frame[22:28] == mac and any(frame[28:32])
    is_reply = kind == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP and frame[34:38] == b"\x00\x43\x00\x44"
    # RFC 2131: the client's MAC 28 bytes into the message; RFC 2132: option 53 of length 1, of which 5 is DHCPACK.
    return is_reply and frame[70:76] == mac and b"\x35\x01\x05" in frame[278:]
