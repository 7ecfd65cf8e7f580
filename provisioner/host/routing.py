"""Host routes, neighbour entries and proxies of macvm's own protocol: read as one set, changed as one batch.

A thousand guests are a few thousand messages: they go over one socket, many to a packet, and the kernel's words on them
are read as they come.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from provisioner.errors import MacvmError, Unable
from provisioner.host import log, messages, netlink
from provisioner.host.dumps import dump
from provisioner.host.links import PROTOCOL
from provisioner.host.messages import Form
from provisioner.host.netlink import Link
from provisioner.model.nic import Address
from provisioner.model.shim import Guests, ShimSet

# linux/rtnetlink.h, linux/neighbour.h, linux/if_addr.h, linux/netlink.h
_NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH = 20, 21, 24, 25, 28, 29
_GETROUTE, _GETNEIGH = 26, 30
_IFA_LOCAL, _IFA_ADDRESS, _IFA_FLAGS, _NODAD, _NOPREFIXROUTE = 2, 1, 8, 0x02, 0x200
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL = 1, 4, 7, 1, 2, 12
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_SCOPE_LINK, _SCOPE_NOWHERE = 253, 255
_MAIN, _UNICAST = 254, 1
_PERMANENT, _PROXY = 0x80, 0x08

#: What "there already" and "gone already" are in these messages' answers.
_THERE = frozenset({errno.EEXIST})
_GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV})

_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


def packed(guests: Collection[Iterable[str]]) -> Guests:
    """Of pairs of address and MAC, as the store has them; the last of two with one address."""
    macs = bytes.fromhex("".join([mac for _, mac in guests]).replace(":", ""))
    addresses = [
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address, _ in guests
    ]
    return dict(zip(addresses, [macs[at : at + 6] for at in range(0, len(macs), 6)], strict=True))


class RoutingFailed(MacvmError):
    """The kernel refused a change."""


class ForeignRoute(NamedTuple):
    """A route to a guest's address that macvm did not make, and the link that it leads through."""

    address: Address
    device: str


class HostRoutes(NamedTuple):
    """The routes to single addresses, packed: macvm's, by the index of the link they lead through, each with its
    source; and those of others, with that index."""

    ours: dict[int, dict[bytes, bytes]]
    others: dict[bytes, int]

    @classmethod
    def read(cls) -> HostRoutes:
        ours, others = dict[bytes, dict[bytes, bytes]](), dict[bytes, int]()
        for at, rows in dump(_GETROUTE, bytes(12), 12):
            to, through, source = at.get(_RTA_DST), at.get(_RTA_OIF), at.get(_RTA_PREFSRC)
            if to is None or through is None:
                continue
            protocols = {head: _protocol(head) for head in {row[0] for row in rows}}
            for row in rows:
                protocol = protocols[row[0]]
                if protocol == PROTOCOL:
                    # An IPv6 route outlives the address that it was pinned to: the kernel takes the pin from it.
                    ours.setdefault(row[through], {})[row[to]] = row[source] if source else b""
                elif protocol and protocol != PROTOCOL:
                    others[row[to]] = netlink.as_number(row[through])
        return cls({netlink.as_number(index): routes for index, routes in ours.items()}, others)

    def foreign(self, guests: Guests) -> list[ForeignRoute]:
        """Those to guests that are not macvm's."""
        there = [address for address in self.others if address in guests]
        names = {link.index: link.name for link in netlink.links()} if there else {}
        return [ForeignRoute(ipaddress.ip_address(one), names.get(self.others[one], "?")) for one in there]


def _protocol(head: bytes) -> int:
    """Who made a route, of its `struct rtmsg`; 0 for one that is no unicast route of the main table to a single
    address."""
    family, length, _, _, table, protocol, _, kind = struct.unpack_from("8B", head)
    single = length == {socket.AF_INET: 32, socket.AF_INET6: 128}.get(family)
    return int(protocol) if single and table == _MAIN and kind == _UNICAST else 0


def read(shim: Link, routes: HostRoutes | None = None) -> ShimSet:
    """What macvm has put on a shim; what others have put there is not in it."""
    proxies = [one for one in netlink.neighbours(proxies=True) if one.device == shim.index]
    own = [one.ip for one in netlink.addresses(shim.index) if one.network.prefixlen == one.max_prefixlen]
    return ShimSet(
        (routes or HostRoutes.read()).ours.get(shim.index, {}),
        _entries(shim),
        frozenset(one.address.packed for one in proxies),
        frozenset(one.packed for one in own),
    )


def _entries(shim: Link) -> Guests:
    """macvm's permanent neighbour entries on a shim."""
    found: Guests = {}
    ours = bytes([PROTOCOL])
    # struct ndmsg: its family, its link and its state, without its flags
    permanent = {_entry(family, shim, 0)[:10] for family in _FAMILIES.values()}
    for at, rows in dump(_GETNEIGH, bytes(12), 12):
        to, mac, protocol = at.get(_NDA_DST), at.get(_NDA_LLADDR), at.get(_NDA_PROTOCOL)
        if to is None or mac is None or protocol is None:
            continue
        heads = {head for head in {row[0] for row in rows} if head[:10] in permanent}
        found |= {row[to]: row[mac] for row in rows if row[protocol] == ours and row[0] in heads}
    return found


class _Changes:
    """A batch under way: messages, and what to say where the kernel refuses one."""

    def __init__(self, shim: Link) -> None:
        self._shim = shim
        self._messages: list[bytes] = []
        self._told: list[tuple[str, bytes, frozenset[int]]] = []

    def add(
        self,
        doing: str,
        fine: frozenset[int],
        form: Callable[[int, int, Link], Form],
        rows: Mapping[bytes, bytes] | Iterable[bytes],
    ) -> None:
        """A message for each address, and what comes with it; `form` takes the address's family and length. In the
        addresses' order, so that a failure is the same each time."""
        forms = {length: form(family, length, self._shim) for length, family in _FAMILIES.items()}
        values = rows if isinstance(rows, Mapping) else None
        for address in sorted(rows):
            payloads = (address, values[address]) if values else (address,)
            self._messages.append(forms[len(address)].filled(len(self._messages), *payloads))
            self._told.append((doing, address, fine))

    def apply(self) -> None:
        """Raises RoutingFailed, Unable."""
        for number, error in messages.batch(self._messages).items():
            doing, address, fine = self._told[number]
            if error in fine:
                continue
            what = doing.format(ipaddress.ip_address(address), self._shim.name)
            reason = f"the kernel refused to {what}: {errno.errorcode.get(error, str(error))}"
            if error in (errno.EPERM, errno.EACCES):
                raise Unable(reason, "run as root: sudo macvm …")
            raise RoutingFailed(reason, "`ip route` and `ip neigh` show what is there")


def change(shim: Link, add: ShimSet, remove: ShimSet, routes: HostRoutes | None = None) -> None:
    """Adds, and then removes. A route of macvm's to the same address, through whatever link, gives way to the new one
    without a moment between them. There already, and gone already, are fine. Raises RoutingFailed, Unable."""
    if not add and not remove:
        return
    log.step(f"routes of {shim.name}: {len(add.routes)} to add, {len(remove.routes)} to remove")
    there = (routes or HostRoutes.read()).ours.values() if add.routes else ()
    moved = {one for ours in there for one in ours if one in add.routes}
    fresh = {one: source for one, source in add.routes.items() if one not in moved}
    changes, none = _Changes(shim), frozenset[int]()
    changes.add("give {} to {}", _THERE, _address_form(_NEWADDR, _CREATE | _REPLACE), _twice(add.own))
    # The neighbour first: a packet that goes out by the new route must not be asked for by broadcast.
    changes.add("set the neighbour entry of {} on {}", none, _new_neighbour, add.neighbours)
    changes.add("answer for {} on {}", _THERE, _proxy_form(_NEWNEIGH, _CREATE | _EXCLUSIVE), add.proxies)
    changes.add("add the route to {} through {}", none, _new_route(_CREATE | _EXCLUSIVE), fresh)
    changes.add("add the route to {} through {}", none, _new_route(_CREATE | _REPLACE), _of(moved, add.routes))
    changes.add("remove the route to {} through {}", _GONE, _old_route, remove.routes.keys() - add.routes.keys())
    gone = remove.neighbours.keys() - add.neighbours.keys()
    changes.add("remove the neighbour entry of {} on {}", _GONE, _old_neighbour, gone)
    changes.add("no longer answer for {} on {}", _GONE, _proxy_form(_DELNEIGH, 0), remove.proxies)
    changes.add("take {} from {}", _GONE, _address_form(_DELADDR, 0), _twice(remove.own))
    changes.apply()


def _of(some: Iterable[bytes], rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {one: rows[one] for one in some}


def _twice(addresses: Iterable[bytes]) -> dict[bytes, bytes]:
    return {one: one for one in addresses}


# the forms of the messages, for each family


def _new_route(flags: int) -> Callable[[int, int, Link], Form]:
    def form(family: int, length: int, shim: Link) -> Form:
        header = _route_header(family, length, _SCOPE_LINK)
        through = struct.pack("I", shim.index)
        return Form(_NEWROUTE, flags, header, {_RTA_OIF: through, _RTA_DST: length, _RTA_PREFSRC: length})

    return form


def _old_route(family: int, length: int, shim: Link) -> Form:
    # Nowhere matches any scope; universe would match no link-scoped route.
    header = _route_header(family, length, _SCOPE_NOWHERE)
    return Form(_DELROUTE, 0, header, {_RTA_OIF: struct.pack("I", shim.index), _RTA_DST: length})


def _route_header(family: int, length: int, scope: int) -> bytes:
    # struct rtmsg, of the main table: a unicast route of macvm's own protocol
    return struct.pack("BBBBBBBBI", family, length * 8, 0, 0, _MAIN, PROTOCOL, scope, _UNICAST, 0)


def _new_neighbour(family: int, length: int, shim: Link) -> Form:
    """A permanent entry: the host never has to ask for this guest."""
    header = _entry(family, shim, 0)
    return Form(
        _NEWNEIGH, _CREATE | _REPLACE, header, {_NDA_PROTOCOL: bytes([PROTOCOL]), _NDA_DST: length, _NDA_LLADDR: 6}
    )


def _old_neighbour(family: int, length: int, shim: Link) -> Form:
    return Form(_DELNEIGH, 0, _entry(family, shim, 0), {_NDA_PROTOCOL: bytes([PROTOCOL]), _NDA_DST: length})


def _proxy_form(kind: int, flags: int) -> Callable[[int, int, Link], Form]:
    """The host answers neighbour solicitations for its own IPv6 address on another link."""
    return lambda family, length, shim: Form(kind, flags, _entry(family, shim, _PROXY), {_NDA_DST: length})


def _entry(family: int, shim: Link, flags: int) -> bytes:
    # struct ndmsg
    return struct.pack("BxHiHBB", family, 0, shim.index, _PERMANENT, flags, 0)


def _address_form(kind: int, flags: int) -> Callable[[int, int, Link], Form]:
    """One that nobody else is told of: no route comes with it, and macvm has asked the LAN for it already."""

    def form(family: int, length: int, shim: Link) -> Form:
        # struct ifaddrmsg
        header = struct.pack("BBBBi", family, length * 8, 0, 0, shim.index)
        how = _NOPREFIXROUTE | (_NODAD if family == socket.AF_INET6 else 0)
        return Form(kind, flags, header, {_IFA_FLAGS: struct.pack("I", how), _IFA_LOCAL: length, _IFA_ADDRESS: length})

    return form
