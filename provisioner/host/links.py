"""Changes links, routes, neighbours and their sysctls: the only importer of pyroute2. `host.netlink` reads them.

Everything made here carries macvm's mark, an `ifalias` or macvm's own route protocol; only what carries it is removed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
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

# linux/neighbour.h: NUD_PERMANENT. linux/if.h: IFF_ALLMULTI.
_PERMANENT = 0x80
_ALLMULTI = 0x200


class LinkFailed(MacvmError):
    """The kernel refused a change."""


def warm_up() -> threading.Thread:
    """Imports pyroute2 beside whatever the caller does next: 95 ms, best spent while libvirt starts a guest."""
    thread = threading.Thread(target=_import, name="import-pyroute2", daemon=True)
    thread.start()
    return thread


def _import() -> None:
    import pyroute2.iproute  # noqa: F401


@contextlib.contextmanager
def _kernel(doing: str) -> Iterator[Any]:
    """A short-lived netlink channel whose errors are ours."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as channel:
            yield channel
    except NetlinkError as error:
        reason = f"the kernel refused to {doing}: {errno.errorcode.get(error.code, error.code)}"
        if error.code == errno.EEXIST:
            raise Taken(f"{reason}: it exists already", "`ip route` and `ip link` show it") from error
        if error.code == errno.EADDRINUSE:
            raise Taken(f"{reason}: another link on the parent has this MAC", "`ip -d link` shows it") from error
        if error.code in (errno.EPERM, errno.EACCES):
            raise Unable(reason, "run as root: sudo macvm …") from error
        if error.code in (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT):
            raise NotFound(reason, "it is gone; try again") from error
        raise LinkFailed(reason, "`dmesg | tail` may say more") from error


def kernel_mode(mode: MacvtapMode) -> str:
    """The kernel's word for a mode: passthrough is `passthru` to it, and only here."""
    return "passthru" if mode is MacvtapMode.PASSTHROUGH else mode.value


def add_macvlan(name: str, parent: Link, mac: str, alias: str) -> Link:
    """A macvlan in bridge mode, marked and still down. Raises Taken where the name exists."""
    with _kernel(f"make the macvlan {name} on {parent.name}") as ip:
        # The MAC goes into the message that makes the link: udev must not see one to change.
        ip.link("add", ifname=name, kind="macvlan", link=parent.index, macvlan_mode="bridge", address=mac)
        index = ip.link_lookup(ifname=name)[0]
        ip.link("set", index=index, ifalias=alias)
    return netlink.get_link(name)


def set_up(link: Link) -> None:
    with _kernel(f"bring {link.name} up") as ip:
        ip.link("set", index=link.index, state="up")


def remove(link: Link) -> None:
    """Removes a link that macvm made. Gone already is fine; one without macvm's mark is an error."""
    if not link.alias.startswith(MARK):
        raise Unable(f"{link.name} is not macvm's", f"remove it with: ip link del {link.name}")
    with contextlib.suppress(NotFound), _kernel(f"remove {link.name}") as ip:
        ip.link("del", index=link.index)


def prepare_nic(device: str, mtu: int | None) -> None:
    """Host state of a guest's macvtap: multicast is let through to the guest, and the host takes no address on it.

    Without allmulticast neither IPv6 nor multicast reaches the guest. Lost with the device at every stop.
    """
    sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "1")
    with _kernel(f"prepare {device}") as ip:
        change = {"mtu": mtu} if mtu else {}
        ip.link("set", index=_index(ip, device), flags=_ALLMULTI, change=_ALLMULTI, **change)


def set_mode(device: str, mode: MacvtapMode) -> None:
    """Changes a running macvtap's mode: bridge, vepa and private among one another; the kernel refuses passthrough."""
    with _kernel(f"set {device} to mode {mode.value}") as ip:
        index = _index(ip, device)
        ip.link("set", index=index, kind="macvtap", macvtap_mode=kernel_mode(mode))


def _index(ip: Any, device: str) -> int:
    found = ip.link_lookup(ifname=device)
    if not found:
        raise NotFound(f"there is no link {device} on this host", "was the VM stopped meanwhile?")
    return int(found[0])


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _host_route(address: Address) -> dict[str, Any]:
    return {"dst": str(address), "dst_len": address.max_prefixlen, "family": _family(address)}


def add_route(address: Address, device: Link, source: Address) -> None:
    """A host route with its source pinned, marked by macvm's protocol. Raises Taken where one exists."""
    with _kernel(f"add the route to {address}") as ip:
        ip.route("add", oif=device.index, prefsrc=str(source), proto=PROTOCOL, scope=253, **_host_route(address))


def remove_route(address: Address, device: int) -> None:
    """Gone already is fine."""
    with contextlib.suppress(NotFound), _kernel(f"remove the route to {address}") as ip:
        # RT_SCOPE_NOWHERE matches any scope; the default, universe, would match no link-scoped route.
        ip.route("del", oif=device, proto=PROTOCOL, scope=255, **_host_route(address))


def set_neighbour(address: Address, device: Link, mac: str) -> None:
    """A permanent entry: the host never has to ask for this guest."""
    with _kernel(f"set the neighbour entry of {address}") as ip:
        ip.neigh(
            "replace",
            dst=str(address),
            lladdr=mac,
            ifindex=device.index,
            state=_PERMANENT,
            family=_family(address),
            protocol=PROTOCOL,
        )


def remove_neighbour(address: Address, device: int) -> None:
    """Gone already is fine."""
    with contextlib.suppress(NotFound), _kernel(f"remove the neighbour entry of {address}") as ip:
        ip.neigh("del", dst=str(address), ifindex=device, family=_family(address))


def add_proxy(address: Address, device: Link) -> None:
    """Has the host answer neighbour solicitations for its own IPv6 address on another link. There already is fine."""
    with contextlib.suppress(Taken), _kernel(f"answer for {address} on {device.name}") as ip:
        ip.neigh("add", dst=str(address), ifindex=device.index, family=socket.AF_INET6, flags=0x08, protocol=PROTOCOL)


def remove_proxy(address: Address, device: int) -> None:
    """Gone already is fine."""
    with contextlib.suppress(NotFound), _kernel(f"no longer answer for {address}") as ip:
        ip.neigh("del", dst=str(address), ifindex=device, family=socket.AF_INET6, flags=0x08)


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
