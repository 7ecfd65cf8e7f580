"""A shim's own addresses, in subnets of networks in which its parent has none: what the host speaks to guests from.

Each is a lease like a guest's, picked from the network's pool and asked for on the LAN first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from provisioner.actions import addresses
from provisioner.context import Context
from provisioner.errors import MacvmError
from provisioner.host import wire
from provisioner.host.leases import Lease, LeaseClaim, NicClaim
from provisioner.host.netlink import Link
from provisioner.host.store import Store
from provisioner.model.nic import Address, Interface
from provisioner.model.shim import OWNER_PREFIX, source_for


class _Place(NamedTuple):
    """Where an address is needed."""

    network: str
    subnet: str

    def key(self, parent: str) -> str:
        """What the store knows it by: one MAC of the shim's may hold several, each on a network of its own."""
        return f"{OWNER_PREFIX}{parent}/{self.network}/{self.subnet}"


def held(store: Store, parent: str) -> list[Interface]:
    """Those that are leased to a parent's shim."""
    leases = store.leases(parent=parent, owner=OWNER_PREFIX + parent)
    return [ipaddress.ip_interface(f"{lease.address}/{lease.subnet.partition('/')[2]}") for lease in leases]


def claim(context: Context, parent: str, own: Sequence[Interface], shim: Callable[[], Link]) -> list[Interface]:
    """Leases those that a parent's guests need and its shim has not yet; all that it then has. `shim` makes the link to
    ask the LAN from. A pool without room gives none: its guests are not reached."""
    there = {_Place(lease.network, lease.subnet) for lease in _of_shim(context.store, parent)}
    for place in _needed(context.store, parent, own):
        if place not in there:
            _claim_one(context, parent, place, shim())
    return held(context.store, parent)


def give_back(context: Context, parent: str, own: Sequence[Interface]) -> None:
    """Those that no guest needs any more."""
    needed = set(_needed(context.store, parent, own))
    for lease in _of_shim(context.store, parent):
        if _Place(lease.network, lease.subnet) not in needed:
            context.store.release_mac(lease.mac)


def _of_shim(store: Store, parent: str) -> list[Lease]:
    return store.leases(parent=parent, owner=OWNER_PREFIX + parent)


def _needed(store: Store, parent: str, own: Sequence[Interface]) -> list[_Place]:
    """Subnets of networks with served guests in which the parent has no address."""
    found = [
        _Place(lease.network, lease.subnet)
        for lease in store.leases(parent=parent)
        if lease.served and lease.subnet and source_for(ipaddress.ip_address(lease.address), own) is None
    ]
    return list(dict.fromkeys(found))


def _claim_one(context: Context, parent: str, place: _Place, shim: Link) -> None:
    avoid = set[Address]()
    while (address := _pick(context, parent, place, avoid)) is not None:
        try:
            taken = wire.probe(shim.name, [address])
        except MacvmError:
            # A parent that is down has nobody to ask; the address is the pool's to give all the same.
            return
        if address not in taken:
            return
        avoid.add(address)
        with context.store.claiming() as leases:
            leases.give_back(place.key(parent))
            leases.record_conflict(place.network, address, taken[address])


def _pick(context: Context, parent: str, place: _Place, avoid: Collection[Address]) -> Address | None:
    """The next one of a pool, claimed; None where it is exhausted."""
    segment = addresses.look_at(context, place.network)
    subnet = next((one for one in segment.network.subnets if str(one.subnet) == place.subnet), None)
    if subnet is None:
        return None
    with context.store.claiming() as leases:
        picked = leases.pick(place.network, parent, place.subnet, segment.pool(subnet), avoid)
        if picked is None:
            return None
        leases.advance(place.network, place.subnet, picked)
        # It is no guest, to which a route would lead.
        lease = LeaseClaim(parent, str(picked.address), served=False)
        nic = NicClaim(place.key(parent), (lease,), network=place.network)
        leases.claim(OWNER_PREFIX + parent, f"shim {parent}", [nic])
        return picked.address
