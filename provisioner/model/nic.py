"""A NIC of a machine: how it is wired to the LAN, and what address its guest is given."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, is_number, printable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_IPV6_MTU = 1280


class Addressing(NamedTuple):
    """What a guest is told about one NIC: static addresses, or to ask DHCP, or nothing. With `auto` the static
    addresses are those that its network gives out."""

    static: tuple[Interface, ...] = ()
    dhcp: bool = False
    gateways: tuple[Address, ...] = ()
    dns: tuple[Address, ...] = ()
    auto: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(interface.ip for interface in self.static)

    def __str__(self) -> str:
        return ", ".join(map(str, self.static)) or ("auto" if self.auto else "dhcp" if self.dhcp else "none")


class Nic(NamedTuple):
    """One interface of a machine: `type='direct'` on a parent, or a port on a libvirt network.

    `mtu` is in bytes, None for the parent's own. `device` is the host's macvtap, named by macvm from the MAC.
    `shim` False leaves the host's side alone. `network` is the one of macvm's that mode, parent and addresses are from.
    """

    mac: Mac
    mode: MacvtapMode = MacvtapMode.BRIDGE
    parent: str = ""
    libvirt_network: str = ""
    model: str = "virtio"
    mtu: int | None = None
    addressing: Addressing = Addressing()
    shim: bool = True
    network: str = ""

    @property
    def direct(self) -> bool:
        return not self.libvirt_network

    @property
    def device(self) -> str:
        return self.mac.device if self.direct else ""

    def to_json(self) -> str:
        """For the store: what `from_json` makes a NIC of again."""
        told = self.addressing
        facts = {
            "mac": self.mac,
            "mode": self.mode.value,
            "parent": self.parent,
            "libvirt_network": self.libvirt_network,
            "model": self.model,
            "mtu": self.mtu,
            "shim": self.shim,
            "network": self.network,
            "static": [str(interface) for interface in told.static],
            "dhcp": told.dhcp,
            "gateways": [str(gateway) for gateway in told.gateways],
            "dns": [str(server) for server in told.dns],
        }
        return json.dumps(facts)

    @classmethod
    def from_json(cls, text: str) -> Nic:
        facts = json.loads(text)
        told = Addressing(
            static=tuple(ipaddress.ip_interface(word) for word in facts.pop("static")),
            dhcp=facts.pop("dhcp"),
            gateways=tuple(ipaddress.ip_address(word) for word in facts.pop("gateways")),
            dns=tuple(ipaddress.ip_address(word) for word in facts.pop("dns")),
        )
        mac, mode = Mac(facts.pop("mac")), MacvtapMode(facts.pop("mode"))
        return cls(mac=mac, mode=mode, addressing=told, **facts)

    @property
    def wiring(self) -> str:
        return f"{self.mode.value} on {self.parent}" if self.direct else f"libvirt network {self.libvirt_network}"


def parse_interface(text: str) -> Interface:
    """An address with or without its length, as `ipaddress.ip_interface` reads it, for a guest to have.

    A length left out shows as /32 or /128 and is filled in from the parent's subnet by the plan. Raises Usage.
    """
    try:
        interface = ipaddress.ip_interface(text.strip())
    except ValueError:
        raise Usage(
            f"{printable(text)} is no address", "ADDRESS/LENGTH, such as 192.0.2.11/24; or dhcp, or none"
        ) from None
    _check_zone(text, "address")
    check_usable(interface)
    return interface


def _check_zone(text: str, what: str) -> None:
    # `fe80::1%eth0`: ipaddress takes any text for the zone, line breaks too, and the guest's links are not the host's.
    if "%" in text:
        raise Usage(f"{printable(text)} is no {what} for a guest", "leave the % and what follows it out")


def parse_mtu(text: str) -> int:
    """Raises Usage."""
    # RFC 791 and RFC 8200: an IPv4 host takes 68 bytes, IPv6 wants 1280; an interface's own limit is 65535.
    if not is_number(text) or not 68 <= int(text) <= 65535:
        raise Usage(f"{printable(text)} is no MTU", "a number of bytes from 68 to 65535")
    return int(text)


def check_mtu(mtu: int | None, wanted: Address | ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    """Raises Usage for fewer bytes than IPv6 wants of a link: the kernel takes IPv6 off it (RFC 8200, 5)."""
    if mtu and mtu < _IPV6_MTU and wanted.version == 6:
        raise Usage(f"MTU {mtu} is too small for {wanted}", f"IPv6 wants at least --mtu {_IPV6_MTU}")


def check_usable(interface: Interface) -> None:
    """Raises Usage for an address that no guest may have."""
    address, network = interface.ip, interface.network
    limited = str(address) == "255.255.255.255"
    if address.is_multicast or address.is_unspecified or address.is_loopback or limited:
        raise Usage(f"{address} is no address that a guest may have", "a unicast address of the parent's subnet")
    # RFC 3021 and RFC 6164: a /31 and a /127 have no network or broadcast address.
    if interface.version == 4 and network.prefixlen < 31:
        for what, reserved in (("network", network.network_address), ("broadcast", network.broadcast_address)):
            if address == reserved:
                raise Usage(f"{address} is the {what} address of {network}", "choose another address of the subnet")


def parse_address(text: str, what: str = "address") -> Address:
    """Raises Usage."""
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise Usage(f"{printable(text)} is no {what}", "an IPv4 or IPv6 address, such as 192.0.2.1") from None
    _check_zone(text, what)
    return address


def auto_needs_network() -> Usage:
    return Usage(
        "--ip auto needs a network, which has the pool to take an address from",
        "name one with --network (macvm network create makes it), or give the address: --ip 192.0.2.11/24",
    )


def parse_addressing(
    words: Iterable[str], gateways: Iterable[str] = (), dns: Iterable[str] = (), *, network: bool = False
) -> Addressing:
    """`--ip` (any number of times), `--gateway` and `--dns` as one value; no `--ip` at all means `auto` on a network,
    and DHCP on a bare parent. Raises Usage."""
    given = [word.strip().lower() for word in words] or ["auto" if network else "dhcp"]
    alone = [word for word in given if word in ("dhcp", "none", "auto")]
    if "auto" in alone and not network:
        raise auto_needs_network()
    if alone and len(given) > 1:
        raise Usage(
            f"--ip {alone[0]} and --ip {given[0] if given[0] != alone[0] else given[1]} exclude one another",
            "choose one",
        )
    routers = tuple(parse_address(word, "gateway") for word in gateways)
    servers = tuple(parse_address(word, "DNS server") for word in dns)
    if alone:
        return Addressing(dhcp=alone[0] == "dhcp", gateways=routers, dns=servers, auto=alone[0] == "auto")
    static = tuple(parse_interface(word) for word in given)
    if len({interface.ip for interface in static}) < len(static):
        raise Usage("the same address is given twice", "give each address once")
    return Addressing(static=static, gateways=routers, dns=servers)
