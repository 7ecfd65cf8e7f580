"""Host routes, neighbour entries and proxies of macvm's own protocol: read as one set, changed as one batch.

A thousand guests are a few thousand messages: they go over one socket, many to a packet, and the kernel's words on them
are read as they come.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from provisioner.errors import MacvmError, Unable
from provisioner.host import netlink
from provisioner.host.links import PROTOCOL
from provisioner.host.netlink import Link
from provisioner.model.nic import Address
from provisioner.model.shim import Neighbour, Route, ShimSet, whole

# linux/rtnetlink.h, linux/neighbour.h, linux/if_addr.h, linux/netlink.h
_NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH = 20, 21, 24, 25, 28, 29
_IFA_LOCAL, _IFA_ADDRESS, _IFA_FLAGS, _NODAD, _NOPREFIXROUTE = 2, 1, 8, 0x02, 0x200
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL = 1, 4, 7, 1, 2, 12
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_SCOPE_LINK, _SCOPE_NOWHERE = 253, 255
_PERMANENT, _PROXY = 0x80, 0x08

#: What "there already" and "gone already" are in these messages' answers.
_THERE = frozenset({errno.EEXIST})
_GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV})


_T = TypeVar("_T")


class RoutingFailed(MacvmError):
    """The kernel refused a change."""


class _Change(NamedTuple):
    """One message, what it does in words, and the errors that are no failure."""

    doing: str
    message: netlink.Message
    fine: frozenset[int]


class ForeignRoute(NamedTuple):
    """A route to a guest's address that macvm did not make, and the link that it leads through."""

    address: Address
    device: str


def read(shim: Link) -> ShimSet:
    """What macvm has put on a shim; what others have put there is not in it."""
    routes = [one for one in netlink.routes() if one.device == shim.index and one.protocol == PROTOCOL and one.source]
    entries = [one for one in netlink.neighbours() if one.device == shim.index and one.protocol == PROTOCOL]
    proxies = [one for one in netlink.neighbours(proxies=True) if one.device == shim.index]
    own = [one.ip for one in netlink.addresses(shim.index) if one.network.prefixlen == one.max_prefixlen]
    return ShimSet(
        frozenset(Route(one.destination.network_address, one.source) for one in routes if one.source),
        frozenset(Neighbour(one.address, one.mac) for one in entries if one.state == _PERMANENT),
        frozenset(one.address for one in proxies),
        frozenset(own),
    )


def foreign_routes(addresses: Iterable[Address]) -> list[ForeignRoute]:
    """Routes to these addresses that are not macvm's."""
    mine = {whole(address): address for address in addresses}
    found = [one for one in netlink.routes() if one.destination in mine and one.protocol != PROTOCOL]
    names = {link.index: link.name for link in netlink.links()} if found else {}
    return [ForeignRoute(mine[one.destination], names.get(one.device, "?")) for one in found]


def change(shim: Link, add: ShimSet, remove: ShimSet) -> None:
    """Adds, and then removes. A route of macvm's to the same address, through whatever link, gives way to the new one
    without a moment between them. There already, and gone already, are fine. Raises RoutingFailed, Unable."""
    ours = {one.destination for one in netlink.routes() if one.protocol == PROTOCOL} if add.routes else set()
    changes = [
        *(_address(_NEWADDR, _CREATE | _REPLACE, address, shim) for address in _ordered(add.own)),
        # The neighbour first: a packet that goes out by the new route must not be asked for by broadcast.
        *(_neighbour(_NEWNEIGH, _CREATE | _REPLACE, one.address, shim, one.mac) for one in _ordered(add.neighbours)),
        *(_proxy(_NEWNEIGH, _CREATE | _EXCLUSIVE, address, shim) for address in _ordered(add.proxies)),
        *(_route(_NEWROUTE, _how(one, ours), one, shim) for one in _ordered(add.routes)),
    ]
    kept_routes = {one.address for one in add.routes}
    kept_entries = {one.address for one in add.neighbours}
    changes += [
        *(_route(_DELROUTE, 0, one, shim) for one in _ordered(remove.routes) if one.address not in kept_routes),
        *(
            _neighbour(_DELNEIGH, 0, one.address, shim)
            for one in _ordered(remove.neighbours)
            if one.address not in kept_entries
        ),
        *(_proxy(_DELNEIGH, 0, address, shim) for address in _ordered(remove.proxies)),
        *(_address(_DELADDR, 0, address, shim) for address in _ordered(remove.own)),
    ]
    _apply(changes)


def _ordered(values: Iterable[_T]) -> list[_T]:
    """The same each time, whatever the set's own order."""
    return sorted(values, key=_sort_key)


def _sort_key(value: object) -> tuple[int, int]:
    address = value if isinstance(value, Address) else value.address  # type: ignore[attr-defined]
    return address.version, int(address)


def _how(route: Route, ours: set[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> int:
    return _CREATE | (_REPLACE if whole(route.address) in ours else _EXCLUSIVE)


def _apply(changes: Sequence[_Change]) -> None:
    answers = netlink.batch([change.message for change in changes])
    for one, number in zip(changes, answers, strict=True):
        if number == 0 or number in one.fine:
            continue
        reason = f"the kernel refused to {one.doing}: {errno.errorcode.get(number, str(number))}"
        if number in (errno.EPERM, errno.EACCES):
            raise Unable(reason, "run as root: sudo macvm …")
        raise RoutingFailed(reason, "`ip route` and `ip neigh` show what is there")


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _route(kind: int, flags: int, route: Route, shim: Link) -> _Change:
    adds = kind == _NEWROUTE
    # Nowhere matches any scope; universe would match no link-scoped route.
    scope = _SCOPE_LINK if adds else _SCOPE_NOWHERE
    address = route.address
    # struct rtmsg, of the main table: a unicast route of macvm's own protocol
    header = struct.pack("BBBBBBBBI", _family(address), address.max_prefixlen, 0, 0, 254, PROTOCOL, scope, 1, 0)
    attributes = {_RTA_DST: address.packed, _RTA_OIF: struct.pack("I", shim.index)}
    if adds:
        attributes[_RTA_PREFSRC] = route.source.packed
    doing = f"{'add' if adds else 'remove'} the route to {address} through {shim.name}"
    return _Change(doing, netlink.Message(kind, flags, header, attributes), frozenset() if adds else _GONE)


def _neighbour(kind: int, flags: int, address: Address, shim: Link, mac: str = "") -> _Change:
    """A permanent entry: the host never has to ask for this guest."""
    attributes = {_NDA_DST: address.packed, _NDA_PROTOCOL: bytes([PROTOCOL])}
    if mac:
        attributes[_NDA_LLADDR] = bytes.fromhex(mac.replace(":", ""))
    message = netlink.Message(kind, flags, _entry(address, shim, 0), attributes)
    doing = f"{'set' if mac else 'remove'} the neighbour entry of {address} on {shim.name}"
    return _Change(doing, message, frozenset() if mac else _GONE)


def _proxy(kind: int, flags: int, address: Address, shim: Link) -> _Change:
    """The host answers neighbour solicitations for its own IPv6 address on another link."""
    message = netlink.Message(kind, flags, _entry(address, shim, _PROXY), {_NDA_DST: address.packed})
    return _Change(f"answer for {address} on {shim.name}", message, _THERE if kind == _NEWNEIGH else _GONE)


def _entry(address: Address, shim: Link, flags: int) -> bytes:
    # struct ndmsg
    return struct.pack("BxHiHBB", _family(address), 0, shim.index, _PERMANENT, flags, 0)


def _address(kind: int, flags: int, address: Address, shim: Link) -> _Change:
    """One that nobody else is told of: no route comes with it, and macvm has asked the LAN for it already."""
    # struct ifaddrmsg
    header = struct.pack("BBBBi", _family(address), address.max_prefixlen, 0, 0, shim.index)
    attributes = {_IFA_LOCAL: address.packed, _IFA_ADDRESS: address.packed}
    attributes[_IFA_FLAGS] = struct.pack("I", _NOPREFIXROUTE | (_NODAD if address.version == 6 else 0))
    doing = f"{'give' if kind == _NEWADDR else 'take'} {address} {'to' if kind == _NEWADDR else 'from'} {shim.name}"
    return _Change(doing, netlink.Message(kind, flags, header, attributes), _THERE if kind == _NEWADDR else _GONE)
