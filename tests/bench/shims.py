"""What it costs to have the host reach 1,000 guests: a route and a neighbour entry each, from nothing, and where nothing
has changed. Beside it `ip -batch` with the same lines.

In this process, for reconciling is what a running command does; `ip` has its start in it, as that is how it is used. Both
sides find the shim there, with nothing on it, and take turns.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from provisioner.actions import shims
from provisioner.context import Context, Settings
from provisioner.host import netlink, routing
from provisioner.host.leases import now
from provisioner.model.shim import Guest, ShimSet, unpacked

GUESTS = 1_000

_PARENT, _SUBNET, _SOURCE = "eth0", "10.0.0.0/16", "10.0.0.1"


class Row(NamedTuple):
    """Median milliseconds of macvm and of what is beside it, and the median of the turns' ratios."""

    title: str
    goal: str
    ours: float
    theirs: float
    ratio: float


def rows(rounds: int) -> Iterator[Row]:
    """Leaves the host as it was."""
    with ExitStack() as stack:
        context = _filled(stack)
        _ip("addr", "add", f"{_SOURCE}/16", "dev", _PARENT)
        stack.callback(_ip, "addr", "del", f"{_SOURCE}/16", "dev", _PARENT)
        shim = shims.hold(context, netlink.get_link(_PARENT))
        stack.callback(shims.let_go, context, netlink.get_link(_PARENT))
        lines = stack.enter_context(tempfile.NamedTemporaryFile("w"))
        lines.writelines(_lines(shim.name, unpacked(shims.guests_behind(context.store, _PARENT))))
        lines.flush()
        spent: dict[str, list[float]] = {"first": [], "again": [], "ip": []}

        def empty() -> None:
            routing.change(shim, ShimSet(), routing.read(shim))
            assert not routing.read(shim)

        def reconcile() -> None:
            shims.reconcile(context, _PARENT)

        def ours() -> dict[str, float]:
            return {"first": _timed(reconcile), "again": _timed(reconcile)}

        def theirs() -> dict[str, float]:
            return {"ip": _timed(lambda: _ip("-batch", lines.name))}

        for number in range(rounds + 1):
            for act in (ours, theirs) if number % 2 else (theirs, ours):
                took = act()
                made = routing.read(shim)
                assert (len(made.routes), len(made.neighbours)) == (GUESTS, GUESTS)
                empty()
                for name, one in took.items():
                    if number:
                        spent[name].append(one)
    goals = (("1,000 guests' routes", "first", "ratio <= 1"), ("the same, nothing new", "again", "ratio < 0.3"))
    for title, mine, goal in goals:
        ratio = median(one / other for one, other in zip(spent[mine], spent["ip"], strict=True))
        yield Row(title, goal, median(spent[mine]), median(spent["ip"]), ratio)


def _filled(stack: ExitStack) -> Context:
    """With a store of its own, of so many leases."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    context = Context(Settings("qemu:///system", folder, "", "", "auto", ""), readonly=True)
    stack.callback(context.close)
    with context.store.change() as db:
        for n in range(GUESTS):
            mac = f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}"
            db.execute("INSERT INTO macs VALUES (?, ?, ?, '', NULL)", (mac, f"u{n}", f"vm{n}"))
            address = f"10.0.{1 + n // 250}.{1 + n % 250}"
            lease = (_PARENT, address, mac, _SUBNET, now())
            db.execute("INSERT INTO leases VALUES (?, ?, ?, '', ?, 1, ?)", lease)
    return context


def _lines(shim: str, guests: list[Guest]) -> Iterator[str]:
    for guest in guests:
        yield f"neigh replace {guest.address} lladdr {guest.mac} dev {shim} nud permanent protocol 109\n"
    for guest in guests:
        yield f"route add {guest.address} dev {shim} proto 109 scope link src {_SOURCE}\n"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000
