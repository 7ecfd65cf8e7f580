"""Whether a host link can carry a guest's macvtap in a mode: looked at before, for the kernel only says EINVAL."""

from __future__ import annotations

from typing import NamedTuple

from provisioner.errors import MacvmError, NotFound, Taken, Unable, Usage
from provisioner.host import links, netlink
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import printable

#: Kinds of link that hand no foreign Ethernet frames on, or belong to one program alone.
_UNFIT_KINDS = ("tun", "ipvlan", "ipvtap", "wireguard", "ipip", "sit", "gre", "ip6tnl", "vti", "ifb", "nlmon")


class Links(NamedTuple):
    """The host's links as one dump showed them."""

    all: tuple[Link, ...]

    @classmethod
    def read(cls) -> Links:
        return cls(tuple(netlink.links()))

    def find(self, name: str) -> Link | None:
        return next((link for link in self.all if link.name == name), None)

    def on(self, parent: Link) -> list[Link]:
        """macvlans and macvtaps of a parent."""
        return [link for link in self.all if link.lower == parent.index and link.kind in ("macvlan", "macvtap")]

    def name_of(self, index: int) -> str:
        return next((link.name for link in self.all if link.index == index), f"link {index}")


def usable_parents(host: Links) -> list[str]:
    """Names of the links that a macvtap may sit on."""
    return [link.name for link in host.all if _unfit(link, host) is None and link.kind not in ("macvlan", "macvtap")]


def choose_parent(host: Links, wanted: str, mode: MacvtapMode) -> str:
    """The link that is named, or the default route's. Raises Usage where a choice must be made, NotFound."""
    if wanted:
        return wanted
    if mode is MacvtapMode.PASSTHROUGH:
        raise Usage(
            "--mode passthrough wants a --parent: it takes the link away from the host",
            f"links here: {', '.join(usable_parents(host)) or 'none'}",
        )
    default = netlink.default_parent()
    if default is None:
        hint = f"name one with --parent: {', '.join(usable_parents(host)) or 'this host has none'}"
        raise NotFound("this host has no default route whose link could be the parent", hint)
    return default


def check_parent(
    host: Links, name: str, mode: MacvtapMode, mtu: int | None, *, take: bool, wireless: bool = False
) -> Link:
    """The link that a macvtap on `name` really sits on; `wireless` for what Wi-Fi can carry too.

    Raises NotFound, Unable for a link that cannot carry it, Taken where passthrough excludes it.
    """
    link = host.find(name)
    if link is None:
        hint = f"links here: {', '.join(usable_parents(host)) or 'none'}"
        raise NotFound(f"there is no link {printable(name)} on this host to be the parent", hint)
    if link.kind in ("macvlan", "macvtap") and link.lower:
        # The kernel attaches to the macvlan's own parent (drivers/net/macvlan.c): say so from the start.
        link = next((lower for lower in host.all if lower.index == link.lower), link)
    unfit = _unfit(link, host, wireless)
    if unfit:
        raise unfit
    if mtu and mtu > link.mtu:
        raise Unable(f"MTU {mtu} is above that of {link.name}, {link.mtu}", f"at most --mtu {link.mtu}")
    _check_passthrough(host, link, mode)
    if mode is MacvtapMode.PASSTHROUGH:
        _check_elsewhere(host, link)
    if mode is MacvtapMode.PASSTHROUGH and not take:
        _check_expendable(link)
    return link


def _unfit(link: Link, host: Links, wireless: bool = False) -> MacvmError | None:
    if link.hardware != netlink.ARPHRD_ETHER or link.kind in _UNFIT_KINDS:
        kind = link.kind or ("the loopback" if link.name == "lo" else "another kind of link")
        return Unable(f"{link.name} is no Ethernet link ({kind}): it carries no macvtap", "choose an Ethernet link")
    if not wireless and netlink.is_wireless(link.name):
        hint = "use a cable, or a NIC on libvirt's own network: --nic libvirt=default"
        return Unable(f"{link.name} is Wi-Fi: access points drop frames from MACs that did not associate", hint)
    if link.enslaved_to:
        master = host.name_of(link.enslaved_to)
        return Unable(f"{link.name} is a port of {master}, which takes all its frames", f"use --parent {master}")
    return None


def _check_passthrough(host: Links, parent: Link, mode: MacvtapMode) -> None:
    holders = [link for link in host.on(parent) if not link.alias.startswith(links.MARK)]
    wanted = mode is MacvtapMode.PASSTHROUGH
    in_the_way = holders if wanted else [link for link in holders if link.mode == MacvtapMode.PASSTHROUGH.value]
    if in_the_way:
        names = ", ".join(f"{link.name} ({link.mode})" for link in in_the_way)
        raise Taken(
            f"{parent.name} is held by {names}: passthrough shares its parent with nobody",
            "choose another --parent; `macvm nic list --all` shows whose NICs they are",
        )


def _check_elsewhere(host: Links, parent: Link) -> None:
    """Macvlans in other network namespaces, a container's say, leave no other trace here than their MACs."""
    macs = netlink.macs_behind(parent.index) - {link.mac for link in host.all}
    if macs:
        raise Taken(
            f"{parent.name} is held by {', '.join(sorted(macs))}, in other network namespaces: passthrough shares its "
            "parent with nobody",
            "choose another --parent, or remove the macvlans of those containers",
        )


def _check_expendable(parent: Link) -> None:
    """Passthrough cuts the host off from its parent while the guest runs."""
    losses = [str(interface) for interface in netlink.addresses(parent.index)]
    # Every link that is up has a route to fe80::/64: that one is no use of it.
    routes = [route for route in netlink.routes() if not route.destination.is_link_local]
    losses += [f"the route to {route.destination}" for route in routes if route.device == parent.index]
    if losses:
        raise Unable(
            f"passthrough would cut this host off from {parent.name}, which has {', '.join(losses[:4])}",
            "choose a link that the host does not use, or say --take-parent",
        )
