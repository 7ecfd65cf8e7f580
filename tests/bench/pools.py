"""What it costs to give out one address: picked, claimed and committed, at different numbers of leases in a /16.

In this process and without waiting for the disk, so that neither the interpreter's start nor the disk is in it. The stores
take turns.
"""

from __future__ import annotations

import ipaddress
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from provisioner.host.leases import LeaseClaim, NicClaim, now
from provisioner.host.store import Store, open_store
from provisioner.model.ipam import pool_of
from provisioner.model.network import Network, Subnet

SIZES = (10, 1_000, 60_000)

_SUBNET = ipaddress.ip_network("10.0.0.0/16")
_POOL = pool_of(Subnet(_SUBNET))


class Row(NamedTuple):
    """Median milliseconds at each of `SIZES`, and the median of the turns' ratios to the first."""

    title: str
    spent: tuple[float, ...]
    ratios: tuple[float, ...]


def rows(rounds: int) -> Iterator[Row]:
    for title, first_round in (("fresh", True), ("given back before", False)):
        with ExitStack() as stack:
            stores = [_filled(stack, size, first_round=first_round) for size in SIZES]
            yield _row(f"one address, {title}", stores, _give_one, 20 * rounds, _take_back)
    with ExitStack() as stack:
        stores = [_filled(stack, size, first_round=True) for size in SIZES]
        yield _row("all leases of a network", stores, lambda store: store.leases(network="lan"), rounds)
        yield _row("their number", stores, lambda store: store.networks.used("lan"), rounds)


def _row(
    title: str,
    stores: list[Store],
    act: Callable[[Store], object],
    rounds: int,
    afterwards: Callable[[Store], object] = lambda _: None,
) -> Row:
    spent: list[list[float]] = [[] for _ in stores]
    for number in range(rounds + 1):
        order = range(len(stores)) if number % 2 else reversed(range(len(stores)))
        for place in order:
            began = time.perf_counter()
            act(stores[place])
            took = (time.perf_counter() - began) * 1000
            afterwards(stores[place])
            if number:
                spent[place].append(took)
    ratios = (median(mine / first for mine, first in zip(one, spent[0], strict=True)) for one in spent)
    return Row(title, tuple(map(median, spent)), tuple(ratios))


def _filled(stack: ExitStack, count: int, *, first_round: bool) -> Store:
    """With so many leases; past the first round every other address has been had, too, and waits."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    store = open_store(Path(folder))
    stack.callback(store.close)
    store.rows("PRAGMA synchronous = OFF")
    store.networks.add(Network("lan", "eth0", subnets=(Subnet(_SUBNET),)))
    subnet = str(_SUBNET)
    with store.change() as db:
        macs = ((f"{n:012x}", f"u{n}", f"vm{n}", "lan") for n in range(count))
        db.executemany("INSERT INTO macs VALUES (?, ?, ?, '', ?)", macs)
        leases = (("eth0", str(_SUBNET[n + 1]), f"{n:012x}", subnet, now()) for n in range(count))
        db.executemany("INSERT INTO leases VALUES (?, ?, ?, 'lan', ?, 1, ?)", leases)
        db.execute("UPDATE pools SET next = ?", (str(_SUBNET[count + 1]) if first_round else None,))
        if not first_round:
            waiting = (("lan", subnet, str(_SUBNET[n + 1])) for n in range(count, _POOL.size))
            db.executemany("INSERT INTO released (network, subnet, address) VALUES (?, ?, ?)", waiting)
    return store


_MAC = "52:54:00:00:00:01"


def _give_one(store: Store) -> None:
    subnet = str(_SUBNET)
    with store.claiming() as leases:
        picked = leases.pick("lan", "eth0", subnet, _POOL)
        assert picked
        leases.advance("lan", subnet, picked)
        leases.claim("uuid", "vm", [NicClaim(_MAC, (LeaseClaim("eth0", str(picked.address)),), network="lan")])


def _take_back(store: Store) -> None:
    store.release_mac(_MAC)
