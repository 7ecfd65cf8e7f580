"""Raw frames: asks the LAN whether addresses are in use, by ARP (RFC 5227) and neighbour solicitation (RFC 4862).

Asked from a macvlan beside the guests, macvm's shim or one made for the question: a sibling macvlan does not answer the
parent. What no question reaches looks free: whoever is behind a link without carrier, and from a shim a guest in
private mode, or in VEPA mode where the switch does not send the frame back.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Network
from typing import NamedTuple

from provisioner.errors import MacvmError, NotFound, Unable, Usage
from provisioner.model.nic import Address

SWEEP_MAX = 1024

# linux/if_ether.h, linux/if_arp.h, linux/if_packet.h, asm-generic/socket.h: what the socket module has no names for.
_ETH_P_ALL, _ETH_P_ARP, _ETH_P_IPV6, _ARPHRD_ETHER = 0x0003, 0x0806, 0x86DD, 1
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST, _PACKET_IGNORE_OUTGOING = 263, 1, 0, 23
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33

_ARP_REQUEST, _ARP_REPLY = 1, 2
_SOLICITATION, _ADVERTISEMENT, _TARGET_MAC, _NONCE = 135, 136, 2, 14
_BROADCAST, _ALL_NODES = b"\xff" * 6, bytes.fromhex("333300000001")

#: Frames sent in one go and the seconds until the next ones: 4,000 a second, where a network card's queue holds 1,000
#: and so does a macvlan's queue of broadcasts.
_BATCH, _PAUSE = 16, 0.004
#: Frames read before the clock is looked at again.
_GULP = 64
_RECEIVE_BUFFER = 1 << 20


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
    ethernet = _BROADCAST + mac + struct.pack(">H", _ETH_P_ARP)
    head = struct.pack(">HHBBH", _ARPHRD_ETHER, 0x0800, 6, 4, _ARP_REQUEST)
    return ethernet + head + mac + bytes(4) + bytes(6) + address


def solicitation(mac: bytes, address: bytes, nonce: bytes) -> bytes:
    """The frame of duplicate address detection (RFC 4862, 5.4.2), from :: and so without a link-layer option.

    `nonce` is six bytes that tell this question from another's where a switch sends it back (RFC 7527).
    """
    source, destination = bytes(16), bytes.fromhex("ff0200000000000000000001ff") + address[-3:]
    message = struct.pack(">BBHI", _SOLICITATION, 0, 0, 0) + address + bytes((_NONCE, 1)) + nonce
    pseudo = source + destination + struct.pack(">II", len(message), socket.IPPROTO_ICMPV6)
    message = message[:2] + struct.pack(">H", _checksum(pseudo + message)) + message[4:]
    ip = struct.pack(">IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255) + source + destination
    return _solicited_node(address) + mac + struct.pack(">H", _ETH_P_IPV6) + ip + message


def _solicited_node(address: bytes) -> bytes:
    """The MAC of an IPv6 address's solicited-node group (RFC 4291, 2.7.1; RFC 2464, 7)."""
    return b"\x33\x33\xff" + address[-3:]


def _checksum(data: bytes) -> int:
    """RFC 1071; of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


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
    if operation not in (_ARP_REQUEST, _ARP_REPLY) or not _is_unicast(mac):
        return None
    if any(sender):
        return Claim(sender, mac)
    return Claim(target, mac) if operation == _ARP_REQUEST else None


def _neighbour_claim(frame: bytes) -> Claim | None:
    """The checks of RFC 4861, 7.1, but for the checksum: a neighbour on this very host leaves it to a card that the
    frame never comes to (checksum offload), and a packet socket sees it unfinished.

    Nobody sends these behind extension headers.
    """
    if len(frame) < 78 or frame[14] >> 4 != 6 or frame[20] != socket.IPPROTO_ICMPV6 or frame[21] != 255:
        return None
    length, source, destination = int.from_bytes(frame[18:20]), frame[22:38], frame[38:54]
    kind, code, target = frame[54], frame[55], frame[62:78]
    options = _options(frame[78 : 54 + length])
    if code != 0 or target[0] == 0xFF or not 24 <= length <= len(frame) - 54 or options is None:
        return None
    if kind == _ADVERTISEMENT:
        named = options.get(_TARGET_MAC, b"")[:6]
        mac = named if _is_unicast(named) else frame[6:12]
        return Claim(target, mac) if _is_unicast(mac) else None
    # From an address of its own it asks for a neighbour; only from :: does it want the target for itself.
    if kind == _SOLICITATION and not any(source) and destination[:13] == bytes.fromhex("ff0200000000000000000001ff"):
        return Claim(target, frame[6:12], options.get(_NONCE, b"")) if _is_unicast(frame[6:12]) else None
    return None


def _options(data: bytes) -> dict[int, bytes] | None:
    """Options of neighbour discovery by their number; None where one is malformed, and so all of the frame."""
    found: dict[int, bytes] = {}
    while data:
        length = data[1] * 8 if len(data) > 1 else 0
        if not 0 < length <= len(data):
            return None
        found.setdefault(data[0], data[2:length])
        data = data[length:]
    return found


def _is_unicast(mac: bytes) -> bool:
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


# Classic BPF (linux/filter.h): opcodes, and where the VLAN tag is loaded from, which the kernel takes out of the frame.
_LOAD, _LOAD_HALF, _LOAD_BYTE, _RETURN, _VLAN_TAG = 0x20, 0x28, 0x30, 0x06, 0xFFFFF000 + 44
_IF_EQUAL, _IF_ABOVE, _IF_AT_LEAST, _IF_ANY = 0x15, 0x25, 0x35, 0x45
_DROP = 255

#: Opcode, steps to skip where a condition holds, where not, value.
Step = tuple[int, int, int, int]

#: Frames of another VLAN are another LAN's; VLAN 0 is no VLAN but a priority.
_UNTAGGED: list[Step] = [(_LOAD, 0, 0, _VLAN_TAG), (_IF_ANY, _DROP, 0, 0x0FFF), (_LOAD_HALF, 0, 0, 12)]
#: Loads the sender's address, or the target's of a probe.
_IF_ARP: list[Step] = [(_LOAD, 0, 0, 28), (_IF_EQUAL, 0, 1, 0), (_LOAD, 0, 0, 38)]
#: Loads the last four bytes of the target.
_IF_NEIGHBOUR: list[Step] = [
    (_LOAD_BYTE, 0, 0, 20),
    (_IF_EQUAL, 0, _DROP, socket.IPPROTO_ICMPV6),
    (_LOAD_BYTE, 0, 0, 54),
    (_IF_AT_LEAST, 0, _DROP, _SOLICITATION),
    (_IF_ABOVE, _DROP, 0, _ADVERTISEMENT),
    (_LOAD, 0, 0, 74),
]


def _filter(addresses: Collection[bytes]) -> bytes:
    """A program that keeps what `claim` may find one of the addresses in: a busy LAN's other frames cost nothing here.

    By the range of the addresses' last four bytes, so that its size is the same for two addresses and a thousand.
    """
    steps = list(_UNTAGGED)
    for size, protocol, loading in ((4, _ETH_P_ARP, _IF_ARP), (16, _ETH_P_IPV6, _IF_NEIGHBOUR)):
        ends = [int.from_bytes(address[-4:]) for address in addresses if len(address) == size]
        if ends:
            in_range = [(_IF_AT_LEAST, 0, _DROP, min(ends)), (_IF_ABOVE, _DROP, 0, max(ends)), (_RETURN, 0, 0, 0xFFFF)]
            steps += [(_IF_EQUAL, 0, len(loading) + len(in_range), protocol), *loading, *in_range]
    steps.append((_RETURN, 0, 0, 0))
    program = b""
    for number, (code, if_true, if_false, value) in enumerate(steps):
        drop = len(steps) - 2 - number
        program += struct.pack("HBBI", code, *(drop if jump == _DROP else jump for jump in (if_true, if_false)), value)
    return program


@contextmanager
def _refusals(device: str) -> Iterator[None]:
    """The kernel's errors as ours."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number in (errno.ENODEV, errno.ENXIO):
            raise NotFound(f"there is no link {device} to ask the LAN from", "`ip link` shows all there are") from error
        if number == errno.ENETDOWN:
            raise Unable(f"{device} is down: the LAN cannot be asked", f"ip link set {device} up") from error
        if number in (errno.EPERM, errno.EACCES):
            raise Unable(
                f"asking the LAN on {device} needs a raw socket, which wants CAP_NET_RAW", "run as root: sudo macvm …"
            ) from error
        if number == errno.EAFNOSUPPORT:
            raise Unable(
                f"asking the LAN on {device} needs a raw socket, which this kernel has not", "modprobe af_packet"
            ) from error
        reason = f"the kernel refused to ask the LAN on {device}: {errno.errorcode.get(number, str(error))}"
        raise MacvmError(reason, "`dmesg | tail` may say more") from error


def _open(device: str, addresses: Collection[bytes]) -> socket.socket:
    """A raw socket that hears what matters to the addresses. Raises OSError, Unable.

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
        program = array.array("B", _filter(addresses))
        place, size = program.buffer_info()
        wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", size // 8, place))
        with suppress(OSError):  # since Linux 4.20; else our own MAC tells them
            wire.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        with suppress(PermissionError):  # CAP_NET_ADMIN; a few hundred answers fit without
            wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        wire.bind((device, _ETH_P_ALL))
        if wire.getsockname()[3] != _ARPHRD_ETHER:
            raise Unable(f"{device} is no Ethernet link, and has no LAN to ask", "`ip -d link` shows each link's kind")
        targets = [address for address in addresses if len(address) == 16]
        # Holders answer :: by way of all nodes; others that probe are heard in the groups of their targets.
        for group in {_ALL_NODES, *map(_solicited_node, targets)} if targets else ():
            member = struct.pack("iHH8s", index, _PACKET_MR_MULTICAST, len(group), group)
            wire.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
    except BaseException:
        wire.close()
        raise
    return wire


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
        for number, address in enumerate(questions[:_BATCH]):
            if not self._send(self._frames[address]):
                return questions[number:]
            self.deaf = False
        return questions[_BATCH:]

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
    with _refusals(device):
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
            due = now + _PAUSE if left else again if rounds else now + pace.listen
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
