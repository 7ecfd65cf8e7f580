"""Classic BPF (linux/filter.h): small programs by which the kernel keeps from a socket what it need not hear."""

from __future__ import annotations

import array
import socket
import struct

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h

LOAD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
#: IPv4's header length at an offset into the index, and two bytes at that index and an offset.
LOAD_HEADER_LENGTH, LOAD_HALF_BEYOND = 0xB1, 0x48
IF_EQUAL, IF_ABOVE, IF_AT_LEAST, IF_ANY = 0x15, 0x25, 0x35, 0x45
_RETURN = 0x06

#: What is loaded from here is not of the frame: the direction (linux/if_packet.h), and the VLAN tag, which the kernel
#: takes out of the frame.
DIRECTION, _VLAN_TAG = 0xFFFFF000 + 4, 0xFFFFF000 + 44

#: Instead of steps to skip: to the end, where the frame is dropped; or behind the block (see `block`).
DROP, NEXT = 255, 254

#: Opcode, steps to skip where a condition holds, where not, value.
Step = tuple[int, int, int, int]

KEEP: Step = (_RETURN, 0, 0, 0xFFFF)
#: Frames of another VLAN are another LAN's; VLAN 0 is no VLAN but a priority. Leaves the Ethernet type loaded.
UNTAGGED: list[Step] = [(LOAD, 0, 0, _VLAN_TAG), (IF_ANY, DROP, 0, 0x0FFF), (LOAD_HALF, 0, 0, 12)]


def block(*steps: Step) -> list[Step]:
    """Steps of which `NEXT` jumps behind the last."""
    left = range(len(steps) - 1, -1, -1)
    return [
        (code, rest if if_true == NEXT else if_true, rest if if_false == NEXT else if_false, value)
        for rest, (code, if_true, if_false, value) in zip(left, steps, strict=True)
    ]


def assemble(steps: list[Step]) -> bytes:
    """The program, of at most 250 steps, which drops what comes to its end."""
    program = b""
    for number, (code, if_true, if_false, value) in enumerate(steps):
        drop = len(steps) - 1 - number
        program += struct.pack("HBBI", code, *(drop if jump == DROP else jump for jump in (if_true, if_false)), value)
    return program + struct.pack("HBBI", _RETURN, 0, 0, 0)


def attach(listener: socket.socket, program: bytes) -> None:
    """Raises OSError."""
    kept = array.array("B", program)
    place, size = kept.buffer_info()
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", size // 8, place))
