"""What the modes promise, as a table; that it is true is measured in tests/sandbox/test_reach.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.model.mode import MacvtapMode
from provisioner.model.reach import Place, Station, Verdict, expected

WORDS: dict[str, MacvtapMode | Place] = {member.value: member for kind in (MacvtapMode, Place) for member in kind}

#: On one parent, with hairpin off and on: all four, nothing, or only the frame to a MAC known beforehand.
TABLE = """
    sender       receiver     off      on
    bridge       bridge       all      all
    bridge       vepa         nothing  all
    bridge       private      nothing  known
    vepa         bridge       nothing  all
    vepa         vepa         nothing  all
    vepa         private      nothing  known
    private      bridge       nothing  known
    private      vepa         nothing  known
    private      private      nothing  known
    host         bridge       all      all
    host         vepa         nothing  all
    host         private      nothing  known
    bridge       host         all      all
    vepa         host         nothing  all
    private      host         nothing  known
    passthrough  bridge       nothing  nothing
    vepa         passthrough  nothing  nothing
    passthrough  passthrough  nothing  nothing
    host         passthrough  nothing  nothing
    passthrough  host         nothing  nothing
"""
ROWS = [tuple(line.split()) for line in TABLE.strip().splitlines()[1:]]

GUESTS = st.builds(Station, st.sampled_from(MacvtapMode), st.sampled_from(["eth0", "eth1"]))
HOSTS = st.builds(Station, st.just(Place.HOST), st.sampled_from(["eth0", "eth1"]))
STATIONS = GUESTS | HOSTS | st.just(Station(Place.LAN))


def word(verdict: Verdict) -> str:
    arrived = (verdict.unicast, verdict.known_mac, verdict.broadcast, verdict.solicitation)
    words = {(True,) * 4: "all", (False,) * 4: "nothing", (False, True, False, False): "known"}
    return words[arrived]


@pytest.mark.parametrize(("sender", "receiver", "off", "on"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_on_one_parent(sender: str, receiver: str, off: str, on: str) -> None:
    one, other = Station(WORDS[sender], "eth0"), Station(WORDS[receiver], "eth0")
    assert (word(expected(one, other, False)), word(expected(one, other, True))) == (off, on)


@pytest.mark.parametrize(
    ("sender", "receiver", "why"),
    [
        ("vepa", "vepa", "VEPA sends everything to the switch, which does not send it back: turn hairpin on"),
        ("bridge", "vepa", "what is for a VEPA NIC goes to the switch, which does not send it back: turn hairpin on"),
        ("private", "private", "private NICs on one parent never hear one another, whatever the switch does"),
        ("vepa", "private", "a private NIC never hears another on its parent, whatever the switch does"),
        ("host", "private", "a private NIC never hears another on its parent, whatever the switch does"),
        ("passthrough", "bridge", "passthrough shares eth0 with nobody"),
        ("passthrough", "host", "passthrough leaves no room for the host's shim on eth0"),
    ],
)
def test_why_not(sender: str, receiver: str, why: str) -> None:
    verdict = expected(Station(WORDS[sender], "eth0"), Station(WORDS[receiver], "eth0"), hairpin=False)
    assert verdict.reason.startswith(why)


@given(STATIONS, st.booleans())
def test_everyone_reaches_the_lan(station: Station, hairpin: bool) -> None:
    assert word(expected(station, Station(Place.LAN), hairpin)) == "all"


@given(STATIONS, STATIONS, st.booleans())
def test_parents_of_ones_own_take_part_as_two_machines_do(one: Station, other: Station, hairpin: bool) -> None:
    apart = one.parent != other.parent
    assert not apart or word(expected(one, other, hairpin)) == "all"


@given(STATIONS, STATIONS, st.booleans())
def test_what_gets_there_gets_back(one: Station, other: Station, hairpin: bool) -> None:
    assert word(expected(one, other, hairpin)) == word(expected(other, one, hairpin))


@given(STATIONS, STATIONS)
def test_hairpin_takes_nothing_away(one: Station, other: Station) -> None:
    order = ("nothing", "known", "all")
    off, on = (order.index(word(expected(one, other, hairpin))) for hairpin in (False, True))
    assert off <= on


@given(STATIONS, STATIONS, st.booleans())
def test_there_is_a_reason_with_a_way_out_where_something_fails_and_none_elsewhere(
    one: Station, other: Station, hairpin: bool
) -> None:
    verdict = expected(one, other, hairpin)
    assert (word(verdict) == "all") == (not verdict.reason)
    assert not verdict.reason or ": " in verdict.reason
