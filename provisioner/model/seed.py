"""The NoCloud seed's texts: one set of files that CirrOS, cloud-init and the tiny image all read.

cloud-init reads `meta-data`, `user-data`, `vendor-data` and `network-config` (version 2, NICs matched by MAC). CirrOS reads
`meta-data` as JSON, which is valid YAML too, runs `user-data` only where it begins with `#!`, and copies the `files/`
tree into its root before the network starts: `/etc/network/interfaces` serves 0.3 to 0.5, `/etc/dhcpcd.conf` 0.6.
"""

from __future__ import annotations

import ipaddress
import json
from typing import NamedTuple

from provisioner.model.nic import Nic

#: The label by which guests find the seed.
VOLUME_LABEL = "cidata"

#: By itself cloud-init takes up the network of the first boot alone: a NIC attached later would have no address.
_VENDOR_DATA = {"updates": {"network": {"when": ["boot-new-instance", "boot"]}}}


class SeedRequest(NamedTuple):
    """What a guest is told. `nics` come in the order of the machine's; `password_hash` is crypt(5)'s `$6$…`."""

    hostname: str
    instance_id: str
    nics: tuple[Nic, ...]
    ssh_keys: tuple[str, ...] = ()
    user_data: bytes = b""
    login: str = ""
    password_hash: str = ""


def seed_files(request: SeedRequest) -> dict[str, bytes]:
    """Path on the seed to content."""
    return {
        "meta-data": _meta_data(request),
        "user-data": _user_data(request),
        "vendor-data": _vendor_data(),
        **network_files(request.nics),
    }


def network_files(nics: tuple[Nic, ...]) -> dict[str, bytes]:
    """The part of the seed that tells of NICs, in each kind of guest's own words."""
    return {
        "network-config": _network_config(nics).encode(),
        "files/etc/network/interfaces": _interfaces(nics).encode(),
        "files/etc/dhcpcd.conf": _dhcpcd_conf(nics).encode(),
    }


def _meta_data(request: SeedRequest) -> bytes:
    data: dict[str, object] = {"instance-id": request.instance_id, "local-hostname": request.hostname}
    if request.ssh_keys:
        data["public-keys"] = list(request.ssh_keys)
    return (json.dumps(data, indent=1) + "\n").encode()


def takes_script(user_data: bytes) -> bool:
    return user_data.startswith(b"#!")


def _user_data(request: SeedRequest) -> bytes:
    if request.user_data:
        return request.user_data
    if not request.password_hash:
        return b"#cloud-config\n{}\n"
    # A script, since CirrOS runs nothing else and cloud-init runs it as well. The hash has none of the shell's quotes.
    return f"#!/bin/sh\nprintf '%s\\n' '{request.login}:{request.password_hash}' | chpasswd -e\n".encode()


def _vendor_data() -> bytes:
    return f"#cloud-config\n{json.dumps(_VENDOR_DATA)}\n".encode()


def _network_config(nics: tuple[Nic, ...]) -> str:
    lines = ["version: 2", "ethernets:" if nics else "ethernets: {}"]
    for index, nic in enumerate(nics):
        told = nic.addressing
        # Quoted: a YAML reader may take an unquoted MAC for a number in base 60.
        lines += [f"  nic{index}:", "    match:", f'      macaddress: "{nic.mac}"', f"    set-name: eth{index}"]
        lines += [f"    dhcp4: {'true' if told.dhcp else 'false'}", "    dhcp6: false"]
        if nic.mtu:
            lines.append(f"    mtu: {nic.mtu}")
        if told.static:
            lines += ["    addresses:", *(f'      - "{interface}"' for interface in told.static)]
        if told.gateways:
            lines.append("    routes:")
        for gateway in told.gateways:
            lines += [f'      - to: "{"0.0.0.0" if gateway.version == 4 else "::"}/0"', f'        via: "{gateway}"']
        if told.dns:
            lines += ["    nameservers:", f"      addresses: {json.dumps([str(server) for server in told.dns])}"]
    return "\n".join(lines) + "\n"


def _interfaces(nics: tuple[Nic, ...]) -> str:
    stanzas = ["auto lo\niface lo inet loopback\n"]
    for index, nic in enumerate(nics):
        told, name = nic.addressing, f"eth{index}"
        stanzas.append(f"auto {name}\n")
        # Of the first stanza: busybox's `dhcp` and `manual` know no option `mtu`.
        mtu = [f"    pre-up ip link set dev {name} mtu {nic.mtu}"] if nic.mtu else []
        if told.dhcp:
            stanzas.append("\n".join([f"iface {name} inet dhcp", *mtu]) + "\n")
        for interface in told.static:
            family = "inet" if interface.version == 4 else "inet6"
            length = (
                interface.netmask if isinstance(interface, ipaddress.IPv4Interface) else interface.network.prefixlen
            )
            lines = [f"iface {name} {family} static", f"    address {interface.ip}", f"    netmask {length}"]
            lines += [f"    gateway {gateway}" for gateway in told.gateways if gateway.version == interface.version]
            stanzas.append("\n".join([*lines, *mtu]) + "\n")
            mtu = []
        if not told.dhcp and not told.static:
            stanzas.append("\n".join([f"iface {name} inet manual", *mtu]) + "\n")
    return "\n".join(stanzas)


def _dhcpcd_conf(nics: tuple[Nic, ...]) -> str:
    blocks = []
    for index, nic in enumerate(nics):
        told = nic.addressing
        if told.dhcp:
            continue
        lines = [f"interface eth{index}"]
        for version, word in ((4, "ip"), (6, "ip6")):
            addresses = [interface for interface in told.static if interface.version == version]
            lines += [f"static {word}_address={interface}" for interface in addresses[:1]]
        routers = [gateway for gateway in told.gateways if gateway.version == 4]
        lines += [f"static routers={gateway}" for gateway in routers[:1]]
        if told.dns:
            lines.append(f"static domain_name_servers={' '.join(map(str, told.dns))}")
        if nic.mtu:
            lines.append(f"static interface_mtu={nic.mtu}")
        if not told.static:
            lines = [f"denyinterfaces eth{index}"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)
