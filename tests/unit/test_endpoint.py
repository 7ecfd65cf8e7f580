"""Endpoints as values: modes, what cannot be said together, and the text that the store keeps."""

from __future__ import annotations

import ipaddress
import re

import pytest

from provisioner.errors import Usage
from provisioner.model.endpoint import (
    Endpoint,
    IpvlanMode,
    MacvlanMode,
    Mode,
    check_mode,
    namespace_name,
    stands_for,
    store_key,
)
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Addressing, Nic

MAC = Mac("52:54:00:00:00:41")
MODES: list[Mode] = [*MacvlanMode, *IpvlanMode]


@pytest.mark.parametrize(("word", "mode"), [("passthru", "passthrough"), (" Source ", "source"), ("vepa", "vepa")])
def test_modes_are_read(word: str, mode: str) -> None:
    assert MacvlanMode.parse(word) is MacvlanMode(mode)


def test_other_words_are_none() -> None:
    with pytest.raises(Usage, match="is no macvlan mode"):
        MacvlanMode.parse("l2")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_stands_for_one_of_a_macvtap(mode: Mode) -> None:
    """Its own where there is one; what the host cannot reach is private's."""
    own = {one.value: one for one in MacvtapMode}
    assert stands_for(mode) is own.get(mode.value, MacvtapMode.PRIVATE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("own", [True, False])
def test_the_store_gives_back_what_it_was_given(mode: Mode, own: bool) -> None:
    told = Addressing((ipaddress.ip_interface("192.0.2.41/24"),), gateways=(ipaddress.ip_address("192.0.2.1"),))
    nic = Nic(store_key("alice", mode, MAC), stands_for(mode), "eth0", addressing=told, network="lan", mtu=1400)
    made = Endpoint("alice", mode, nic, "macvm-alice", "me-1", own, (4, 5), (MAC,))
    again = Endpoint.from_json(made.to_json())
    assert again == made
    assert isinstance(again.sources[0], Mac)
    assert (again.kind, again.owner) == ("ipvlan" if isinstance(mode, IpvlanMode) else "macvlan", "endpoint/alice")


def test_those_that_share_a_mac_have_a_key_each() -> None:
    keys = [store_key(name, mode, MAC) for mode in MODES for name in ("alice", "bob")]
    assert sorted(keys).count(MAC) == 2 * 4
    assert len(set(keys)) == len(keys) - 2 * 4 + 1 - 2, "l2 and l3 of one name are one endpoint"


@pytest.mark.parametrize(
    ("mode", "ipvlan", "sources", "said"),
    [
        (MacvlanMode.BRIDGE, IpvlanMode.L2, (), "--mode and --ipvlan exclude one another"),
        (None, None, (MAC,), "--allow-source is the list of --mode source"),
        (MacvlanMode.BRIDGE, None, (MAC,), "--allow-source is the list of --mode source"),
        (MacvlanMode.SOURCE, None, (), "would let nothing through at all"),
    ],
)
def test_what_cannot_be_said_together(
    mode: MacvlanMode | None, ipvlan: IpvlanMode | None, sources: tuple[Mac, ...], said: str
) -> None:
    with pytest.raises(Usage, match=re.escape(said)):
        check_mode(mode, ipvlan, sources)


def test_what_can() -> None:
    check_mode(None, None, ())
    check_mode(None, IpvlanMode.L3, ())
    check_mode(MacvlanMode.SOURCE, None, (MAC,))


def test_a_namespaces_name_has_room_for_the_prefix() -> None:
    assert namespace_name("x" * 57) == "macvm-" + "x" * 57
    for name in ("x" * 58, "-x", "", "a.b", "../x"):
        with pytest.raises(Usage):
            namespace_name(name)
