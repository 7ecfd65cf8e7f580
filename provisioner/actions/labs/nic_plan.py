"""Which of a machine's NICs is which of those that its lab's file names, and what is to become of it: pure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from provisioner.actions import addresses
from provisioner.actions.labs.real import RealNic
from provisioner.actions.labs.wanted import WantedNic
from provisioner.errors import MacvmError
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Address, Addressing, Nic


class Ask(enum.IntEnum):
    """What makes a NIC what is wanted, the least first."""

    NOTHING = 0
    SET = 1
    MOVE = 2
    DETACH = 3
    ATTACH = 4


class NicStep(NamedTuple):
    """One NIC's part of a machine's change: `before` is None for a new one, `wanted` for one that goes. A move is a
    detach and an attach, with the same MAC."""

    ask: Ask
    before: RealNic | None
    wanted: WantedNic | None
    reason: str


class Promises(NamedTuple):
    """What a lab's file gives to somebody by name: addresses, each on the LAN of a parent, and MACs."""

    addresses: frozenset[tuple[str, Address]] = frozenset()
    macs: frozenset[Mac] = frozenset()

    @classmethod
    def of(cls, nics: Iterable[WantedNic]) -> Promises:
        every = list(nics)
        return cls(
            frozenset((nic.parent, address) for nic in every for address in nic.asked.addressing.addresses),
            frozenset(nic.mac for nic in every if nic.mac),
        )


def match(wanted: Sequence[WantedNic], real: Sequence[RealNic], runs: bool, promises: Promises) -> list[NicStep]:
    """Pairs the two, each NIC with that which takes least to become it; what is left over comes or goes."""
    steps = _pairs(wanted, real, runs, promises)
    kept = {step.before.mac for step in steps.values() if step.before}
    gone = [NicStep(Ask.DETACH, nic, None, _why_gone(nic)) for nic in real if nic.mac not in kept]
    new = [
        steps.get(i) or NicStep(Ask.ATTACH, None, wish, "the machine has no such NIC") for i, wish in enumerate(wanted)
    ]
    return [step for step in (*gone, *new) if step.ask]


def kept_macs(wanted: Sequence[WantedNic], real: Sequence[RealNic], promises: Promises) -> list[Mac | None]:
    """The MAC of each NIC that is wanted, where the machine is made anew: that which it has."""
    steps = _pairs(wanted, real, False, promises)
    found = [steps[i].before if i in steps else None for i in range(len(wanted))]
    return [wish.mac or (there.mac if there else None) for wish, there in zip(wanted, found, strict=True)]


def _pairs(wanted: Sequence[WantedNic], real: Sequence[RealNic], runs: bool, promises: Promises) -> dict[int, NicStep]:
    """By the number of each wish that something is there for."""
    pairs = []
    for i, wish in enumerate(wanted):
        for j, there in enumerate(real):
            found = compare(wish, there, runs, promises)
            if found:
                pairs.append((found[0], i, j, found[1]))
    steps: dict[int, NicStep] = {}
    taken: set[int] = set()
    for ask, i, j, reason in sorted(pairs, key=lambda pair: pair[:3]):
        if i not in steps and j not in taken:
            steps[i] = NicStep(ask, real[j], wanted[i], reason)
            taken.add(j)
    return steps


def _why_gone(nic: RealNic) -> str:
    return "not in the file" if nic.told else "not in the file: attached by another program"


def compare(wish: WantedNic, there: RealNic, runs: bool, promises: Promises) -> tuple[Ask, str] | None:
    """What makes one of the other, and why; None where that is no way."""
    if wish.mac and wish.mac != there.mac:
        return None
    if not wish.mac and there.mac in promises.macs:
        return None
    if (there.kind == "direct") is bool(wish.asked.libvirt_network):
        return None
    moves = list(_moves(wish, there, runs))
    if wish.asked.libvirt_network:
        differ = ["the link is down"] if there.link == "down" else []
    else:
        differ = list(_differs(wish, there, promises))
        held = there.told.addressing.addresses if there.told else ()
        mine = wish.asked.addressing.addresses
        if any((there.parent, one) in promises.addresses for one in held if one not in mine):
            moves.append("its address is promised to another")
    reasons = "; ".join([*moves, *differ])
    return (Ask.MOVE if moves else Ask.SET if differ else Ask.NOTHING), reasons


def _moves(wish: WantedNic, there: RealNic, runs: bool) -> Iterator[str]:
    """What only another plug can change."""
    told = there.told
    if runs and there.live is not there.saved:
        yield "only the definition has it" if there.saved else "the definition does not have it"
    if there.link == "gone":
        yield "its link is gone from the host"
    if wish.asked.libvirt_network:
        if there.network != wish.asked.libvirt_network:
            yield f"libvirt network {there.network} → {wish.asked.libvirt_network}"
        return
    if told is None:
        yield "attached by another program"
        return
    if there.parent != wish.parent:
        yield f"parent {there.parent} → {wish.parent}"
    if told.network != wish.asked.network:
        yield f"network {told.network or 'none'} → {wish.asked.network or 'none'}"
    if told.mtu != wish.mtu:
        yield f"MTU {told.mtu or 'of the parent'} → {wish.mtu or 'of the parent'}"
    if told.shim is not wish.shim:
        yield f"shim {_on(told.shim)} → {_on(wish.shim)}"
    if there.mode is not wish.mode and MacvtapMode.PASSTHROUGH in (there.mode, wish.mode):
        yield f"mode {_mode(there.mode)} → {wish.mode.value}"


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _mode(mode: MacvtapMode | None) -> str:
    return mode.value if mode else "none"


def _differs(wish: WantedNic, there: RealNic, promises: Promises) -> Iterator[str]:
    """What changes where it is."""
    passthrough = MacvtapMode.PASSTHROUGH in (there.mode, wish.mode)
    if there.mode is not wish.mode and not passthrough:
        yield f"mode {_mode(there.mode)} → {wish.mode.value}"
    elif there.saved and there.saved_mode is not wish.mode and not passthrough:
        yield f"mode of the definition {_mode(there.saved_mode)} → {wish.mode.value}"
    if there.told and not is_told(wish, there.told):
        asked = wish.asked.addressing
        yield f"address {_words(there.told.addressing)} → {_words(asked)}"
    if there.link == "down":
        yield "the link is down"


def _words(told: Addressing) -> str:
    return ", ".join(map(str, told.addresses)) or str(told)


def is_told(wish: WantedNic, told: Nic) -> bool:
    """Whether a guest is told what is wanted; which address, a network may have decided."""
    asked, has = wish.asked.addressing, told.addressing
    if asked.dhcp is not has.dhcp:
        return False
    if wish.segment is None:
        return _parts(wish.addressing) == _parts(has)
    if not asked.auto and set(asked.addresses) != set(has.addresses):
        return False
    versions = {one.subnet.version for one in wish.segment.network.subnets}
    if asked.auto and {one.version for one in has.static} != versions:
        return False
    try:
        expected = addresses.told_on(wish.segment, asked._replace(static=has.static))
    except MacvmError:
        return False  # another range by now, or the address is the host's
    return _parts(expected) == _parts(has)


def _parts(told: Addressing) -> tuple[Collection[object], ...]:
    return set(told.static), set(told.gateways), tuple(told.dns)
