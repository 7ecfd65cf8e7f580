"""Raw frames: asks the LAN whether addresses are in use, by ARP (RFC 5227) and neighbour solicitation (RFC 4862).

Asked from a macvlan beside the guests, macvm's shim or one made for the question: a sibling macvlan does not answer the
parent. What no question reaches looks free: whoever is behind a link without carrier, and from a shim a guest in
private mode, or in VEPA mode where the switch does not send the frame back.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.host import bpf, frames
from provisioner.host.bpf import DROP, Step
from provisioner.model.nic import Address

SWEEP_MAX = 1024

_NONCE = 14
_ALL_NODES = bytes.fromhex("333300000001")

#: Frames read before the clock is looked at again.
_GULP = 64


_USE = frames.Use("to ask the LAN from", "the LAN cannot be asked", "asking the LAN on", "ask the LAN on")


class Pace(NamedTuple):
    """How long to ask, in seconds: up to `wait` at first, then `packets` frames for each address with `spacing` to
    `spacing + jitter` between them, then `listen` after the last. What varies is drawn at random."""

    packets: int
    spacing: float
    listen: float
    wait: float = 0.0
    jitter: float = 0.0


#: Three frames in 300 ms in all.
FAST = Pace(3, 0.1, 0.1)
#: RFC 5227, 1.1: PROBE_WAIT, PROBE_NUM, PROBE_MIN to PROBE_MAX, ANNOUNCE_WAIT; 4 to 7 s in all.
RFC = Pace(3, 1.0, 2.0, wait=1.0, jitter=1.0)


class Claim(NamedTuple):
    """Who has an address, or is about to take it: what a frame says. Both in network order; `nonce` is RFC 7527's."""

    address: bytes
    mac: bytes
    nonce: bytes = b""


def probe(
    device: str, addresses: Iterable[Address], *, pace: Pace = FAST, ignore: Collection[str] = ()
) -> dict[Address, str]:
    """Those of the addresses that are in use, each with the MAC of whoever said so first; all are asked for at once.

    In use is also what another one probes for meanwhile (RFC 5227, 2.1.1). `device` is an Ethernet link that is up;
    its own MAC and those in `ignore` are no conflict. Returns early once every address is known to be taken. Raises
    NotFound for no such link, Unable without rights, for a link that is down or no Ethernet.
    """
    with ExitStack() as stack:
        return _ask(stack, device, addresses, pace, ignore)


def sweep(device: str, network: IPv4Network, *, pace: Pace = FAST, ignore: Collection[str] = ()) -> dict[Address, str]:
    """As `probe`, for every host address of a network of at most 1024 addresses. Raises Usage for a larger one."""
    if network.num_addresses > SWEEP_MAX:
        raise Usage(
            f"{network} has {network.num_addresses} addresses, too many to ask the LAN for each",
            f"a network of at most {SWEEP_MAX}, such as {network.network_address}/22",
        )
    return probe(device, network.hosts(), pace=pace, ignore=ignore)


class Probing:
    """`probe` in a thread, in the network namespace of the one who makes it. It begins at once.

    Whoever makes one calls `result` or `stop`.
    """

    def __init__(
        self, device: str, addresses: Iterable[Address], *, pace: Pace = FAST, ignore: Collection[str] = ()
    ) -> None:
        self._found: dict[Address, str] = {}
        self._error: Exception | None = None
        self._known = threading.Event()
        # Closing one end wakes whoever polls the other; unlike a number, a closed socket is never another's.
        self._ours, told = socket.socketpair()
        what = (device, tuple(addresses), pace, tuple(ignore), told)
        self._thread = threading.Thread(target=self._run, args=what, name="probe-lan", daemon=True)
        self._thread.start()

    def _run(
        self, device: str, addresses: tuple[Address, ...], pace: Pace, ignore: tuple[str, ...], told: socket.socket
    ) -> None:
        with told, ExitStack() as stack:
            try:
                self._found = _ask(stack, device, addresses, pace, ignore, told)
            except Exception as error:  # noqa: BLE001  # `result` raises it, in the caller's own thread
                self._error = error
            finally:
                # Before the socket is closed, for which the kernel takes some 16 ms.
                self._known.set()

    def result(self) -> dict[Address, str]:
        """As `probe` returns and raises; after `stop`, what was heard until then."""
        self._known.wait()
        self._ours.close()
        if self._error is not None:
            raise self._error
        return self._found

    def stop(self) -> None:
        """Ends it and waits until the link is free of it; any number of times, whatever came of it."""
        self._ours.close()
        self._thread.join()


def arp_probe(mac: bytes, address: bytes) -> bytes:
    """The frame of RFC 5227, 2.1.1: from 0.0.0.0, so that nobody learns from it."""
    return frames.arp_probe(frames.BROADCAST, mac, address)


def solicitation(mac: bytes, address: bytes, nonce: bytes) -> bytes:
    """The frame of duplicate address detection (RFC 4862, 5.4.2), from :: and so without a link-layer option.

    `nonce` is six bytes that tell this question from another's where a switch sends it back (RFC 7527).
    """
    question = struct.pack(">BBHI", frames.SOLICITATION, 0, 0, 0) + address + bytes((_NONCE, 1)) + nonce
    group, destination = frames.solicited_node(address)
    return frames.icmpv6(group, mac, bytes(16), destination, question)


def claim(frame: bytes) -> Claim | None:
    """What an Ethernet frame without a VLAN tag says about an address being in use; None for any other frame."""
    match frame[12:14]:
        case b"\x08\x06":
            return _arp_claim(frame)
        case b"\x86\xdd":
            return _neighbour_claim(frame)
    return None


def _arp_claim(frame: bytes) -> Claim | None:
    if len(frame) < 42 or frame[14:20] != b"\x00\x01\x08\x00\x06\x04":
        return None
    operation = int.from_bytes(frame[20:22])
    mac, sender, target = frame[22:28], frame[28:32], frame[38:42]
    if operation not in (frames.ARP_REQUEST, frames.ARP_REPLY) or not frames.is_unicast(mac):
        return None
    if any(sender):
        return Claim(sender, mac)
    return Claim(target, mac) if operation == frames.ARP_REQUEST else None


def _neighbour_claim(frame: bytes) -> Claim | None:
    """The checks of RFC 4861, 7.1, but for the checksum: a neighbour on this very host leaves it to a card that the
    frame never comes to (checksum offload), and a packet socket sees it unfinished.

    Nobody sends these behind extension headers.
    """
    if len(frame) < 78 or frame[14] >> 4 != 6 or frame[20] != socket.IPPROTO_ICMPV6 or frame[21] != 255:
        return None
    length, source, destination = int.from_bytes(frame[18:20]), frame[22:38], frame[38:54]
    kind, code, target = frame[54], frame[55], frame[62:78]
    options = frames.options(frame[78 : 54 + length])
    if code != 0 or target[0] == 0xFF or not 24 <= length <= len(frame) - 54 or options is None:
        return None
    if kind == frames.ADVERTISEMENT:
        named = options.get(frames.TARGET_MAC, b"")[:6]
        mac = named if frames.is_unicast(named) else frame[6:12]
        return Claim(target, mac) if frames.is_unicast(mac) else None
    # From an address of its own it asks for a neighbour; only from :: does it want the target for itself.
    if (
        kind == frames.SOLICITATION
        and not any(source)
        and destination[:13] == bytes.fromhex("ff0200000000000000000001ff")
    ):
        return Claim(target, frame[6:12], options.get(_NONCE, b"")) if frames.is_unicast(frame[6:12]) else None
    return None


#: Loads the sender's address, or the target's of a probe.
_IF_ARP: list[Step] = [(bpf.LOAD, 0, 0, 28), (bpf.IF_EQUAL, 0, 1, 0), (bpf.LOAD, 0, 0, 38)]
#: Loads the last four bytes of the target.
_IF_NEIGHBOUR: list[Step] = [
    (bpf.LOAD_BYTE, 0, 0, 20),
    (bpf.IF_EQUAL, 0, DROP, socket.IPPROTO_ICMPV6),
    (bpf.LOAD_BYTE, 0, 0, 54),
    (bpf.IF_AT_LEAST, 0, DROP, frames.SOLICITATION),
    (bpf.IF_ABOVE, DROP, 0, frames.ADVERTISEMENT),
    (bpf.LOAD, 0, 0, 74),
]


def _filter(addresses: Collection[bytes]) -> bytes:
    """A program that keeps what `claim` may find one of the addresses in: a busy LAN's other frames cost nothing here.

    By the range of the addresses' last four bytes, so that its size is the same for two addresses and a thousand.
    """
    steps = list(bpf.UNTAGGED)
    for size, protocol, loading in ((4, frames.ETH_P_ARP, _IF_ARP), (16, frames.ETH_P_IPV6, _IF_NEIGHBOUR)):
        ends = [int.from_bytes(address[-4:]) for address in addresses if len(address) == size]
        if ends:
            in_range: list[Step] = [(bpf.IF_AT_LEAST, 0, DROP, min(ends)), (bpf.IF_ABOVE, DROP, 0, max(ends)), bpf.KEEP]
            steps += [(bpf.IF_EQUAL, 0, len(loading) + len(in_range), protocol), *loading, *in_range]
    return bpf.assemble(steps)


def _open(device: str, addresses: Collection[bytes]) -> socket.socket:
    """A raw socket that hears what matters to the addresses. Raises OSError, Unable."""
    targets = [address for address in addresses if len(address) == 16]
    # Holders answer :: by way of all nodes; others that probe are heard in the groups of their targets.
    groups = {_ALL_NODES, *(frames.solicited_node(target)[0] for target in targets)} if targets else set[bytes]()
    return frames.open_wire(device, _filter(addresses), groups, outgoing=False)


class _Talk:
    """What is asked for on a socket, and what was heard."""

    def __init__(self, wire: socket.socket, wanted: Collection[bytes], ignore: Collection[str]) -> None:
        self._wire = wire
        self._nonce = os.urandom(6)
        mac: bytes = wire.getsockname()[4]
        self._ignored = {mac.hex(":"), *(word.lower() for word in ignore)}
        self._frames = {
            address: arp_probe(mac, address) if len(address) == 4 else solicitation(mac, address, self._nonce)
            for address in wanted
        }
        self.taken: dict[bytes, str] = {}
        #: The link went down, and nothing was sent since.
        self.deaf = False

    def open_questions(self) -> list[bytes]:
        return [address for address in self._frames if address not in self.taken]

    def ask(self, questions: list[bytes]) -> list[bytes]:
        """Sends the first of them; returns what is left to send. Raises OSError."""
        for number, address in enumerate(questions[: frames.BATCH]):
            if not self._send(self._frames[address]):
                return questions[number:]
            self.deaf = False
        return questions[frames.BATCH :]

    def _send(self, frame: bytes) -> bool:
        """False where the queue is full for now."""
        for again in (True, False):
            try:
                self._wire.send(frame)
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.EAGAIN):
                    return False
                # ENETDOWN may tell of a time before, once; of now it tells again.
                if error.errno != errno.ENETDOWN or not again:
                    raise
            else:
                break
        return True

    def hear(self) -> None:
        """Takes in what has come, up to a limit. Raises OSError."""
        for _ in range(_GULP):
            try:
                said = claim(self._wire.recv(2048))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                self.deaf = True
                return
            if said and said.address in self._frames and said.nonce != self._nonce:
                mac = said.mac.hex(":")
                if mac not in self._ignored:
                    self.taken.setdefault(said.address, mac)


def _ask(
    stack: ExitStack,
    device: str,
    addresses: Iterable[Address],
    pace: Pace,
    ignore: Collection[str],
    told: socket.socket | None = None,
) -> dict[Address, str]:
    """As `probe`; ends early, with what was heard, once `told` is readable. The caller closes what `stack` holds."""
    wanted = {address.packed: address for address in addresses}
    if not wanted:
        return {}
    with frames.refusals(device, _USE):
        wire = stack.enter_context(_open(device, wanted))
        talk = _Talk(wire, wanted, ignore)
        _converse(talk, wire, pace, told)
    return {address: talk.taken[packed] for packed, address in wanted.items() if packed in talk.taken}


def _converse(talk: _Talk, wire: socket.socket, pace: Pace, told: socket.socket | None) -> None:
    """Until all is known, time is up or it is told to stop. Raises OSError.

    No stream of frames holds up the clock: it is looked at between any two gulps.
    """
    poll = select.poll()
    for heard in (wire, told):
        if heard is not None:
            poll.register(heard, select.POLLIN)
    rounds, left = pace.packets, list[bytes]()
    again = due = time.monotonic() + pace.wait * _random()
    while unknown := talk.open_questions():
        now = time.monotonic()
        if now >= due:
            if not left and not rounds:
                break
            if not left:
                left, rounds = unknown, rounds - 1
                again = now + pace.spacing + pace.jitter * _random()
            left = talk.ask(left)
            due = now + frames.PAUSE if left else again if rounds else now + pace.listen
        ready = [number for number, _ in poll.poll(max(0.0, due - time.monotonic()) * 1000)]
        if ready:
            talk.hear()
        if told is not None and told.fileno() in ready:
            return
    if unknown and talk.deaf:
        number = errno.ENETDOWN if wire.getsockname()[0] else errno.ENODEV
        raise OSError(number, os.strerror(number))


def _random() -> float:
    # The random module would cost 2 ms of import.
    return int.from_bytes(os.urandom(4)) / (1 << 32)
