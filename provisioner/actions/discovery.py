"""Addresses of guests that no lease holds: heard on their own macvtaps, and asked for through the shim.

What is heard is kept in the store while the guest runs, and gets its route through the shim.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from provisioner.actions import probing, shims
from provisioner.actions.views import MachineView, NicView
from provisioner.context import Context
from provisioner.errors import MacvmError
from provisioner.host import hearing, netlink
from provisioner.host.hearing import Heard
from provisioner.model.mode import MacvtapMode
from provisioner.model.nic import Address

#: Guests that are asked at once.
_AT_ONCE = 16


class Silent(NamedTuple):
    """A running guest's NIC that is to be asked, and the link to ask from."""

    nic: NicView
    vantage: str


def direct_nics(machines: Iterable[MachineView]) -> list[NicView]:
    """Those of running machines that are on the LAN, each with its macvtap."""
    off = ("off", "crashed", "unknown", "endpoint")
    running = (machine for machine in machines if machine.state not in off)
    return [nic for machine in running for nic in machine.nics if nic.parent and nic.device and nic.kernel_mode]


def is_served(nic: NicView) -> bool:
    """Whether a shim reaches a NIC, as far as its mode tells."""
    return nic.kernel_mode is not None and shims.reaches_host(MacvtapMode(nic.kernel_mode))


def record(context: Context, nic: NicView, heard: Iterable[Heard]) -> bool:
    """Keeps what a guest was heard to have. Whether anything is new; the caller then has the routes follow."""
    store, new = context.store.heard, False
    leased = {address.address for address in nic.addresses if address.source == "lease"}
    own = {interface.ip for _, interface in netlink.all_addresses()}
    for one in heard:
        if one.lost:
            store.lose(nic.mac, "" if one.address.is_unspecified else str(one.address))
            new = True
        # A guest that takes the host's own address is not served with it.
        elif str(one.address) not in leased and one.address not in own:
            new |= store.keep(nic.mac, str(one.address), nic.parent or "")
    return new


def ask_silent(context: Context, nics: Iterable[NicView]) -> list[str]:
    """Asks guests for their addresses, in the subnets of their parents, and keeps the answers. Returns the parents of
    those that answered something new. Where the mode leaves no way, nobody is asked."""
    by_parent: dict[str, list[NicView]] = {}
    for nic in nics:
        if is_served(nic) and nic.parent:
            by_parent.setdefault(nic.parent, []).append(nic)
    changed = []
    for parent, here in by_parent.items():
        link = netlink.find_link(parent)
        if link is None or not link.up:
            continue
        own = [interface.network for interface in netlink.addresses(link.index)]
        with probing.vantage(link) as device, ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = [pool.submit(_ask, device, nic.mac, own) for nic in here]
            answers = [one.result() for one in asked]
        # Not any() over a generator: each is to be kept.
        new = [record(context, nic, found) for nic, found in zip(here, answers, strict=True)]
        if any(new):
            changed.append(parent)
    return changed


def _ask(device: str, mac: str, own: list[IPv4Network | IPv6Network]) -> list[Heard]:
    found: set[Address] = set()
    try:
        found |= hearing.ask(device, mac, [one for one in own if isinstance(one, IPv4Network)])
        found |= hearing.ask_v6(device, mac, [one for one in own if isinstance(one, IPv6Network)])
    except MacvmError:
        pass  # the link went meanwhile: what was found by then counts
    return [Heard(mac, address, "asked") for address in found]


def follow(context: Context, parents: Iterable[str]) -> None:
    """Has the routes of these parents be as the store now wants them."""
    for parent in dict.fromkeys(parents):
        shims.reconcile(context, parent)
