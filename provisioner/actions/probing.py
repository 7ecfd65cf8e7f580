"""Asking the LAN whether the addresses that a network gives out are in use.

Asked from macvm's shim, or where there is none from a macvlan that lives as long as the question: a sibling macvlan
does not answer the parent, from which a live guest's address looks free (seen).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from provisioner.actions import addresses, shims
from provisioner.actions.addresses import Segment
from provisioner.context import Context
from provisioner.errors import Taken
from provisioner.host import links, netlink, wire
from provisioner.host.journal import Claim, Work
from provisioner.host.leases import Leases
from provisioner.host.netlink import Link
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import PROBE_PREFIX, Mac
from provisioner.model.nic import Address, Nic

_ALIAS = f"{links.MARK}probe:"

#: So many addresses in use are no chance: one that answers for a whole block would be asked for ever.
_MOST_CONFLICTS = 32

#: The words of `--probe`, and no probe at all.
PACES: Mapping[str, wire.Pace | None] = {"fast": wire.FAST, "rfc": wire.RFC, "no": None}


class InUse(NamedTuple):
    """An address that another on the LAN has, and the MAC that was seen."""

    nic: Nic
    address: Address
    mac: str


#: Claims others in the place of those in use, and returns the journal's facts.
ClaimOthers = Callable[[Leases, Sequence[InUse], Collection[Address]], Mapping[str, Any]]


@contextlib.contextmanager
def vantage(parent: Link, number: int = 0) -> Iterator[str]:
    """Name of a link on a parent that is up, to ask the LAN from: macvm's shim, or a macvlan for as long as the block
    runs. `number` is the journal's row that it is made for."""
    shim = shims.find_shim(parent)
    if shim and shim.up:
        yield shim.name
        return
    name = PROBE_PREFIX + os.urandom(4).hex()
    try:
        made = links.add_macvlan(name, parent, Mac.random(), f"{_ALIAS}{number}")
    except Taken:
        # It carries ipvlans, which have its MAC: it hears all that they would.
        made = None
    if made is None:
        yield parent.name
        return
    try:
        links.sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        links.set_up(made)
        yield name
    finally:
        links.remove(made)


class Question:
    """What is asked for some NICs, beside whatever the caller does next. `answers` waits; `close` in any case.

    `notes` say what could not be asked for.
    """

    def __init__(self, context: Context, work: Work, nics: Iterable[Nic], pace: str) -> None:
        self.notes: list[str] = []
        self._asked: list[tuple[list[Nic], wire.Probing]] = []
        self._vantages = contextlib.ExitStack()
        if PACES[pace] is None:
            return
        asking: dict[str, list[Nic]] = {}
        for nic in nics:
            if nic.network and nic.addressing.static:
                asking.setdefault(nic.parent, []).append(nic)
        try:
            for parent, here in asking.items():
                self._ask(context, work, parent, here, PACES[pace])
        except BaseException:
            self.close()
            raise

    def _ask(self, context: Context, work: Work, parent: str, nics: list[Nic], pace: wire.Pace | None) -> None:
        wanted = [address for nic in nics for address in nic.addressing.addresses]
        unasked = f"the LAN was not asked for {', '.join(map(str, wanted))}"
        if any(nic.mode is MacvtapMode.PASSTHROUGH for nic in nics):
            self.notes.append(f"{unasked}: passthrough leaves no room on {parent} to ask from")
            return
        link = netlink.get_link(parent)
        if not link.up or not link.carrier:
            self.notes.append(f"{unasked}: {parent} is down, or has no carrier")
            return
        assert pace is not None
        device = self._vantages.enter_context(vantage(link, work.number))
        # A guest that keeps its NIC may have the address already.
        own = {nic.mac for nic in nics}
        self._asked.append((nics, wire.Probing(device, wanted, pace=pace, ignore=own)))

    @property
    def pending(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._asked)

    def answers(self) -> list[InUse]:
        """Waits until the LAN has had the time to answer."""
        found = []
        for nics, probing in self._asked:
            holders = probing.result()
            for nic in nics:
                mine = (address for address in nic.addressing.addresses if address in holders)
                found += [InUse(nic, address, holders[address]) for address in mine]
        self._asked = []
        return found

    def close(self) -> None:
        for _, probing in self._asked:
            probing.stop()
        self._asked = []
        self._vantages.close()


def record(context: Context, found: Sequence[InUse]) -> None:
    """Keeps the conflicts for whoever looks at the network, whatever comes of the command."""
    with context.store.claiming() as leases:
        for one in found:
            leases.record_conflict(one.nic.network, one.address, one.mac)


def refuse_given(found: Sequence[InUse]) -> None:
    """Raises Taken for an address that the user named: another is for him to choose."""
    given = [one for one in found if not one.nic.addressing.auto]
    if given:
        said = "; ".join(f"{one.address} is in use on the LAN by {one.mac}" for one in given)
        raise Taken(said, "choose another, or --ip auto; --no-probe does not ask")


def take_others(
    leases: Leases,
    owner: str,
    machine: str,
    nics: Iterable[Nic],
    segments: Mapping[str, Segment],
    found: Sequence[InUse],
    avoid: Collection[Address],
) -> tuple[Nic, ...]:
    """In an open transaction: gives the NICs concerned what their networks give out next.

    Raises Taken where a pool is exhausted.
    """
    concerned = {one.nic.mac for one in found}
    settled = []
    for nic in nics:
        if nic.mac in concerned:
            nic = addresses.claim_others(leases, owner, machine, nic, segments[nic.network], avoid)
        settled.append(nic)
    return tuple(settled)


def hear(
    context: Context,
    work: Work,
    question: Question,
    nics: Callable[[], Sequence[Nic]],
    claim_others: ClaimOthers,
    pace: str,
    tell_anew: Callable[[], None] | None = None,
) -> list[str]:
    """Hears what the LAN says of the addresses, and has others taken until it says nothing. Returns notes.

    `nics` gives the NICs as they are claimed, `claim_others` claims in an open transaction, and `tell_anew` follows
    each claim. Raises Taken for an address that the user named, and where a pool is exhausted.
    """
    if not question.pending:
        return question.notes
    with work.step("probe"):
        found = question.answers()
    notes, avoid = list(question.notes), set[Address]()
    while found:
        avoid |= {one.address for one in found}
        if len(avoid) > _MOST_CONFLICTS:
            raise _everything_answers(found)
        record(context, found)
        refuse_given(found)
        with work.step("others"):
            work.claim_again(_claiming(claim_others, found, avoid))
        notes += notes_of(found, nics())
        if tell_anew:
            tell_anew()
        changed = [nic for nic in nics() if nic.mac in {one.nic.mac for one in found}]
        with contextlib.closing(Question(context, work, changed, pace)) as again:
            found = again.answers()
    return notes


def _everything_answers(found: Sequence[InUse]) -> Taken:
    macs = sorted({one.mac for one in found})
    return Taken(
        f"the LAN has every one of {_MOST_CONFLICTS} addresses in a row that {found[0].nic.network} would give out, "
        f"the last at {', '.join(macs[:4])}",
        "does a router answer for all of them (proxy ARP)? then say --no-probe; or choose another --ip-range",
    )


def _claiming(claim_others: ClaimOthers, found: Sequence[InUse], avoid: Collection[Address]) -> Claim:
    return lambda leases: claim_others(leases, found, avoid)


def notes_of(found: Sequence[InUse], nics: Iterable[Nic]) -> list[str]:
    """What the user is told of conflicts."""
    now = {(nic.mac, address.version): address for nic in nics for address in nic.addressing.addresses}
    return [
        f"{one.address} is in use on the LAN by {one.mac}: {now[one.nic.mac, one.address.version]} instead"
        for one in found
    ]


def clear(context: Context) -> None:
    """Removes the macvlans of questions whose macvm was killed."""
    for link in netlink.links():
        number = link.alias.removeprefix(_ALIAS) if link.alias.startswith(_ALIAS) else ""
        if number.isdecimal() and not context.journal.is_live(int(number)):
            links.remove(link)
