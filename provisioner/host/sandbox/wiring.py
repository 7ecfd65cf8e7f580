"""The LAN: a switch, a cable to each node, and addresses at its end."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from ctypes import addressof, create_string_buffer

from provisioner.host.sandbox.failure import Failed
from provisioner.host.sandbox.files import write
from provisioner.host.sandbox.layout import LAN, SPARE, addresses, spare_port
from provisioner.host.sandbox.processes import tool


def wire(nodes: dict[str, int], hairpin: bool) -> None:
    """The switch, and a cable to each node: its end of the veth is called `eth0`, the port has the node's name. A KVM
    host has a second, `spare0`, for a guest that takes a link for itself."""
    for scope in ("all", "default"):
        write(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "1")  # a switch has no addresses
    lines = ["link add name switch0 type bridge stp_state 0 mcast_snooping 0", "link set dev switch0 up"]
    for name, pid in nodes.items():
        last = int(addresses(name)[0].rpartition(".")[2])
        lines += [
            f"link add name {name} type veth peer name eth0 address 02:00:c0:00:02:{last:02x} netns {pid}",
            f"link set dev {name} master switch0 up",
        ]
        if name != LAN:
            port, mac = spare_port(name), f"02:00:c0:00:03:{last:02x}"
            lines.append(f"link add name {port} type veth peer name {SPARE} address {mac} netns {pid}")
            lines.append(f"link set dev {port} master switch0 up")
        if hairpin and name != LAN:
            lines += [f"link set dev {one} type bridge_slave hairpin on" for one in (name, spare_port(name))]
    tool("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def plug(name: str) -> None:
    """Addresses and default routes on `eth0`, once the switch has pushed it in here."""
    # `nodad` leaves out the link-local address that the kernel makes by itself.
    write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
    # A new network namespace inherits this from the machine; a KVM host that forwards would blur what macvtap does.
    write("/proc/sys/net/ipv4/ip_forward", "0")
    for link in ("eth0",) if name == LAN else ("eth0", SPARE):
        _complete_checksums(link)
    v4, v6 = addresses(name)
    lines = [
        "link set dev lo up",
        f"address add {v4}/24 brd + dev eth0",
        f"address add {v6}/64 dev eth0 nodad",
        "link set dev eth0 up",
    ]
    if name != LAN:
        # It stays down: up and with nobody on it, it would answer the LAN for eth0's address. Once up it has its queue.
        lines += [f"link set dev {SPARE} addrgenmode none", f"link set dev {SPARE} up", f"link set dev {SPARE} down"]
        lines += [f"route add default via {address}" for address in addresses(LAN)]
    tool("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def need_macvtap() -> None:
    """Load the kernel's macvtap where it is a module not loaded yet: only making a link does that. Raises Failed."""
    if os.path.isdir("/sys/class/macvtap"):
        return
    try:
        tool("ip", "link", "add", "link", "eth0", "name", "macvtap-probe", "type", "macvtap")
    except Failed as failed:
        raise Failed(f"this kernel has no macvtap ({failed})", errno.EOPNOTSUPP) from failed
    tool("ip", "link", "delete", "dev", "macvtap-probe")


def _complete_checksums(link: str) -> None:
    """Switch checksum offload off. A veth hands frames over with half a checksum, and DHCP clients drop those."""
    siocethtool, ethtool_stxcsum = 0x8946, 0x17
    command = create_string_buffer(struct.pack("=II", ethtool_stxcsum, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, siocethtool, struct.pack("16sP", link.encode(), addressof(command)))
