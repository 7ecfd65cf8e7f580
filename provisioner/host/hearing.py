"""Learns a guest's addresses without an agent: from the frames on its own macvtap, and by asking it when it is silent.

On a macvtap the kernel shows what the guest sends as outgoing, and what comes to it as incoming.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from types import TracebackType

from provisioner.errors import NotFound
from provisioner.host import bpf, dissecting, frames
from provisioner.host.bpf import DROP, Step
from provisioner.host.dissecting import Heard, parse
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

_ECHO_REQUEST = 128
_LINK_LOCAL, _ALL_NODES = IPv6Network("fe80::/64"), IPv6Address("ff02::1").packed
#: An option that nobody knows, filled up, of the kind to which even what goes to a group is answered by an error
#: (RFC 8200, 4.2); that is before a firewall is asked.
_UNKNOWN_OPTION = bytes.fromhex("800400000000")
#: The longest IPv6 prefix in which an address can be made up that ends in a MAC's own half.
_LONGEST = 104


class LinkGone(NotFound):
    """The link that was listened on is gone, or never was. One of the same name is another link, to be opened anew."""


_USE = frames.Use("to listen on", "the guest cannot be asked", "listening on", "listen on", LinkGone)


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
        *_if_udp_to(dissecting.SERVER, dissecting.SERVER6),
    )
    return bpf.assemble([*bpf.UNTAGGED, *from_guest, *_if_udp_to(dissecting.CLIENT, dissecting.CLIENT6)])


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
