"""Whether the switch sends frames back out of the port that they came in by, as VEPA needs: measured with one frame."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from contextlib import suppress

from provisioner.errors import Unable
from provisioner.host import bpf, frames

#: Ethernet's loopback protocol (Configuration Testing Protocol): a reply, which nobody answers.
_ETH_P_LOOP, _REPLY = 0x9000, struct.pack("<HH", 0, 1)

#: Seconds between two frames, and how many: one may be lost, and a switch takes microseconds.
_SPACING, _TIMES = 0.04, 3


def is_on(parent: str) -> bool:
    """Sends a broadcast from a link, and looks whether it comes back in. True also where nothing can be told: for a
    link that is down or gone. Up to 0.12 s. Raises Unable without CAP_NET_RAW, and for no Ethernet."""
    try:
        return _ask(parent, os.urandom(16))
    except PermissionError as error:
        said = "asking the switch needs a raw socket, which wants CAP_NET_RAW"
        raise Unable(said, "run as root: sudo macvm …") from error
    except OSError as error:
        if error.errno in (errno.ENETDOWN, errno.ENODEV, errno.ENXIO):
            return True
        reason = f"the kernel refused to ask the switch on {parent}: {error.strerror}"
        raise Unable(reason, "`dmesg | tail` may say more") from error


def _ask(parent: str, token: bytes) -> bool:
    with frames.open_wire(parent, _filter(token[:4]), outgoing=False) as wire:
        mac: bytes = wire.getsockname()[4]
        frame = (frames.BROADCAST + mac + struct.pack(">H", _ETH_P_LOOP) + _REPLY + token).ljust(60, b"\0")
        for _ in range(_TIMES):
            with suppress(BlockingIOError):  # a queue that is full
                wire.send(frame)
            if _comes_back(wire, token):
                return True
    return False


def _comes_back(wire: socket.socket, token: bytes) -> bool:
    deadline = time.monotonic() + _SPACING
    poll = select.poll()
    poll.register(wire, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        with suppress(OSError):  # ENETDOWN of a time before, once
            if token in wire.recv(2048):
                return True
        if time.monotonic() > deadline:
            break
    return False


def _filter(token: bytes) -> bytes:
    """Keeps the frame that was sent."""
    (word,) = struct.unpack(">I", token)
    steps = [*bpf.UNTAGGED, (bpf.IF_EQUAL, 0, bpf.DROP, _ETH_P_LOOP)]
    return bpf.assemble([*steps, (bpf.LOAD, 0, 0, 14 + len(_REPLY)), (bpf.IF_EQUAL, 0, bpf.DROP, word), bpf.KEEP])
