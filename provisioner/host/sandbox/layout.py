"""Who is in a sandbox, at which addresses, and where their sockets are."""

from __future__ import annotations

#: Where every node finds the sockets of all of them. Its existence tells a process that it is in a sandbox.
SOCKETS = "/run/macvm-sandbox"
SWITCH, LAN = "switch", "lan"
#: A KVM host's link that nobody uses.
SPARE = "spare0"


def host_name(number: int) -> str:
    return f"host{number}"


def spare_port(node: str) -> str:
    """The switch's port that a KVM host's spare link is at."""
    return f"{node}-{SPARE}"


def addresses(node: str) -> tuple[str, str]:
    """A node's IPv4 and IPv6 address: the LAN peer has .1 and ::1, the first KVM host .2 and ::2, and so on."""
    last = 1 if node == LAN else int(node.removeprefix("host")) + 1
    return f"192.0.2.{last}", f"2001:db8::{last:x}"
