"""Changes links, routes, neighbours and their sysctls: the only importer of pyroute2. `host.netlink` reads them.

Everything made here carries macvm's mark, an `ifalias` or macvm's own route protocol; only what carries it is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from provisioner.errors import MacvmError, NotFound, Taken, Unable
from provisioner.host import log, messages, netlink
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import packed_mac
from provisioner.model.nic import Address, Interface

#: `ifalias` of what macvm made begins with it.
MARK = "macvm:"

#: Who made a route or neighbour entry (rtm_protocol, NDA_PROTOCOL); a number that /etc/iproute2/rt_protos leaves free.
PROTOCOL = 109

# linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h, linux/if.h, linux/netlink.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 17, 20, 24
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_NET_NS_FD = 18, 20, 28
_INFO_KIND, _INFO_DATA = 1, 2
_MACVLAN_MODE, _MACVLAN_MACADDR_MODE, _MACVLAN_MACADDR, _MACVLAN_MACADDR_DATA, _MACADDR_SET = 1, 3, 4, 5, 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 8, 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_EXCLUSIVE, _CREATE = 0x200, 0x400
_SCOPE_UNIVERSE = 0
_UP, _ALLMULTI = 0x1, 0x200


class LinkFailed(MacvmError):
    """The kernel refused a change."""


#: What an errno means for one change, where that differs from `_refusals`.
_Special = Mapping[int, Callable[[], MacvmError]]


@contextlib.contextmanager
def _refusals(doing: str, special: _Special | None = None) -> Iterator[None]:
    """The kernel's errors as ours."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reason = f"the kernel refused to {doing}: {errno.errorcode.get(number, str(error))}"
        if special and number in special:
            raise special[number]() from error
        if number == errno.EEXIST:
            raise _exists(doing) from error
        if number == errno.EADDRINUSE:
            raise Taken(f"{reason}: another link on the parent has this MAC", "`ip -d link` shows it") from error
        if number in (errno.EPERM, errno.EACCES):
            raise Unable(reason, "run as root: sudo macvm …") from error
        if number in (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT):
            raise NotFound(reason, "it is gone; try again") from error
        raise LinkFailed(reason, "`dmesg | tail` may say more") from error


def _exists(doing: str) -> MacvmError:
    reason = f"the kernel refused to {doing}: EEXIST: it exists already"
    return Taken(reason, "`ip route`, `ip address` and `ip link` show it")


@contextlib.contextmanager
def _pyroute2(doing: str, special: _Special | None = None) -> Iterator[Any]:
    """A short-lived channel of pyroute2's, for what is done rarely.

    What `create` and `nic attach` need goes through `messages.request`: they do without 95 ms of import.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    log.call("netlink", f"through pyroute2, to {doing}")
    with _refusals(doing, special):
        try:
            with IPRoute() as channel:
                yield channel
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error


def kernel_mode(mode: MacvtapMode) -> str:
    """The kernel's word for a mode: passthrough is `passthru` to it, and only here."""
    return "passthru" if mode is MacvtapMode.PASSTHROUGH else mode.value


def add_macvlan(
    name: str, parent: Link, mac: str, alias: str, mode: str = "bridge", sources: Sequence[str] = ()
) -> Link:
    """A macvlan, marked and still down.

    `mode` is a word of `netlink.MACVLAN_MODES`; `sources` are the MACs that one in mode source takes frames from. One
    in passthrough has its parent's MAC, whatever is asked for (macvlan_common_newlink).

    Raises Taken where the name exists or the parent carries ipvlans.
    """
    numbers = {word: number for number, word in netlink.MACVLAN_MODES.items()}
    data = [(_MACVLAN_MODE, struct.pack("I", numbers[mode]))]
    if mode == "source":
        listed = messages.nested((_MACVLAN_MACADDR, packed_mac(source)) for source in sources)
        data += [
            (_MACVLAN_MACADDR_MODE, struct.pack("I", _MACADDR_SET)),
            (_MACVLAN_MACADDR_DATA | messages.NESTED, listed),
        ]
    kind = messages.nested([(_INFO_KIND, b"macvlan"), (_INFO_DATA | messages.NESTED, messages.nested(data))])
    attributes = {
        _IFLA_IFNAME: _name_bytes(name),
        _IFLA_LINK: struct.pack("I", parent.index),
        # The MAC goes into the message that makes the link: udev must not see one to change.
        _IFLA_ADDRESS: packed_mac(mac),
        _IFLA_LINKINFO | messages.NESTED: kind,
    }
    doing = f"make the macvlan {name} on {parent.name}"
    special = {errno.EBUSY: lambda: _occupied(parent), errno.EOPNOTSUPP: lambda: _no_kind(doing, "macvlan")}
    with _refusals(doing, special):
        messages.request(_RTM_NEWLINK, _CREATE | _EXCLUSIVE, _link_header(0), attributes)
    return _marked(name, alias)


def add_vlan(name: str, parent: Link, vid: int, alias: str) -> Link:
    """The link of an 802.1Q VLAN, marked and still down.

    Raises Taken where the name exists or the parent has a link for this VLAN, Unable where the kernel has no VLANs or
    the parent carries none.
    """
    doing = f"make the VLAN link {name} on {parent.name}"

    def taken() -> MacvmError:
        other = find_vlan(parent, vid)
        if other is None:
            return _exists(doing)
        return Taken(f"VLAN {vid} of {parent.name} has a link already: {other.name}", f"use it: --parent {other.name}")

    def unsupported() -> MacvmError:
        if Path("/proc/thread-self/net/vlan").exists():  # the module is there: it is the parent (VLAN_CHALLENGED)
            return Unable(f"{parent.name} carries no VLANs", "choose an Ethernet link")
        return _no_kind(doing, "8021q")

    with _pyroute2(doing, {errno.EEXIST: taken, errno.EOPNOTSUPP: unsupported}) as ip:
        ip.link("add", ifname=name, kind="vlan", link=parent.index, vlan_id=vid)
    return _marked(name, alias)


def find_vlan(parent: Link, vid: int) -> Link | None:
    """The one link that the kernel allows a VLAN to have on a parent, whatever its name and whoever made it."""
    there = (link for link in netlink.links() if link.lower == parent.index)
    return next((link for link in there if link.vlan == vid), None)


def add_ipvlan(name: str, parent: Link, mode: str, alias: str) -> Link:
    """An ipvlan, marked and still down; its MAC is its parent's. `mode` is `l2` or `l3`.

    Raises Taken where the name exists, or the parent carries macvlans or ipvlans of another mode, Unable where the
    kernel has no ipvlan.
    """
    # All ipvlans of a parent have one mode, and a new one changes it for all, unasked (ipvlan_link_new). Those that
    # were moved into other namespaces cannot be seen from here.
    for other in netlink.links():
        if other.lower == parent.index and other.kind in ("ipvlan", "ipvtap") and other.mode != mode:
            reason = f"{parent.name} carries {other.name} in mode {other.mode}, and {name} would change it to {mode}"
            raise Taken(reason, f"all ipvlans of one parent have one mode: use {other.mode}, or another parent")
    numbers = {word: number for number, word in netlink.IPVLAN_MODES.items()}
    doing = f"make the ipvlan {name} on {parent.name}"
    special = {errno.EBUSY: lambda: _occupied(parent), errno.EOPNOTSUPP: lambda: _no_kind(doing, "ipvlan")}
    with _pyroute2(doing, special) as ip:
        ip.link("add", ifname=name, kind="ipvlan", link=parent.index, ipvlan_mode=numbers[mode])
    return _marked(name, alias)


def _occupied(parent: Link) -> MacvmError:
    """A link's frames have one taker (its rx_handler): macvlans, or ipvlans, or the bridge or bond it is a port of."""
    everyone = netlink.links()
    master = next((link.name for link in everyone if link.index == parent.enslaved_to), None)
    if master:
        return Taken(f"{parent.name} is a port of {master}, which takes all its frames", f"use {master}")
    holders = [f"{link.name} ({link.kind})" for link in everyone if link.lower == parent.index and link.mode]
    return Taken(
        f"{parent.name} is in use by {', '.join(holders) or 'links in another network namespace'}",
        "a link carries macvlans and macvtaps, or ipvlans, never both: choose another parent",
    )


def _no_kind(doing: str, module: str) -> MacvmError:
    return Unable(f"this kernel cannot {doing}: it has no {module}", f"modprobe {module}")


def _name_bytes(name: str) -> bytes:
    return name.encode() + b"\0"


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
    """Raises Unable where the link below is down, without which a VLAN link cannot be up."""
    below = Unable(f"{link.name} cannot be brought up: the link it sits on is down", "ip link set dev PARENT up")
    with _refusals(f"bring {link.name} up", {errno.ENETDOWN: lambda: below}):
        messages.request(_RTM_NEWLINK, 0, _link_header(link.index, _UP), {})


def set_down(link: Link) -> None:
    with _refusals(f"take {link.name} down", {}):
        messages.request(_RTM_NEWLINK, 0, struct.pack("BxHiII", socket.AF_UNSPEC, 0, link.index, 0, _UP), {})


def set_mtu(link: Link, mtu: int) -> None:
    """Raises Unable for an MTU that the link cannot have: a macvlan's is at most its parent's."""
    special = {errno.EINVAL: lambda: Unable(f"{link.name} cannot have MTU {mtu}", "at most its parent's")}
    with _refusals(f"set the MTU of {link.name}", special):
        messages.request(_RTM_NEWLINK, 0, _link_header(link.index), {_IFLA_MTU: struct.pack("I", mtu)})


def move(link: Link, fd: int, new_name: str) -> Link:
    """Moves a link into another network namespace, as a link that is there, down and without addresses.

    Raises Taken where that namespace has a link of the new name, and then the link stays where it is.
    """
    from provisioner.host import netns  # only endpoints need it, and ctypes with it

    doing = f"move {link.name} into another network namespace as {new_name}"
    taken = Taken(f"there is a link {new_name} in that namespace already", "choose another name, or remove that link")
    attributes = {_IFLA_NET_NS_FD: struct.pack("I", fd), _IFLA_IFNAME: _name_bytes(new_name)}
    with _refusals(doing, {errno.EEXIST: lambda: taken}):
        try:
            messages.request(_RTM_NEWLINK, 0, _link_header(link.index), attributes)
        except FileExistsError:
            # The kernel moves first and renames then (do_setlink), and does not go back by itself.
            _move_back(link, fd)
            raise
    return netns.run_inside(fd, lambda: netlink.get_link(new_name))


def _move_back(link: Link, fd: int) -> None:
    from provisioner.host import netns

    if netlink.find_link(link.name):
        return
    own = netns.own()
    attributes = {_IFLA_NET_NS_FD: struct.pack("I", own), _IFLA_IFNAME: _name_bytes(link.name)}
    try:
        netns.run_inside(fd, lambda: messages.request(_RTM_NEWLINK, 0, _link_header(0), attributes))
    finally:
        os.close(own)


def add_address(interface: Interface, link: Link) -> None:
    """Gives a link an address with its subnet. Raises Taken where it has it, Unable where IPv6 is off.

    An IPv6 address is used at once, without duplicate address detection: macvm asks the LAN before it gives one out,
    and while the kernel asks again, a second at least, no program in the namespace could speak from it.
    """
    family, length = _family(interface.ip), interface.network.prefixlen
    attributes = {_IFA_LOCAL: interface.packed, _IFA_ADDRESS: interface.packed}
    if interface.version == 6:
        attributes[_IFA_FLAGS] = struct.pack("I", _IFA_F_NODAD)
    # struct ifaddrmsg
    header = struct.pack("BBBBI", family, length, 0, _SCOPE_UNIVERSE, link.index)
    with _refusals(f"give {link.name} the address {interface}", _without_ipv6(interface.version, link)):
        messages.request(_RTM_NEWADDR, _CREATE | _EXCLUSIVE, header, attributes)


def add_default_route(gateway: Address, link: Link) -> None:
    """A default route of macvm's own protocol. Raises Taken where there is one, Unable for a gateway out of reach."""

    def unreachable() -> MacvmError:
        return Unable(
            f"the gateway {gateway} is in no subnet of {link.name}", "an address in its subnet must come first"
        )

    header = _route_header(gateway, 0, _SCOPE_UNIVERSE)
    attributes = {_RTA_GATEWAY: gateway.packed, _RTA_OIF: struct.pack("I", link.index)}
    special = {number: unreachable for number in (errno.ENETUNREACH, errno.EHOSTUNREACH)}
    with _refusals(f"route through {gateway} by default", special | _without_ipv6(gateway.version, link)):
        messages.request(_RTM_NEWROUTE, _CREATE | _EXCLUSIVE, header, attributes)


def _without_ipv6(version: int, link: Link) -> dict[int, Callable[[], MacvmError]]:
    """How a kernel refuses IPv6 that is off: for a link (EACCES), or altogether."""
    hint = f"sysctl -w net/ipv6/conf/{link.name}/disable_ipv6=0, or do without IPv6 addresses"
    off = Unable(f"IPv6 is off on {link.name}", hint)
    numbers = (errno.EACCES, errno.EAFNOSUPPORT, errno.EOPNOTSUPP) if version == 6 else ()
    return {number: lambda: off for number in numbers}


def remove(link: Link) -> None:
    """Removes a link that macvm made. Gone already is fine; one without macvm's mark is an error."""
    if not link.alias.startswith(MARK):
        raise Unable(f"{link.name} is not macvm's", f"remove it with: ip link del {link.name}")
    with contextlib.suppress(NotFound), _refusals(f"remove {link.name}"):
        messages.request(_RTM_DELLINK, 0, _link_header(link.index), {})


def prepare_nic(device: str, mtu: int | None) -> None:
    """Host state of a guest's macvtap: multicast is let through to the guest, and the host takes no address on it.

    Without allmulticast neither IPv6 nor multicast reaches the guest. Lost with the device at every stop.
    """
    sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "1")
    attributes = {_IFLA_MTU: struct.pack("I", mtu)} if mtu else {}
    _set_link(_index(device), f"prepare {device}", flags=_ALLMULTI, attributes=attributes)


def _set_link(index: int, doing: str, *, flags: int = 0, attributes: dict[int, bytes] | None = None) -> None:
    with _refusals(doing):
        messages.request(_RTM_NEWLINK, 0, _link_header(index, flags), attributes or {})


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


def _route_header(address: Address, length: int, scope: int) -> bytes:
    """struct rtmsg, of the main table: a unicast route of macvm's own protocol."""
    return struct.pack("BBBBBBBBI", _family(address), length, 0, 0, 254, PROTOCOL, scope, 1, 0)


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
            log.call("sysctl", f"{key}={value}")
            path.write_text(value)
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise Unable(f"the sysctl {key} cannot be set", "run as root: sudo macvm …") from error
