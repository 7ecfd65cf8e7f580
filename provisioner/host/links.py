"""Changes links, routes, neighbours and their sysctls: the only importer of pyroute2. `host.netlink` reads them.

Everything made here carries macvm's mark, an `ifalias` or macvm's own route protocol; only what carries it is removed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provisioner.errors import MacvmError, NotFound, Taken, Unable
from provisioner.host import netlink
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.nic import Address

#: `ifalias` of what macvm made begins with it.
MARK = "macvm:"

#: Who made a route or neighbour entry (rtm_protocol, NDA_PROTOCOL); a number that /etc/iproute2/rt_protos leaves free.
PROTOCOL = 109

# linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h, linux/if.h, linux/netlink.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWROUTE, _RTM_DELROUTE, _RTM_NEWNEIGH, _RTM_DELNEIGH = 16, 17, 24, 25, 28, 29
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 5, 18, 20
_INFO_KIND, _INFO_DATA, _MACVLAN_MODE = 1, 2, 1
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL = 1, 4, 7, 1, 2, 12
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_SCOPE_LINK, _SCOPE_NOWHERE = 253, 255
_PERMANENT, _PROXY = 0x80, 0x08
_UP, _ALLMULTI = 0x1, 0x200


class LinkFailed(MacvmError):
    """The kernel refused a change."""


@contextlib.contextmanager
def _refusals(doing: str) -> Iterator[None]:
    """The kernel's errors as ours."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reason = f"the kernel refused to {doing}: {errno.errorcode.get(number, str(error))}"
        if number == errno.EEXIST:
            raise Taken(f"{reason}: it exists already", "`ip route` and `ip link` show it") from error
        if number == errno.EADDRINUSE:
            raise Taken(f"{reason}: another link on the parent has this MAC", "`ip -d link` shows it") from error
        if number in (errno.EPERM, errno.EACCES):
            raise Unable(reason, "run as root: sudo macvm …") from error
        if number in (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT):
            raise NotFound(reason, "it is gone; try again") from error
        raise LinkFailed(reason, "`dmesg | tail` may say more") from error


@contextlib.contextmanager
def _pyroute2(doing: str) -> Iterator[Any]:
    """A short-lived channel of pyroute2's, for what is done rarely.

    What `create` and `nic attach` need goes through `netlink.request`: they do without 95 ms of import.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with _refusals(doing):
        try:
            with IPRoute() as channel:
                yield channel
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error


def kernel_mode(mode: MacvtapMode) -> str:
    """The kernel's word for a mode: passthrough is `passthru` to it, and only here."""
    return "passthru" if mode is MacvtapMode.PASSTHROUGH else mode.value


def add_macvlan(name: str, parent: Link, mac: str, alias: str) -> Link:
    """A macvlan in bridge mode, marked and still down. Raises Taken where the name exists."""
    data = netlink.nested([(_MACVLAN_MODE, struct.pack("I", 4))])
    kind = netlink.nested([(_INFO_KIND, b"macvlan"), (_INFO_DATA | netlink.NESTED, data)])
    attributes = {
        _IFLA_IFNAME: name.encode() + b"\0",
        _IFLA_LINK: struct.pack("I", parent.index),
        # The MAC goes into the message that makes the link: udev must not see one to change.
        _IFLA_ADDRESS: bytes.fromhex(mac.replace(":", "")),
        _IFLA_LINKINFO | netlink.NESTED: kind,
    }
    with _refusals(f"make the macvlan {name} on {parent.name}"):
        netlink.request(_RTM_NEWLINK, _CREATE | _EXCLUSIVE, _link_header(0), attributes)
    return _marked(name, alias)


def _marked(name: str, alias: str) -> Link:
    """A link that was just made, with macvm's mark: the kernel takes none in the message that makes one."""
    link = netlink.get_link(name)
    try:
        _set_link(link.index, f"mark {name}", attributes={_IFLA_IFALIAS: alias.encode()})
    except MacvmError:
        # Unmarked, nobody would ever remove it.
        with contextlib.suppress(MacvmError):
            remove(link._replace(alias=alias))
        raise
    return link._replace(alias=alias)


def set_up(link: Link) -> None:
    _set_link(link.index, f"bring {link.name} up", flags=_UP)


def remove(link: Link) -> None:
    """Removes a link that macvm made. Gone already is fine; one without macvm's mark is an error."""
    if not link.alias.startswith(MARK):
        raise Unable(f"{link.name} is not macvm's", f"remove it with: ip link del {link.name}")
    with contextlib.suppress(NotFound), _refusals(f"remove {link.name}"):
        netlink.request(_RTM_DELLINK, 0, _link_header(link.index), {})


def prepare_nic(device: str, mtu: int | None) -> None:
    """Host state of a guest's macvtap: multicast is let through to the guest, and the host takes no address on it.

    Without allmulticast neither IPv6 nor multicast reaches the guest. Lost with the device at every stop.
    """
    sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "1")
    attributes = {_IFLA_MTU: struct.pack("I", mtu)} if mtu else {}
    _set_link(_index(device), f"prepare {device}", flags=_ALLMULTI, attributes=attributes)


def _set_link(index: int, doing: str, *, flags: int = 0, attributes: netlink.Attributes | None = None) -> None:
    with _refusals(doing):
        netlink.request(_RTM_NEWLINK, 0, _link_header(index, flags), attributes or {})


def _link_header(index: int, flags: int = 0) -> bytes:
    """struct ifinfomsg: what is in `flags` is turned on, all else left."""
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def set_mode(device: str, mode: MacvtapMode) -> None:
    """Changes a running macvtap's mode: bridge, vepa and private among one another; the kernel refuses passthrough."""
    with _pyroute2(f"set {device} to mode {mode.value}") as ip:
        ip.link("set", index=_index(device), kind="macvtap", macvtap_mode=kernel_mode(mode))


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        hint = "was the VM stopped, or the link deleted? macvm nic set NAME --replug plugs it in again"
        raise NotFound(f"there is no link {device} on this host", hint) from None


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _change_route(kind: int, flags: int, address: Address, device: int, scope: int, source: Address | None) -> None:
    # struct rtmsg, of the main table: a unicast host route of macvm's own protocol.
    header = struct.pack("BBBBBBBBI", _family(address), address.max_prefixlen, 0, 0, 254, PROTOCOL, scope, 1, 0)
    attributes = {_RTA_DST: address.packed, _RTA_OIF: struct.pack("I", device)}
    if source:
        attributes[_RTA_PREFSRC] = source.packed
    netlink.request(kind, flags, header, attributes)


def add_route(address: Address, device: Link, source: Address) -> None:
    """A host route with its source pinned, marked by macvm's protocol. Raises Taken where one exists."""
    with _refusals(f"add the route to {address}"):
        _change_route(_RTM_NEWROUTE, _CREATE | _EXCLUSIVE, address, device.index, _SCOPE_LINK, source)


def remove_route(address: Address, device: int) -> None:
    """Gone already is fine."""
    with contextlib.suppress(NotFound), _refusals(f"remove the route to {address}"):
        # Nowhere matches any scope; universe would match no link-scoped route.
        _change_route(_RTM_DELROUTE, 0, address, device, _SCOPE_NOWHERE, None)


def _change_neighbour(
    kind: int, flags: int, address: Address, device: int, *, mac: str = "", proxy: bool = False
) -> None:
    # struct ndmsg
    header = struct.pack("BxHiHBB", _family(address), 0, device, _PERMANENT, _PROXY if proxy else 0, 0)
    attributes = {_NDA_DST: address.packed, _NDA_PROTOCOL: bytes([PROTOCOL])}
    if mac:
        attributes[_NDA_LLADDR] = bytes.fromhex(mac.replace(":", ""))
    netlink.request(kind, flags, header, attributes)


def set_neighbour(address: Address, device: Link, mac: str) -> None:
    """A permanent entry: the host never has to ask for this guest."""
    with _refusals(f"set the neighbour entry of {address}"):
        _change_neighbour(_RTM_NEWNEIGH, _CREATE | _REPLACE, address, device.index, mac=mac)


def remove_neighbour(address: Address, device: int) -> None:
    """Gone already is fine."""
    with contextlib.suppress(NotFound), _refusals(f"remove the neighbour entry of {address}"):
        _change_neighbour(_RTM_DELNEIGH, 0, address, device)


def add_proxy(address: Address, device: Link) -> None:
    """Has the host answer neighbour solicitations for its own IPv6 address on another link. There already is fine."""
    with contextlib.suppress(Taken), _refusals(f"answer for {address} on {device.name}"):
        _change_neighbour(_RTM_NEWNEIGH, _CREATE | _EXCLUSIVE, address, device.index, proxy=True)


def remove_proxy(address: Address, device: int) -> None:
    """Gone already is fine."""
    with contextlib.suppress(NotFound), _refusals(f"no longer answer for {address}"):
        _change_neighbour(_RTM_DELNEIGH, 0, address, device, proxy=True)


def read_sysctl(key: str) -> str:
    """The value of `net/…`; empty where its link is gone."""
    try:
        return Path("/proc/sys", key).read_text().strip()
    except OSError:
        return ""


def sysctl(key: str, value: str) -> None:
    """Sets `net/…` where it differs. A kernel without it (IPv6 off) has nothing to set."""
    path = Path("/proc/sys", key)
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise Unable(f"the sysctl {key} cannot be set", "run as root: sudo macvm …") from error
