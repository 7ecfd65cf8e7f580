"""What the seed says of NICs, in the words of each kind of guest.

- cloud-init: `network-config`, version 2, NICs matched by MAC.
- CirrOS 0.3 to 0.5: busybox's `ifup`, by `/etc/network/interfaces`.
- CirrOS 0.6: `dhcpcd`, by `/etc/dhcpcd.conf` and, for what that has no word for, `/etc/dhcpcd.exit-hook`.

The last two match NICs by name: they are `eth0`, `eth1` … in the machine's order.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator

from provisioner.model.nic import Addressing, Interface, Nic

#: Beside the NICs' own; dhcpcd asks for little by itself, and this file stands in for the image's own.
_DHCPCD = """\
clientid
persistent
vendorclassid
option domain_name_servers, domain_name, domain_search
option classless_static_routes
option interface_mtu
require dhcp_server_identifier
slaac hwaddr
"""

#: CirrOS waits 180 s for dhcpcd to have an address, and a static one of IPv6 is none to it. This one is there already.
_LOOPBACK = """\
interface lo
static ip_address=127.0.0.1/8
noarp
noipv6
"""

#: When dhcpcd has an address, or has put a router's announcement in the place of what was routed before.
_WHEN = ("STATIC*", "BOUND*", "RENEW*", "REBIND*", "ROUTERADVERT")

#: By family: where several NICs have a default gateway, the first NIC's comes first. For IPv6 it comes before what
#: routers announce, too, to which kernels and dhcpcd give some 1000.
_METRICS = {4: 100, 6: 512}


def network_files(nics: tuple[Nic, ...]) -> dict[str, bytes]:
    """Path on the seed to content."""
    return {
        "network-config": _network_config(nics).encode(),
        "files/etc/network/interfaces": _interfaces(nics).encode(),
        "files/etc/dhcpcd.conf": _dhcpcd_conf(nics).encode(),
        "files/etc/dhcpcd.exit-hook": _exit_hook(nics).encode(),
    }


def _static(told: Addressing, version: int) -> list[Interface]:
    return [interface for interface in told.static if interface.version == version]


def _gateway(told: Addressing, version: int) -> str:
    """The first of a family: a second would be of no use. "" where there is none."""
    return next((str(gateway) for gateway in told.gateways if gateway.version == version), "")


def _metric(nics: tuple[Nic, ...], index: int, version: int) -> int:
    """0, which is the kernel's own, for the first NIC with an IPv4 gateway."""
    first = version == 4 and not any(_gateway(nic.addressing, version) for nic in nics[:index])
    return 0 if first else _METRICS[version] + index


# --- cloud-init


def _network_config(nics: tuple[Nic, ...]) -> str:
    lines = ["version: 2", "ethernets:" if nics else "ethernets: {}"]
    for index, nic in enumerate(nics):
        told, dhcp = nic.addressing, "true" if nic.addressing.dhcp else "false"
        # Quoted: a YAML reader may take an unquoted MAC for a number in base 60.
        lines += [f"  nic{index}:", "    match:", f'      macaddress: "{nic.mac}"', f"    set-name: eth{index}"]
        # NetworkManager has no IPv6 at all, not even what routers announce, where dhcp6 is false.
        lines += [f"    dhcp4: {dhcp}", f"    dhcp6: {dhcp}"]
        if nic.mtu:
            lines.append(f"    mtu: {nic.mtu}")
        if told.static:
            lines += ["    addresses:", *(f'      - "{interface}"' for interface in told.static)]
        routes = list(_routes(nics, index))
        lines += ["    routes:", *routes] if routes else []
        if told.dns:
            lines += ["    nameservers:", f"      addresses: {json.dumps([str(server) for server in told.dns])}"]
    return "\n".join(lines) + "\n"


def _routes(nics: tuple[Nic, ...], index: int) -> Iterator[str]:
    for version in (4, 6):
        gateway = _gateway(nics[index].addressing, version)
        metric = _metric(nics, index, version)
        # cloud-init before 23.1 makes ::/64 of ::/0 unless it writes for netplan: the two halves are right everywhere.
        for target in ("0.0.0.0/0",) if version == 4 else ("::/0", "::/1", "8000::/1"):
            if gateway:
                yield f'      - to: "{target}"'
                yield f'        via: "{gateway}"'
            if gateway and metric:
                yield f"        metric: {metric}"


# --- busybox's ifup


def _interfaces(nics: tuple[Nic, ...]) -> str:
    stanzas = ["auto lo\niface lo inet loopback\n"]
    for index, nic in enumerate(nics):
        # Of the first stanza: busybox's `dhcp` and `manual` know no option `mtu`.
        before = [f"    pre-up ip link set dev eth{index} mtu {nic.mtu}"] if nic.mtu else []
        stanzas.append(f"auto eth{index}\n")
        for family, method, lines in _families(nics, index):
            stanzas.append("\n".join([f"iface eth{index} {family} {method}", *lines, *before]) + "\n")
            before = []
    return "\n".join(stanzas)


def _families(nics: tuple[Nic, ...], index: int) -> Iterator[tuple[str, str, list[str]]]:
    """A NIC's stanzas: busybox takes one of each family."""
    told = nics[index].addressing
    name_servers = [f"    up {_name_server(str(server))}" for server in told.dns]
    if told.dhcp:
        yield "inet", "dhcp", [*_gateway_lines(nics, index, 4), *name_servers]
        name_servers = []
    for version, family in ((4, "inet"), (6, "inet6")):
        static = _static(told, version)
        if not static:
            continue
        first, *more = static
        length = first.netmask if isinstance(first, ipaddress.IPv4Interface) else first.network.prefixlen
        lines = [f"    address {first.ip}", f"    netmask {length}"]
        lines += [f"    up ip address add {interface} dev eth{index}" for interface in more]
        yield family, "static", [*lines, *_gateway_lines(nics, index, version), *name_servers]
        name_servers = []
    if not told.dhcp and not told.static:
        yield "inet", "manual", name_servers


def _gateway_lines(nics: tuple[Nic, ...], index: int, version: int) -> list[str]:
    # Not `gateway`, which wants the first address's subnet, and takes the NIC down with it where it fails.
    route = _route_command(nics, index, version)
    return [f"    up {route} || true"] if route else []


def _route_command(nics: tuple[Nic, ...], index: int, version: int) -> str:
    gateway, metric = _gateway(nics[index].addressing, version), _metric(nics, index, version)
    if not gateway:
        return ""
    target = "default" if version == 4 else "::/0"
    return f"ip route replace {target} via {gateway} dev eth{index}" + (f" metric {metric}" if metric else "")


def _name_server(server: str) -> str:
    line = f"nameserver {server}"
    return f"grep -qsxF '{line}' /etc/resolv.conf || echo '{line}' >> /etc/resolv.conf"


# --- dhcpcd


def _dhcpcd_conf(nics: tuple[Nic, ...]) -> str:
    blocks = [_DHCPCD, *(_dhcpcd_block(index, nic) for index, nic in enumerate(nics))]
    if not any(nic.addressing.dhcp or _static(nic.addressing, 4) for nic in nics):
        blocks.append(_LOOPBACK)
    return "\n".join(blocks)


def _dhcpcd_block(index: int, nic: Nic) -> str:
    told = nic.addressing
    four, six = _static(told, 4), _static(told, 6)
    lines = [f"interface eth{index}"]
    if not told.dhcp and not four:
        lines.append("noipv4")
    if not told.dhcp and not told.static:
        lines.append("noipv6")
    # dhcpcd takes one of each family; the others, and an IPv6 gateway, are the exit-hook's.
    lines += [f"static ip_address={interface}" for interface in four[:1]]
    # Asking the LAN for it takes 5 s, and macvm has asked.
    lines += ["noarp"] if four else []
    lines += [f"static ip6_address={interface}" for interface in six[:1]]
    if gateway := _gateway(told, 4):
        lines.append(f"static routers={gateway}")
    if told.dns:
        lines.append(f"static domain_name_servers={' '.join(map(str, told.dns))}")
    if nic.mtu:
        lines.append(f"static interface_mtu={nic.mtu}")
    return "\n".join(lines) + "\n"


def _exit_hook(nics: tuple[Nic, ...]) -> str:
    """Shell that dhcpcd reads at each change of a NIC, with `interface` and `reason` set (dhcpcd-run-hooks(8))."""
    lines = ['case "$interface:$reason" in']
    for index, nic in enumerate(nics):
        six = _static(nic.addressing, 6)
        more = [*_static(nic.addressing, 4)[1:], *six[1:]]
        commands = [f"ip address replace {interface} dev eth{index}" for interface in more]
        commands += [route] if (route := _route_command(nics, index, 6)) else []
        if nic.mtu:
            lines.append(f"eth{index}:PREINIT) ip link set dev eth{index} mtu {nic.mtu} ;;")
        if commands:
            when = " | ".join(f"eth{index}:{reason}" for reason in _WHEN)
            lines += [f"{when})", *(f"    {command}" for command in commands), "    ;;"]
    lines.append("esac")
    for nic in nics:
        # Its own hook takes name servers from what has an IPv4 address alone, and writes the file anew each time.
        if not nic.addressing.dhcp and not _static(nic.addressing, 4):
            lines += [_name_server(str(server)) for server in nic.addressing.dns]
    return "\n".join(lines) + "\n"
