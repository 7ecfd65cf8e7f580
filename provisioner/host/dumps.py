"""Thousands of the kernel's entries at once: dumps of many messages that are laid out alike, read as rows.

Unpacked one attribute after the other, 1,000 routes cost more time than the kernel takes to make them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from provisioner.host import messages, netlink


class Rows(NamedTuple):
    """Messages of one shape, each a tuple: the fixed part first, then the payloads of its attributes, of which `at`
    tells the place by their numbers."""

    at: Mapping[int, int]
    rows: list[tuple[bytes, ...]]


class _Shape:
    """How a message is laid out: its attributes' numbers and lengths. Learned from one, which others may be like."""

    def __init__(self, message: bytes, fixed: int) -> None:
        layout, heads, self.at = [f"=8s8x{fixed}s"], [message[:8]], dict[int, int]()
        offset = 16 + fixed
        while offset + 4 <= len(message):
            length, number = struct.unpack_from("HH", message, offset)
            if length < 4:
                break
            self.at[number & ~messages.NESTED] = len(heads)
            heads.append(message[offset : offset + 4])
            padding = min(-length % 4, len(message) - offset - length)
            layout.append(f"4s{length - 4}s{padding}x")
            offset += length + padding
        layout.append(f"{len(message) - offset}x")
        self._struct = struct.Struct("".join(layout))
        self._heads = tuple(heads)
        # A message's first eight bytes are followed by its fixed part, an attribute's four by its payload.
        self.size = self._struct.size

    def read(self, data: bytes, offset: int) -> list[tuple[bytes, ...]]:
        """The messages from here on that are like it."""
        whole = (len(data) - offset) // self.size * self.size
        found = []
        heads = self._heads
        for fields in self._struct.iter_unpack(memoryview(data)[offset : offset + whole]):
            if fields[::2] != heads:
                break
            found.append(fields[1::2])
        return found


def dump(kind: int, request: bytes, fixed: int) -> list[Rows]:
    """The answers to one dump, whose fixed part has so many bytes; asked again when the kernel says that it changed
    meanwhile. Raises NetlinkFailed."""
    for _ in range(netlink.ATTEMPTS):
        found, flags = list[Rows](), 0
        for data in netlink.packets(kind, request):
            offset, shapes = 0, dict[int, _Shape]()
            while offset < len(data) and not netlink.is_end(data, offset):
                size, flag = _look(data, offset)
                flags |= flag
                rows = shapes[size].read(data, offset) if size in shapes else []
                if not rows:
                    shapes[size] = _Shape(data[offset : offset + size], fixed)
                    rows = shapes[size].read(data, offset)
                found.append(Rows(shapes[size].at, rows))
                offset += len(rows) * size
            if offset < len(data):
                break
        if not flags & netlink.DUMP_INTERRUPTED:
            break
    return found


def _look(data: bytes, offset: int) -> tuple[int, int]:
    """A message's length, with what fills it up, and its flags."""
    length, flags = struct.unpack_from("I2xH", data, offset)
    return (length + 3) & ~3, flags
