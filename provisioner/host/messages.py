"""Changes links, addresses, routes and neighbours: messages of rtnetlink over the standard library's socket, one or
thousands.

pyroute2 takes 95 ms to import. Layouts: linux/netlink.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence

from provisioner.host import log

_NLM_F_REQUEST, _NLM_F_ACK = 1, 4

#: Bit of an attribute's number that says: its payload is attributes (NLA_F_NESTED). Newer kinds insist on it.
NESTED = 0x8000

_SEQUENCE = struct.Struct("II")

#: Messages to a packet: their answers, which repeat a message that was refused, must fit the socket's buffer.
_AT_ONCE = 64


def nested(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """Attributes as the payload of another, whose own number then carries `NESTED`. Pairs: some numbers come twice."""
    return b"".join(
        struct.pack("HH", 4 + len(data), number) + data + bytes(-len(data) % 4) for number, data in attributes
    )


def request(kind: int, flags: int, header: bytes, attributes: Mapping[int, bytes]) -> None:
    """Sends one change and waits for the kernel's word on it. Raises OSError with its errno."""
    failed = batch([Form(kind, flags, header, attributes).filled(0)])
    if failed:
        raise OSError(failed[0], os.strerror(failed[0]))


class Form:
    """A change of which all is packed but its number and the payloads of some attributes, those given as a length.

    `flags` come beside those of every request.
    """

    def __init__(self, kind: int, flags: int, header: bytes, attributes: Mapping[int, bytes | int]) -> None:
        parts = [bytearray(header)]
        for number, data in attributes.items():
            length = data if isinstance(data, int) else len(data)
            parts[-1] += struct.pack("HH", 4 + length, number)
            if isinstance(data, int):
                parts.append(bytearray())
            else:
                parts[-1] += data
            parts[-1] += bytes(-length % 4)
        lengths = [data for data in attributes.values() if isinstance(data, int)]
        whole = 16 + sum(map(len, parts)) + sum(lengths)
        self._head = struct.pack("IHH", whole, kind, _NLM_F_REQUEST | flags)
        self._parts = [bytes(part) for part in parts]

    def filled(self, number: int, *payloads: bytes) -> bytes:
        """The message, with a number by which the kernel tells of it, counted from 0 in a batch."""
        first, *others = self._parts
        found = [self._head, _SEQUENCE.pack(number, 0), first]
        for payload, part in zip(payloads, others, strict=True):
            found += (payload, part)
        return b"".join(found)


def batch(messages: Sequence[bytes]) -> dict[int, int]:
    """Sends changes, in order, each `filled` with its place here as its number. Returns the numbers of those that the
    kernel refused, each with its errno."""
    failed = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as channel:
        channel.bind((0, 0))
        for begin in range(0, len(messages), _AT_ONCE):
            some = list(messages[begin : begin + _AT_ONCE])
            # What is refused is told anyway; that the last is done tells that all are.
            some[-1] = some[-1][:6] + _acknowledged(some[-1]) + some[-1][8:]
            last = begin + len(some) - 1
            if log.is_detailed():
                for message in some:
                    log.netlink(message)
            channel.send(b"".join(some))
            number = -1
            while number != last:
                data, offset = channel.recv(1 << 18), 0
                while offset < len(data):
                    length, _, _, number = struct.unpack_from("IHHI", data, offset)
                    error = -struct.unpack_from("i", data, offset + 16)[0]
                    if error:
                        failed[number] = error
                    offset += (length + 3) & ~3
    return failed


def _acknowledged(message: bytes) -> bytes:
    """Its flags, with the one that has the kernel tell of it even where nothing is wrong."""
    (flags,) = struct.unpack_from("H", message, 6)
    return struct.pack("H", flags | _NLM_F_ACK)
