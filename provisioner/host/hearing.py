"""Learns a guest's addresses without an agent: from the frames on its own macvtap, and by asking it when it is silent.

On a macvtap the kernel shows what the guest sends as outgoing, and what comes to it as incoming. Believed is what a
guest says of itself: an ARP or neighbour message that carries its own MAC, and what a DHCP server gave to that MAC. The
source of an IP packet is no evidence, for a router sends others' packets on. One thing cannot be told apart: an ARP
*answer* of a guest with proxy ARP for somebody else's address looks like one for its own. It does not answer `ask` so.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from types import TracebackType
from typing import NamedTuple

from provisioner.errors import NotFound
from provisioner.host import bpf, frames
from provisioner.host.bpf import DROP, Step
from provisioner.model.names import packed_mac
from provisioner.model.nic import Address

#: The largest IPv4 network whose addresses `ask` asks for: a /22.
ASK_MAX = 1024

_OUTGOING, _SIOCGIFHWADDR = 4, 0x8927  # linux/if_packet.h, linux/sockios.h
_GULP = 64
#: Between two looks for a link that is gone.
_AGAIN = 0.05
#: How long answers are waited for after each of the rounds, which make up for what a guest's full queue dropped.
_LISTEN = (0.1, 0.25)

_ARP_HEAD = bytes.fromhex("000108000604")
_ECHO_REQUEST = 128
_OVERRIDE = 0x20
_LINK_LOCAL, _ALL_NODES = IPv6Network("fe80::/64"), IPv6Address("ff02::1").packed
#: An option that nobody knows, filled up, of the kind to which even what goes to a group is answered by an error
#: (RFC 8200, 4.2); that is before a firewall is asked.
_UNKNOWN_OPTION = bytes.fromhex("800400000000")
#: The longest IPv6 prefix in which an address can be made up that ends in a MAC's own half.
_LONGEST = 104

#: RFC 2131, RFC 2132.
_COOKIE = bytes.fromhex("63825363")
_SERVER, _CLIENT = 67, 68
_REQUESTED, _MESSAGE = 50, 53
_DECLINE, _ACK, _NAK, _RELEASE = b"\4", b"\5", b"\6", b"\7"
#: RFC 8415.
_SERVER6, _CLIENT6 = 547, 546
_REPLY6, _RELEASE6, _DECLINE6 = 7, 8, 9
_IA_NA, _IA_ADDRESS, _STATUS = 3, 5, 13


class LinkGone(NotFound):
    """The link that was listened on is gone, or never was. One of the same name is another link, to be opened anew."""


_USE = frames.Use("to listen on", "the guest cannot be asked", "listening on", "listen on", LinkGone)


class Heard(NamedTuple):
    """An address of the guest with this MAC. `how` is "arp", "nd" or "dhcp".

    With `lost` it has it no longer: it gave it back or declined it, or a DHCP server refused it; the server does not
    say which, so that 0.0.0.0 then stands for whatever IPv4 address DHCP gave to the guest before.
    """

    mac: str
    address: Address
    how: str
    lost: bool = False


# --- what a frame tells ---------------------------------------------------------------------------------------------


def parse(frame: bytes, outgoing: bool, macs: Collection[str]) -> list[Heard]:
    """What an Ethernet frame tells of the addresses of the guests with these MACs, in lower case; nothing for most.

    `outgoing` is whether it comes from a guest: outgoing on a macvtap, incoming on a shim. Probes and duplicate address
    detection (RFC 5227, RFC 4862) tell nothing: somebody may yet object.
    """
    # Whoever learns the guest's address hears it from the guest's own MAC, never from another that says it is its.
    speaker = frame[6:12].hex(":")
    if outgoing and speaker not in macs:
        return []
    match frame[12:14]:
        case b"\x08\x06" if outgoing:
            return _arp(frame, speaker)
        case b"\x08\x00":
            ports, message = _udp4(frame)
            if outgoing:
                return _dhcp_given_back(message, speaker) if ports == (_CLIENT, _SERVER) else []
            return _dhcp_answer(message, macs) if ports == (_SERVER, _CLIENT) else []
        case b"\x86\xdd":
            header, payload = _ipv6(frame)
            if header == socket.IPPROTO_ICMPV6 and outgoing:
                return _neighbour(frame, payload, speaker)
            if header == socket.IPPROTO_UDP:
                return _dhcp6(payload, speaker if outgoing else "", frame[:6].hex(":"), macs)
    return []


def _arp(frame: bytes, speaker: str) -> list[Heard]:
    if len(frame) < 42 or frame[14:20] != _ARP_HEAD or frame[22:28] != frame[6:12]:
        return []
    if int.from_bytes(frame[20:22]) not in (frames.ARP_REQUEST, frames.ARP_REPLY):
        return []
    return _heard(speaker, frame[28:32], "arp")


def _heard(mac: str, packed: bytes, how: str, *, lost: bool = False) -> list[Heard]:
    """Nothing for what is no host's own address."""
    address = ipaddress.ip_address(packed)
    no_host = address.is_unspecified or address.is_multicast or address.is_loopback
    if no_host or (address.version == 4 and (packed[0] == 0 or packed[0] >= 240)):
        return []
    return [Heard(mac, address, how, lost)]


def _ipv6(frame: bytes) -> tuple[int, bytes]:
    """The kind of what an IPv6 packet carries, and that; (-1, b"") for none that is whole."""
    length = int.from_bytes(frame[18:20])
    if len(frame) < 54 + length or frame[14] >> 4 != 6:
        return -1, b""
    return frame[20], frame[54 : 54 + length]


def _neighbour(frame: bytes, message: bytes, speaker: str) -> list[Heard]:
    """Of an advertisement the target, of a solicitation the source; with the checks of RFC 4861, 7.1, but for the
    checksum, which a guest leaves to a card that the frame never comes to."""
    options = frames.options(message[24:])
    if len(message) < 24 or frame[21] != 255 or message[1] != 0 or options is None:
        return []
    source, target, mac = frame[22:38], message[8:24], frame[6:12]
    if message[0] == frames.SOLICITATION:
        return _heard(speaker, source, "nd") if options.get(frames.SOURCE_MAC, mac)[:6] == mac else []
    if message[0] != frames.ADVERTISEMENT or options.get(frames.TARGET_MAC, mac)[:6] != mac:
        return []
    # A proxy answers from its own address, and without the override flag (RFC 4861, 7.2.8), as for anycast.
    return _heard(speaker, target, "nd") if source == target or message[4] & _OVERRIDE else []


def _udp(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Both ports, source first, and the message; (0, 0) and b"" for none that is whole."""
    length = int.from_bytes(data[4:6])
    if not 8 <= length <= len(data):
        return (0, 0), b""
    return (int.from_bytes(data[:2]), int.from_bytes(data[2:4])), data[8:length]


def _udp4(frame: bytes) -> tuple[tuple[int, int], bytes]:
    header, length = (frame[14] & 0x0F) * 4 if len(frame) >= 34 else 0, int.from_bytes(frame[16:18])
    whole = 20 <= header <= length <= len(frame) - 14 and not int.from_bytes(frame[20:22]) & 0x3FFF
    if not whole or frame[14] >> 4 != 4 or frame[23] != socket.IPPROTO_UDP:
        return (0, 0), b""
    return _udp(frame[14 + header : 14 + length])


def _dhcp_options(message: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 240
    while at + 1 < len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        end = at + 2 + message[at + 1]
        if end > len(message):
            break
        found.setdefault(message[at], message[at + 2 : end])
        at = end
    return found


def _dhcp_client(message: bytes, operation: int) -> str:
    """The MAC of the client that a DHCP message is from (1) or for (2); empty for anything else."""
    if len(message) < 240 or message[:3] != bytes((operation, 1, 6)) or message[236:240] != _COOKIE:
        return ""
    return message[28:34].hex(":")


def _dhcp_answer(message: bytes, macs: Collection[str]) -> list[Heard]:
    client = _dhcp_client(message, 2)
    if client not in macs:
        return []
    kind = _dhcp_options(message).get(_MESSAGE)
    if kind == _ACK:  # the one to an INFORM gives no address
        return _heard(client, message[16:20], "dhcp")
    return [Heard(client, IPv4Address(0), "dhcp", lost=True)] if kind == _NAK else []


def _dhcp_given_back(message: bytes, speaker: str) -> list[Heard]:
    if _dhcp_client(message, 1) != speaker:
        return []
    options = _dhcp_options(message)
    kind, requested = options.get(_MESSAGE), options.get(_REQUESTED, b"")
    if kind == _RELEASE:
        return _heard(speaker, message[12:16], "dhcp", lost=True)
    return _heard(speaker, requested, "dhcp", lost=True) if kind == _DECLINE and len(requested) == 4 else []


def _dhcp6(payload: bytes, speaker: str, receiver: str, macs: Collection[str]) -> list[Heard]:
    """Of a reply to one of the guests by its MAC: a client's identifier may hold the MAC of another of its NICs."""
    ports, message = _udp(payload)
    kind = message[0] if message else 0
    if speaker:
        if ports != (_CLIENT6, _SERVER6) or kind not in (_RELEASE6, _DECLINE6):
            return []
        return [said for address, _ in _leases6(message) for said in _heard(speaker, address, "dhcp", lost=True)]
    if ports != (_SERVER6, _CLIENT6) or kind != _REPLY6 or receiver not in macs:
        return []
    return [said for address, valid in _leases6(message) for said in _heard(receiver, address, "dhcp", lost=valid == 0)]


def _leases6(message: bytes) -> Iterator[tuple[bytes, int]]:
    """Addresses that a message is about, each with the seconds that it is given for; none of what is refused."""
    options = list(_dhcp6_options(message[4:]))
    if _refused(options):
        return
    for kind, association in options:
        inner = list(_dhcp6_options(association[12:])) if kind == _IA_NA else []
        if not _refused(inner):
            for number, data in inner:
                if number == _IA_ADDRESS and len(data) >= 24 and not _refused(list(_dhcp6_options(data[24:]))):
                    yield data[:16], int.from_bytes(data[20:24])


def _refused(options: list[tuple[int, bytes]]) -> bool:
    return any(kind == _STATUS and data[:2] != b"\0\0" for kind, data in options)


def _dhcp6_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        end = 4 + int.from_bytes(data[2:4])
        if end > len(data):
            return
        yield int.from_bytes(data[:2]), data[4:end]
        data = data[end:]


# --- listening ------------------------------------------------------------------------------------------------------


def _if_udp_to(port4: int, port6: int) -> list[Step]:
    """Keeps what goes to these ports over IPv4 and IPv6."""
    over4 = bpf.block(
        (bpf.LOAD_HALF, 0, 0, 12),
        (bpf.IF_EQUAL, 0, bpf.NEXT, frames.ETH_P_IP),
        (bpf.LOAD_BYTE, 0, 0, 23),
        (bpf.IF_EQUAL, 0, DROP, socket.IPPROTO_UDP),
        (bpf.LOAD_HALF, 0, 0, 20),
        (bpf.IF_ANY, DROP, 0, 0x3FFF),  # a fragment
        (bpf.LOAD_HEADER_LENGTH, 0, 0, 14),
        (bpf.LOAD_HALF_BEYOND, 0, 0, 16),
        (bpf.IF_EQUAL, 0, DROP, port4),
        bpf.KEEP,
    )
    over6 = bpf.block(
        (bpf.LOAD_HALF, 0, 0, 12),
        (bpf.IF_EQUAL, 0, DROP, frames.ETH_P_IPV6),
        (bpf.LOAD_BYTE, 0, 0, 20),
        (bpf.IF_EQUAL, 0, DROP, socket.IPPROTO_UDP),
        (bpf.LOAD_HALF, 0, 0, 56),
        (bpf.IF_EQUAL, 0, DROP, port6),
        bpf.KEEP,
    )
    return [*over4, *over6]


_IF_ARP = bpf.block((bpf.LOAD_HALF, 0, 0, 12), (bpf.IF_EQUAL, 0, bpf.NEXT, frames.ETH_P_ARP), bpf.KEEP)
_IF_NEIGHBOUR = bpf.block(
    (bpf.LOAD_HALF, 0, 0, 12),
    (bpf.IF_EQUAL, 0, bpf.NEXT, frames.ETH_P_IPV6),
    (bpf.LOAD_BYTE, 0, 0, 20),
    (bpf.IF_EQUAL, 0, bpf.NEXT, socket.IPPROTO_ICMPV6),
    (bpf.LOAD_BYTE, 0, 0, 54),
    (bpf.IF_AT_LEAST, 0, DROP, frames.SOLICITATION),
    (bpf.IF_ABOVE, DROP, 0, frames.ADVERTISEMENT),
    bpf.KEEP,
)


def _filter(mac: bytes, *, on_macvtap: bool) -> bytes:
    """A program that keeps what `parse` may find something in: what others say is dropped here, however much it is."""
    # On a macvtap only what goes out is the guest's: another may put the guest's MAC on what comes in.
    spoken = (bpf.IF_EQUAL, 0, bpf.NEXT, _OUTGOING) if on_macvtap else (bpf.IF_EQUAL, DROP, 0, _OUTGOING)
    from_guest = bpf.block(
        (bpf.LOAD, 0, 0, bpf.DIRECTION),
        spoken,
        (bpf.LOAD, 0, 0, 6),
        (bpf.IF_EQUAL, 0, bpf.NEXT, int.from_bytes(mac[:4])),
        (bpf.LOAD_HALF, 0, 0, 10),
        (bpf.IF_EQUAL, 0, bpf.NEXT, int.from_bytes(mac[4:])),
        *_IF_ARP,
        *_IF_NEIGHBOUR,
        *_if_udp_to(_SERVER, _SERVER6),
    )
    return bpf.assemble([*bpf.UNTAGGED, *from_guest, *_if_udp_to(_CLIENT, _CLIENT6)])


def _open(device: str, mac: str, groups: Iterable[bytes] = ()) -> tuple[socket.socket, bool]:
    """A socket, and whether the device is the guest's own macvtap, which has its MAC. Raises OSError, Unable."""
    guest = packed_mac(mac)
    on_macvtap = _own_mac(device) == guest
    return frames.open_wire(device, _filter(guest, on_macvtap=on_macvtap), groups, outgoing=True), on_macvtap


def _own_mac(device: str) -> bytes:
    """Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as asks:
        answer = fcntl.ioctl(asks, _SIOCGIFHWADDR, struct.pack("40s", os.fsencode(device)[:15]))
    return answer[18:24]


class Listener:
    """Hears a guest on its own macvtap, or what of it comes to a shim; for a selector, by `fileno`.

    It may be made before the link is up, and stays through its being down and being renamed. Raises LinkGone for no
    such link, Unable without rights and for no Ethernet.
    """

    def __init__(self, device: str, mac: str) -> None:
        self._device, self._mac = device, mac.lower()
        #: Frames that the last `read` took, whatever was in them.
        self.taken = 0
        with frames.refusals(device, _USE):
            self._wire, self._on_macvtap = _open(device, self._mac)

    def fileno(self) -> int:
        return self._wire.fileno()

    def read(self) -> list[Heard]:
        """What has come, in order; it waits for nothing. Empty too where the link just went down.

        Not always all of it: a guest that floods holds nobody up, and the selector tells again. Raises LinkGone, and
        what the guest said last before the link went is then lost.
        """
        found: list[Heard] = []
        self.taken = 0
        with frames.refusals(self._device, _USE):
            for _ in range(_GULP):
                try:
                    frame, (_, _, direction, *_) = self._wire.recvfrom(2048)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENETDOWN:
                        raise
                    # Told once when the link goes down, and once more when it is no more.
                    self._check()
                else:
                    self.taken += 1
                    found += self._told(frame, direction)
            if not found:
                self._check()
        return found

    def _check(self) -> None:
        """Raises OSError where the link is no more: then the kernel has no name for it."""
        if not self._wire.getsockname()[0]:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def _told(self, frame: bytes, direction: int) -> list[Heard]:
        if self._on_macvtap:
            from_guest = direction == _OUTGOING
        else:
            from_guest = direction != _OUTGOING and frame[6:12].hex(":") == self._mac
        return parse(frame, from_guest, (self._mac,))

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_for(device: str, mac: str, seconds: float, family: int | None = None) -> Heard | None:
    """The first address that a guest is heard to have, of one family (4 or 6) or any, as soon as it is heard.

    A link-local one comes only when the time is up and no other was heard. A link that goes meanwhile, as when the
    guest is started anew, is waited for by its name. Raises LinkGone where there is none to begin with, and Unable.
    """
    until = time.monotonic() + seconds
    listener: Listener | None = Listener(device, mac)
    spare: Heard | None = None
    try:
        while True:
            left = until - time.monotonic()
            try:
                if listener is None:
                    listener = Listener(device, mac)
                _readable(listener, left)
                said = listener.read()
            except LinkGone:
                if listener is not None:
                    listener.close()
                listener, said = None, []
                time.sleep(max(0.0, min(_AGAIN, left)))
            for heard in said:
                if heard.lost:
                    spare = None if spare and spare.address == heard.address else spare
                elif family in (None, heard.address.version):
                    if not heard.address.is_link_local:
                        return heard
                    spare = spare or heard
            if left <= 0:
                return spare
    finally:
        if listener is not None:
            listener.close()


def _readable(wire: Listener | socket.socket, seconds: float) -> bool:
    """Whether something came, an error too, within a time."""
    poll = select.poll()  # which, other than `select`, takes descriptors above 1023
    poll.register(wire, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


# --- asking ---------------------------------------------------------------------------------------------------------

#: The frames of a round of questions, given what was heard by then.
Round = Callable[[Collection[Address]], Iterable[bytes]]

#: Whether nobody wants to know any more; it is looked at every `_TURN` seconds.
Stopped = Callable[[], bool]

_TURN = 0.02


def _never() -> bool:
    return False


def ask(shim: str, mac: str, networks: Iterable[IPv4Network], stopped: Stopped = _never) -> set[Address]:
    """A silent guest's addresses in these networks, each asked for by an ARP probe (RFC 5227) to its MAC alone.

    Networks of more than 1024 addresses are left out. From 0.0.0.0, so that the guest learns nothing and answers for
    nobody else, be it a router with proxy ARP; Linux answers for the addresses of all its NICs, though. `shim` is a
    link that is up on the guest's parent, and from which its mode lets it be reached: else there is no answer. Takes
    about 0.5 s for a /24 and 0.9 s for a /22, less once it is `stopped`. Raises LinkGone, Unable.
    """
    asked = [address for network in networks if network.num_addresses <= ASK_MAX for address in network.hosts()]
    if not asked:
        return set()
    ours, guest = _macs(shim, mac)
    probes = {address: frames.arp_probe(guest, ours, address.packed) for address in asked}

    def unanswered(heard: Collection[Address]) -> Iterable[bytes]:
        return (probe for address, probe in probes.items() if address not in heard)

    return _converse(shim, mac, [unanswered, unanswered], stopped=stopped) & probes.keys()


def ask_v6(shim: str, mac: str, networks: Iterable[IPv6Network] = (), stopped: Stopped = _never) -> set[Address]:
    """A silent guest's link-local address, and for each of these networks the one that it would speak from there.

    The shim has no address, so the questions come from made-up ones, one in each network, which nobody holds: a guest
    that is to answer has to ask the link for it first, and that solicitation comes from the very address we look for.
    It is left without an answer, so that no packet goes to the host's own kernel, and the guest asks three times.
    Asked are, by frames to the guest's MAC alone: an echo to all nodes; the address that is made of the MAC (RFC 4291);
    and where nothing was heard, an echo behind an option that nobody knows, which passes most firewalls.

    Of several other addresses in a network one is found; in one longer than /104 none. Takes about 0.4 s. Raises
    LinkGone, Unable.
    """
    ours, guest = _macs(shim, mac)
    asked = {_LINK_LOCAL, *(network for network in networks if network.prefixlen <= _LONGEST)}
    group, _ = frames.solicited_node(ours)

    def first(heard: Collection[Address]) -> Iterable[bytes]:
        made = (_whether_made(guest, ours, network) for network in asked if network.prefixlen <= 64)
        return chain((_echo(guest, ours, network) for network in asked), made)

    def then(heard: Collection[Address]) -> Iterable[bytes]:
        silent = (network for network in asked if not any(address in network for address in heard))
        return chain.from_iterable(
            (_echo(guest, ours, network), _echo(guest, ours, network, _UNKNOWN_OPTION)) for network in silent
        )

    return {address for address in _converse(shim, mac, [first, then], [group], stopped) if address.version == 6}


def _macs(shim: str, mac: str) -> tuple[bytes, bytes]:
    with frames.refusals(shim, _USE):
        return _own_mac(shim), packed_mac(mac)


def _nobody(ours: bytes, network: IPv6Network) -> bytes:
    """An address in a network that nobody has: random but for its end, which our MAC's own half makes one group's.

    A new one each time: a guest that knows it to be unreachable would ask for it in the name of an earlier question.
    """
    host = int.from_bytes(os.urandom(13) + ours[3:]) & int(network.hostmask)
    return (network.network_address + host).packed


def _echo(guest: bytes, ours: bytes, network: IPv6Network, hop_by_hop: bytes = b"") -> bytes:
    message = struct.pack(">BBHHH", _ECHO_REQUEST, 0, 0, os.getpid() & 0xFFFF, 1)
    return frames.icmpv6(guest, ours, _nobody(ours, network), _ALL_NODES, message, hop_by_hop)


def _whether_made(guest: bytes, ours: bytes, network: IPv6Network) -> bytes:
    """Asks for the address that is made of the guest's MAC, as who knows it: Linux answers that without our MAC too,
    and so has to ask for it."""
    made = int.from_bytes((guest[0] ^ 2, *guest[1:3], 0xFF, 0xFE, *guest[3:]))
    target = (network.network_address + (made & int(network.hostmask))).packed
    message = struct.pack(">BBHI", frames.SOLICITATION, 0, 0, 0) + target
    return frames.icmpv6(guest, ours, _nobody(ours, network), target, message)


def _converse(
    shim: str, mac: str, rounds: Sequence[Round], groups: Iterable[bytes] = (), stopped: Stopped = _never
) -> set[Address]:
    """Asks in rounds, and returns what the guest was heard to have."""
    heard: set[Address] = set()
    with frames.refusals(shim, _USE):
        wire, _ = _open(shim, mac, groups)
        with wire:
            for questions, listen in zip(rounds, _LISTEN, strict=True):
                left = list(questions(heard))
                while left and not stopped():
                    for question in left[: frames.BATCH]:
                        with _full_queue():
                            wire.send(question)
                    left = left[frames.BATCH :]
                    _hear(wire, mac, frames.PAUSE, heard, stopped)
                _hear(wire, mac, listen, heard, stopped)
    return heard


@contextmanager
def _full_queue() -> Iterator[None]:
    """What a full queue drops is asked again in the next round."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
            raise


def _hear(wire: socket.socket, mac: str, seconds: float, heard: set[Address], stopped: Stopped) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopped():
        if _readable(wire, min(left, _TURN)):
            frame = wire.recv(2048)
            heard.update(said.address for said in parse(frame, True, (mac.lower(),)) if not said.lost)
