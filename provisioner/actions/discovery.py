"""Addresses of guests that no lease holds: heard on their own macvtaps, and asked for through the shim.

What is heard is kept in the store while the guest runs, and gets its route through the shim.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from provisioner.actions import probing, shims
from provisioner.actions.views import MachineView, NicView
from provisioner.context import Context
from provisioner.errors import MacvmError
from provisioner.host import hearing, netlink
from provisioner.host.dissecting import Heard
from provisioner.model.found import OFF
from provisioner.model.mode import MacvtapMode
from provisioner.model.nic import Address

#: Guests that are asked at once.
_AT_ONCE = 16
#: Frames of one guest that are heeded in a second: those of a boot, with IPv6 and DHCP, are about a dozen.
_HEEDED = 64


def direct_nics(machines: Iterable[MachineView]) -> list[NicView]:
    """Those of running machines that are on the LAN, each with its macvtap."""
    off = (*OFF, "unknown", "endpoint")
    running = (machine for machine in machines if machine.state not in off)
    return [nic for machine in running for nic in machine.nics if nic.parent and nic.device and nic.kernel_mode]


def is_served(nic: NicView) -> bool:
    """Whether a shim reaches a NIC, as far as its mode tells."""
    return nic.kernel_mode is not None and shims.reaches_host(MacvtapMode(nic.kernel_mode))


def is_silent(nic: NicView) -> bool:
    """Whether nothing is known that the host could reach a guest at. A link-local address comes before all others, and
    is no sign that there are none."""
    return all(ipaddress.ip_address(address.address).is_link_local for address in nic.addresses)


def record(context: Context, nic: NicView, heard: Iterable[Heard]) -> bool:
    """Keeps what a guest was heard to have. Whether anything is new; the caller then has the routes follow."""
    has: dict[str, bool] = {}
    for one in heard:
        if _is_moved(context, nic, one):
            has = {address: there for address, there in has.items() if ":" in address} | {"": False}
        elif one.lost and one.address.is_unspecified:
            has = {address: there for address, there in has.items() if ":" in address}
        address = "" if one.address.is_unspecified else str(one.address)
        has.pop(address, None)  # what was said last comes last
        has[address] = not one.lost
    if not has:
        return False
    # A guest that takes the host's own address is not served with it.
    left_out = {str(interface.ip) for _, interface in netlink.all_addresses()}
    left_out |= {address.address for address in nic.addresses if address.source == "lease"}
    kept = [address for address, there in has.items() if there and address not in left_out]
    gone = [address for address, there in has.items() if not there]
    return context.store.heard.learn(nic.mac, nic.parent or "", kept, gone)


def _is_moved(context: Context, nic: NicView, one: Heard) -> bool:
    """Whether DHCP gives a guest an address that it had not: what it had before, by DHCP or not, it has only where it
    goes on saying so."""
    given = one.how == "dhcp" and not one.lost and one.address.version == 4
    return given and str(one.address) not in {
        known.address for known in context.store.heard.all() if known.mac == nic.mac
    }


def ask(context: Context, nics: Iterable[NicView]) -> list[str]:
    """Asks guests for their addresses, in the subnets of their parents, and keeps the answers. Returns the parents of
    those that answered something new. Where the mode leaves no way, nobody is asked."""
    changed = [nic.parent or "" for nic, heard in asked(nics) if record(context, nic, heard)]
    return sorted(set(changed))


def asked(
    nics: Iterable[NicView], stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[NicView, list[Heard]]]:
    """Each guest that can be asked, and what it answered until it was `stopped`. Nothing is kept."""
    by_parent: dict[str, list[NicView]] = {}
    for nic in nics:
        if is_served(nic) and nic.parent:
            by_parent.setdefault(nic.parent, []).append(nic)
    for parent, here in by_parent.items():
        link = netlink.find_link(parent)
        if link is None or not link.up or stopped():
            continue
        own = [interface.network for interface in netlink.addresses(link.index)]
        with probing.vantage(link) as device, ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = [pool.submit(_ask, device, nic, own, stopped) for nic in here]
            found = [answer.result() for answer in answers]
        yield from zip(here, found, strict=True)


def _ask(device: str, nic: NicView, own: list[IPv4Network | IPv6Network], stopped: Callable[[], bool]) -> list[Heard]:
    found: set[Address] = set()
    asked = [one for one in own if isinstance(one, IPv4Network) and one.num_addresses <= hearing.ASK_MAX]
    try:
        found |= hearing.ask(device, nic.mac, asked, stopped)
        lost = set() if stopped() or not found else _no_longer(nic, asked) - found
        found |= hearing.ask_v6(device, nic.mac, [one for one in own if isinstance(one, IPv6Network)], stopped)
    except MacvmError:
        lost = set()  # the link went meanwhile: what was found by then counts
    return [Heard(nic.mac, one, "asked", lost=one in lost) for one in found | lost]


def _no_longer(nic: NicView, asked: Iterable[IPv4Network]) -> set[Address]:
    """Addresses that a guest was heard to have, and has no longer where it answers at others alone: it was given
    another one while nobody listened."""
    heard = {ipaddress.ip_address(address.address) for address in nic.addresses if address.source == "wire"}
    return {address for address in heard if any(address in network for network in asked)}


class _Budget(NamedTuple):
    """Frames of one guest that are heeded in a second. One that floods is then not heeded `until` the next, and what
    its socket has no room for the kernel drops: others are heard as ever."""

    since: float = 0.0
    spent: int = 0
    until: float = 0.0

    def spend(self, frames: int, now: float) -> _Budget:
        since, spent = (self.since, self.spent + frames) if now < self.since + 1.0 else (now, frames)
        return _Budget(since, spent, since + 1.0 if spent >= _HEEDED else 0.0)


class Ears:
    """Hears guests on their own macvtaps, and keeps what they are heard to have."""

    def __init__(self, context: Context, nics: Iterable[NicView] = ()) -> None:
        self._context = context
        self._listeners: dict[str, tuple[NicView, hearing.Listener]] = {}
        self._budgets: dict[str, _Budget] = {}
        self._answers: queue.SimpleQueue[tuple[NicView, list[Heard]]] = queue.SimpleQueue()
        self._closed, self._asking = threading.Event(), list[threading.Thread]()
        self.listen_to(nics)

    def listen_to(self, nics: Iterable[NicView]) -> list[NicView]:
        """These alone from now on. Returns the new ones; one whose macvtap is not there yet comes the next time."""
        wanted = {nic.mac: nic for nic in nics}
        for mac in [mac for mac in self._listeners if mac not in wanted]:
            self._drop(mac)
        new = []
        for mac, nic in wanted.items():
            if mac not in self._listeners:
                with contextlib.suppress(hearing.LinkGone):
                    self._listeners[mac] = (nic, hearing.Listener(nic.device or "", mac))
                    new.append(nic)
        return new

    def ask_beside(self, nics: Iterable[NicView]) -> None:
        """Asks guests in a thread; what they answer is heard like all else."""
        silent = list(nics)
        # Whoever waits says this ten times a second, mostly of nobody.
        if silent:
            self._asking = [thread for thread in self._asking if thread.is_alive()]
            self._asking.append(threading.Thread(target=self._ask_all, args=(silent,), name="ask-guests", daemon=True))
            self._asking[-1].start()

    def _ask_all(self, nics: list[NicView]) -> None:
        for nic, heard in asked(nics, self._closed.is_set):
            self._answers.put((nic, heard))

    def hear(self, seconds: float, *others: int) -> tuple[list[str], bool]:
        """Waits until somebody is heard, one of the `others` (descriptors) has something, or the time is up. Returns
        the parents behind which something is new, and whether one of the others spoke."""
        poll, now = select.poll(), time.monotonic()
        resting = {mac: budget.until for mac, budget in self._budgets.items() if budget.until > now}
        heeded = (listener.fileno() for mac, (_, listener) in self._listeners.items() if mac not in resting)
        for descriptor in (*others, *heeded):
            poll.register(descriptor, select.POLLIN)
        seconds = min([seconds, *(until - now for until in resting.values())])
        ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
        changed = []
        for mac, (nic, listener) in list(self._listeners.items()):
            if listener.fileno() not in ready:
                continue
            try:
                heard = listener.read()
            except hearing.LinkGone:
                self._drop(mac)
                continue
            self._budgets[mac] = self._budgets.get(mac, _Budget()).spend(listener.taken, time.monotonic())
            if record(self._context, nic, heard):
                changed.append(nic.parent or "")
        while not self._answers.empty():
            nic, heard = self._answers.get()
            if record(self._context, nic, heard):
                changed.append(nic.parent or "")
        return changed, bool(ready & set(others))

    def _drop(self, mac: str) -> None:
        self._listeners.pop(mac)[1].close()
        self._budgets.pop(mac, None)

    def close(self) -> None:
        self._closed.set()
        for mac in list(self._listeners):
            self._drop(mac)
        # Each may have made a link to ask from, which would outlive this process.
        for thread in self._asking:
            thread.join()


def follow(context: Context, parents: Iterable[str]) -> None:
    """Has the routes of these parents be as the store now wants them."""
    for parent in dict.fromkeys(parents):
        shims.reconcile(context, parent)
