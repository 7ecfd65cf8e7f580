"""Reads the kernel's links, addresses, routes and neighbours: one rtnetlink dump each, over the standard library's
socket; of a link by its name that one alone.

pyroute2 takes 95 ms to import, which no command that only looks should pay. Layouts: linux/rtnetlink.h,
linux/if_link.h, linux/neighbour.h.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from provisioner.errors import MacvmError, NotFound
from provisioner.host import log
from provisioner.model.names import INTERFACE_NAME_MAX
from provisioner.model.nic import Address, Interface

_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE, _RTM_GETNEIGH = 18, 22, 26, 30
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NTF_SELF, _NTF_PROXY = 0x02, 0x08

ARPHRD_ETHER = 1

#: Flag of a dump's answer: something changed meanwhile, and it may not fit together (NLM_F_DUMP_INTR).
DUMP_INTERRUPTED = 0x10

#: How often a dump is asked for that is interrupted each time.
ATTEMPTS = 8

#: linux/if_link.h, enum macvlan_mode, in libvirt's spelling.
MACVLAN_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthrough", 16: "source"}

#: linux/if_link.h, enum ipvlan_mode
IPVLAN_MODES = {0: "l2", 1: "l3", 2: "l3s"}

_MODES_OF = {"macvlan": MACVLAN_MODES, "macvtap": MACVLAN_MODES, "ipvlan": IPVLAN_MODES, "ipvtap": IPVLAN_MODES}


class NetlinkFailed(MacvmError):
    """The kernel refused to show something."""


class Link(NamedTuple):
    """A network link. `mode` is a macvlan's or macvtap's, in libvirt's spelling, or an ipvlan's; `vlan` the number of a
    VLAN link (0: it is none); `lower` the index of the link it sits on (0: none, or in another namespace);
    `enslaved_to` the index of the bridge or bond it is a port of."""

    index: int  # type: ignore[assignment]  # tuple's method of that name nobody needs here
    name: str
    mac: str
    mtu: int
    kind: str
    up: bool
    carrier: bool
    hardware: int
    lower: int
    enslaved_to: int
    alias: str
    mode: str
    vlan: int = 0


class Route(NamedTuple):
    """A route of the main table. `protocol` tells who made it."""

    destination: ipaddress.IPv4Network | ipaddress.IPv6Network
    device: int
    source: Address | None
    gateway: Address | None
    protocol: int


class Neighbour(NamedTuple):
    """An entry of the neighbour table, or, with `proxy`, an address that the host answers for."""

    address: Address
    device: int
    mac: str
    state: int
    proxy: bool
    protocol: int = 0


def _attributes(data: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _dump(kind: int, request: bytes) -> list[bytes]:
    """Payloads of the answers to one dump; asked again when the kernel says that it changed meanwhile."""
    for _ in range(ATTEMPTS):
        found, interrupted = [], False
        for data in packets(kind, request):
            offset = 0
            while offset < len(data) and not is_end(data, offset):
                length, flags = struct.unpack_from("I2xH", data, offset)
                interrupted |= bool(flags & DUMP_INTERRUPTED)
                found.append(data[offset + 16 : offset + length])
                offset += (length + 3) & ~3
            if offset < len(data):
                break
        if not interrupted:
            break
    return found


def packets(kind: int, request: bytes) -> Iterator[bytes]:
    """What the kernel answers to one dump, many whole messages to a packet, of which the very last `is_end`: whoever
    reads asks no further then."""
    with _asked(kind, _NLM_F_DUMP, request) as channel:
        while True:
            yield channel.recv(1 << 18)


@contextlib.contextmanager
def _asked(kind: int, flags: int, request: bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as channel:
        channel.bind((0, 0))
        header = struct.pack("IHHII", 16 + len(request), kind, _NLM_F_REQUEST | flags, 1, 0)
        if log.is_detailed():
            log.netlink(header + request)
        channel.send(header + request)
        yield channel


def is_end(data: bytes, offset: int) -> bool:
    """Whether a message of a dump's says that this was all. Raises NetlinkFailed where it says that it failed."""
    refused = _refusal(data, offset)
    if refused:
        raise _failed(refused)
    (kind,) = struct.unpack_from("H", data, offset + 4)
    return bool(kind == _NLMSG_DONE)


def _refusal(data: bytes, offset: int) -> int:
    """The errno where a message says that nothing is shown, else 0."""
    (kind,) = struct.unpack_from("H", data, offset + 4)
    return -int(struct.unpack_from("i", data, offset + 16)[0]) if kind == _NLMSG_ERROR else 0


def _failed(number: int) -> NetlinkFailed:
    return NetlinkFailed(f"the kernel refused a netlink request: {os.strerror(number)}", "does `ip link` work?")


class Monitor:
    """Says when links, addresses or routes change; for a selector, by `fileno`."""

    #: linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
    _GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._channel = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._channel.bind((0, self._GROUPS))

    def fileno(self) -> int:
        return self._channel.fileno()

    def drain(self) -> None:
        """Forgets what has come: that something did is all there is to know, were it too much for the socket."""
        while True:
            try:
                self._channel.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        self._channel.close()


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def as_number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "little" if struct.pack("H", 1) == b"\1\0" else "big")


def links() -> list[Link]:
    """Every link of this network namespace."""
    return [_link(data) for data in _dump(_RTM_GETLINK, struct.pack("BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0))]


def _link(data: bytes) -> Link:
    _, hardware, index, flags, _ = struct.unpack_from("BxHiII", data)
    attributes = _attributes(data, 16)
    info = _attributes(attributes.get(18, b""), 0)  # IFLA_LINKINFO
    kind = _text(info.get(1))
    # IFLA_MACVLAN_MODE, IFLA_IPVLAN_MODE and IFLA_VLAN_ID are all number 1 of their kind's own data.
    first, modes = as_number(_attributes(info.get(2, b""), 0).get(1)), _MODES_OF.get(kind)
    return Link(
        index=index,
        name=_text(attributes.get(3)),
        mac=attributes.get(1, b"").hex(":"),
        mtu=as_number(attributes.get(4)),
        kind=kind,
        up=bool(flags & 1),
        carrier=bool(as_number(attributes.get(33))),
        hardware=hardware,
        # IFLA_LINK of a veth is its peer, which is no lower link.
        lower=as_number(attributes.get(5)) if kind != "veth" and 37 not in attributes else 0,
        enslaved_to=as_number(attributes.get(10)),
        alias=_text(attributes.get(20)),
        mode=modes.get(first, "") if modes else "",
        vlan=first if kind == "vlan" else 0,
    )


def find_link(name: str) -> Link | None:
    """The kernel is asked for that one: where there are four hundred, all of them take 7 ms."""
    from provisioner.host.messages import nested  # which who looks at all links has no use for

    text = name.encode(errors="replace")
    if not 0 < len(text) <= INTERFACE_NAME_MAX:
        return None
    wanted = nested([(3, text + b"\0")])  # IFLA_IFNAME
    with _asked(_RTM_GETLINK, 0, struct.pack("BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + wanted) as channel:
        data = channel.recv(1 << 18)
    refused = _refusal(data, 0)
    if refused not in (0, errno.ENODEV):
        raise _failed(refused)
    link = None if refused else _link(data[16:])
    return link if link and link.name == name else None


def get_link(name: str) -> Link:
    """Raises NotFound."""
    link = find_link(name)
    if link is None:
        raise NotFound(f"there is no link {name} on this host", "`ip link` shows all there are")
    return link


def addresses(device: int) -> list[Interface]:
    """Addresses of a link that others may use: global scope, not tentative in vain."""
    return [interface for index, interface in all_addresses() if index == device]


def all_addresses() -> list[tuple[int, Interface]]:
    """As `addresses`, of every link, each with its link's index."""
    found: list[tuple[int, Interface]] = []
    for data in _dump(_RTM_GETADDR, struct.pack("BBBBi", socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, length, _, scope, index = struct.unpack_from("BBBBi", data)
        if scope != 0:
            continue
        attributes = _attributes(data, 8)
        packed = attributes.get(2) or attributes.get(1)  # IFA_LOCAL, IFA_ADDRESS
        if packed:
            found.append((index, ipaddress.ip_interface((ipaddress.ip_address(packed), length))))
    return found


def routes(family: int = socket.AF_UNSPEC) -> list[Route]:
    """Unicast routes of the main table."""
    return list(_routes(family))


def _routes(family: int) -> Iterator[Route]:
    for data in _dump(_RTM_GETROUTE, struct.pack("BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)):
        kind, length, _, _, table, protocol, _, route_type = struct.unpack_from("8B", data)
        if kind not in (socket.AF_INET, socket.AF_INET6) or table != 254 or route_type != 1:
            continue
        attributes = _attributes(data, 12)
        empty = bytes(4 if kind == socket.AF_INET else 16)
        source, gateway = attributes.get(7), attributes.get(5)
        yield Route(
            destination=ipaddress.ip_network((attributes.get(1, empty), length)),
            device=as_number(attributes.get(4)),
            source=ipaddress.ip_address(source) if source else None,
            gateway=ipaddress.ip_address(gateway) if gateway else None,
            protocol=protocol,
        )


def neighbours(*, proxies: bool = False) -> list[Neighbour]:
    """The neighbour table, or the proxy entries."""
    found = []
    flags = _NTF_PROXY if proxies else 0
    for data in _dump(_RTM_GETNEIGH, struct.pack("BxHiHBB", socket.AF_UNSPEC, 0, 0, 0, flags, 0)):
        family, _, device, state, entry_flags, _ = struct.unpack_from("BxHiHBB", data)
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        attributes = _attributes(data, 12)
        if 1 in attributes:
            address = ipaddress.ip_address(attributes[1])
            mac = attributes.get(2, b"").hex(":")
            # NDA_PROTOCOL
            made_by = as_number(attributes.get(12))
            found.append(Neighbour(address, device, mac, state, bool(entry_flags & _NTF_PROXY), made_by))
    return found


def confirmed() -> dict[tuple[int, Address], float]:
    """Device and address of each neighbour to the seconds since it was last known to be there."""
    found = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for data in _dump(_RTM_GETNEIGH, struct.pack("BxHiHBB", socket.AF_UNSPEC, 0, 0, 0, 0, 0)):
        family, _, device, _, _, _ = struct.unpack_from("BxHiHBB", data)
        attributes = _attributes(data, 12)
        # NDA_CACHEINFO: struct nda_cacheinfo, whose first number is ndm_confirmed.
        if family in (socket.AF_INET, socket.AF_INET6) and 1 in attributes and 3 in attributes:
            found[device, ipaddress.ip_address(attributes[1])] = as_number(attributes[3][:4]) / ticks
    return found


def macs_behind(device: int) -> set[str]:
    """Unicast MACs that a link lets in besides its own: those of the macvlans on it that are up, in any namespace.

    The one trace on this side of a macvlan that was moved into another namespace. An ipvlan leaves none: it has its
    parent's MAC.
    """
    found = set()
    for data in _dump(_RTM_GETNEIGH, struct.pack("BxHiHBB", socket.AF_BRIDGE, 0, 0, 0, 0, 0)):
        family, _, index, _, flags, _ = struct.unpack_from("BxHiHBB", data)
        mac = _attributes(data, 12).get(2, b"")
        if family == socket.AF_BRIDGE and index == device and flags & _NTF_SELF and len(mac) == 6 and not mac[0] & 1:
            found.add(mac.hex(":"))
    return found


def default_parent() -> str | None:
    """Name of the default route's link, IPv4's before IPv6's."""
    names = {link.index: link.name for link in links()}
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in routes(family):
            if route.destination.prefixlen == 0 and route.device in names:
                return names[route.device]
    return None


def is_wireless(name: str) -> bool:
    return any(Path("/sys/class/net", name, entry).exists() for entry in ("wireless", "phy80211"))
