"""What a passthrough NIC needs of its parent, and how the parent gets it back.

A parent beside the host's own link on the same LAN goes on answering ARP for the host's addresses, now with the guest's
MAC, and the LAN then sends the guest what is the host's (seen: every request answered twice, all pings to the host
lost). `arp_ignore=1` has a link answer for its own addresses alone (Documentation/networking/ip-sysctl). And libvirt
brings the parent up with the guest, and mostly leaves it down when that goes, however it was before.
"""

from __future__ import annotations

from provisioner.actions import shims
from provisioner.context import Context
from provisioner.host import links, netlink
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode

_UP = "link/"


def _key(parent: str) -> str:
    return f"net/ipv4/conf/{parent}/arp_ignore"


def take(context: Context, owner: str, parent: str, mode: MacvtapMode | None) -> None:
    """Before a NIC comes up: macvm's idle shim gives way, and the parent no longer answers for the host. Nothing in
    other modes. Raises Taken while guests use the shim."""
    link = netlink.find_link(parent)
    if mode is not MacvtapMode.PASSTHROUGH or link is None:
        return
    shims.give_way(context, parent)
    context.store.remember(_UP + parent, "up" if link.up else "down", owner)
    was = links.read_sysctl(_key(parent))
    # 1 may be macvm's own of an earlier machine, whose memory of it passes to this one.
    if was in ("0", "1"):
        context.store.remember(_key(parent), was, owner)
        links.sysctl(_key(parent), "1")


def give_back(context: Context, owner: str, parent: str = "") -> None:
    """Once a machine's NIC, or with no parent named any of its NICs, is gone: the parent is as it was. Any number of
    times; what somebody has changed since is left."""
    for key, was in context.store.remembered_of(owner):
        if parent and key not in (_key(parent), _UP + parent):
            continue
        if key.startswith(_UP):
            link = netlink.find_link(key.removeprefix(_UP))
            if link and not link.up and was == "up":
                links.set_up(link)
            elif link and link.up and was == "down" and not _is_used(link):
                links.set_down(link)
        elif links.read_sysctl(key) == "1":
            links.sysctl(key, was)
        context.store.forget(key)


def _is_used(link: Link) -> bool:
    """Whether somebody has taken it into use since."""
    return bool(netlink.addresses(link.index)) or any(one.lower == link.index for one in netlink.links())


def making_lines(parent: str, mode: MacvtapMode) -> list[str]:
    """The `sysctl` line that amounts to it."""
    return [f"sysctl -w {_key(parent)}=1"] if mode is MacvtapMode.PASSTHROUGH else []


def taking_lines(parent: str, mode: MacvtapMode) -> list[str]:
    """The lines that amount to `take`."""
    link = netlink.find_link(parent)
    shim = shims.find_shim(link) if link and mode is MacvtapMode.PASSTHROUGH else None
    return [*(shims.removing_lines(shim.name) if shim else []), *making_lines(parent, mode)]


def giving_back_lines(context: Context, owner: str, parent: str = "") -> list[str]:
    """The `ip` and `sysctl` lines that amount to `give_back`."""
    store, lines = context.reading_store, []
    for key, was in store.remembered_of(owner) if store else ():
        if not parent or key in (_key(parent), _UP + parent):
            link = key.removeprefix(_UP)
            lines.append(f"sysctl -w {key}={was}" if link == key else f"ip link set {link} {was}")
    return lines
