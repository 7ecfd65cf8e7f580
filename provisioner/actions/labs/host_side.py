"""What the host lacks to reach a lab's guests that run: their parent's shim, or routes on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from provisioner.actions import shims
from provisioner.actions.parents import Links
from provisioner.host import netlink, routing
from provisioner.host.netlink import Link
from provisioner.host.store import Store
from provisioner.model.nic import Address, Nic
from provisioner.model.shim import wanted


class Unserved(NamedTuple):
    """A guest's address that the host has no way to: `parent` has no shim, or that no route to it."""

    parent: str
    has_shim: bool
    address: Address


def look(store: Store, links: Links, nics: Mapping[str, Collection[Nic]]) -> dict[str, tuple[Unserved, ...]]:
    """Of the NICs that each machine or endpoint has been told of; those without any fault are left out."""
    served = {name: [nic for nic in held if shims.is_served(nic)] for name, held in nics.items()}
    parents = {nic.parent for held in served.values() for nic in held}
    if not parents:
        return {}
    there = routing.HostRoutes.read()
    lacking = {name: _Lacking(store, links.find(name), name, there) for name in parents}
    found = {
        name: tuple(
            Unserved(nic.parent, lacking[nic.parent].shim is not None, address)
            for nic in held
            for address in nic.addressing.addresses
            if address.packed in lacking[nic.parent].addresses
        )
        for name, held in served.items()
    }
    return {name: held for name, held in found.items() if held}


class _Lacking:
    """Of one parent: its shim, and the guests' addresses, packed, that `shims.reconcile` would make a route to."""

    def __init__(self, store: Store, parent: Link | None, name: str, there: routing.HostRoutes) -> None:
        self.shim = shims.find_shim(parent) if parent else None
        self.addresses = frozenset(self._lacking(store, parent, name, there)) if parent and parent.up else frozenset()

    def _lacking(self, store: Store, parent: Link, name: str, there: routing.HostRoutes) -> Iterator[bytes]:
        guests = shims.reached_behind(store, parent)
        has = there.ours.get(self.shim.index, {}) if self.shim else {}
        from provisioner.actions import shim_addresses  # of no use where nobody runs

        # In other subnets the host has no address to speak from.
        reached = wanted(netlink.addresses(parent.index), guests, shim_addresses.held(store, name)).routes
        for address in reached:
            if address not in has and address not in there.others:
                yield address
