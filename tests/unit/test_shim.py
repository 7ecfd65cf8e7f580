"""What the host wants on a shim, from the parent's addresses and its guests alone."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.model.shim import Guest, Neighbour, Route, ShimSet, source_for, unreachable, wanted

MAC = "52:54:00:00:00:0b"
OWN = [ipaddress.ip_interface(text) for text in ("192.0.2.2/24", "198.51.100.2/25", "2001:db8::2/64")]


def guest(address: str, mac: str = MAC) -> Guest:
    return Guest(ipaddress.ip_address(address), mac)


def test_each_guest_has_a_route_from_the_hosts_address_in_its_subnet_and_an_entry() -> None:
    found = wanted(OWN, [guest("192.0.2.11"), guest("198.51.100.9"), guest("2001:db8::11")])
    assert {(str(one.address), str(one.source)) for one in found.routes} == {
        ("192.0.2.11", "192.0.2.2"),
        ("198.51.100.9", "198.51.100.2"),
        ("2001:db8::11", "2001:db8::2"),
    }
    assert {(str(one.address), one.mac) for one in found.neighbours} == {
        (address, MAC) for address in ("192.0.2.11", "198.51.100.9", "2001:db8::11")
    }
    assert {str(address) for address in found.proxies} == {"2001:db8::2"}, "ARP needs no proxy"
    assert found.own == frozenset()


@pytest.mark.parametrize("address", ["198.51.100.200", "203.0.113.1", "2001:db8:1::1"])
def test_a_guest_in_no_subnet_of_the_hosts_gets_nothing_and_is_named(address: str) -> None:
    assert not wanted(OWN, [guest(address)])
    assert unreachable(OWN, [guest(address), guest("192.0.2.11")]) == [guest(address)]


def test_where_the_parent_has_no_address_the_shim_has_one_and_needs_no_proxy() -> None:
    given_ = [ipaddress.ip_interface("203.0.113.5/24"), ipaddress.ip_interface("2001:db8:1::5/64")]
    found = wanted(OWN, [guest("203.0.113.9"), guest("2001:db8:1::9")], given_)
    assert {str(one.source) for one in found.routes} == {"203.0.113.5", "2001:db8:1::5"}
    assert {str(address) for address in found.own} == {"203.0.113.5", "2001:db8:1::5"}
    assert found.proxies == frozenset()


def test_an_address_of_the_shims_that_no_guest_needs_is_not_wanted() -> None:
    given_ = [ipaddress.ip_interface("203.0.113.5/24")]
    assert wanted(OWN, [guest("192.0.2.11")], given_).own == frozenset()


def test_the_first_of_several_addresses_in_one_subnet_is_the_source() -> None:
    own = [ipaddress.ip_interface("192.0.2.2/24"), ipaddress.ip_interface("192.0.2.3/24")]
    assert str(source_for(ipaddress.ip_address("192.0.2.11"), own)) == "192.0.2.2"


sets = st.builds(
    wanted,
    st.just(OWN),
    st.lists(st.builds(Guest, st.sampled_from([*OWN[0].network][2:9] + [*OWN[1].network][2:9]), st.sampled_from("ab"))),
)


@given(sets, sets)
def test_adding_what_lacks_and_removing_what_is_too_much_leads_from_one_to_the_other(
    want: ShimSet, have: ShimSet
) -> None:
    add, remove = want - have, have - want
    for lacks, too_much, before, after in zip(add, remove, have, want, strict=True):
        assert (before - too_much) | lacks == after
    assert not want - want


def test_an_empty_set_is_false_and_any_part_makes_it_true() -> None:
    address = ipaddress.ip_address("192.0.2.11")
    assert not ShimSet()
    assert ShimSet(routes=frozenset({Route(address, OWN[0].ip)}))
    assert ShimSet(neighbours=frozenset({Neighbour(address, MAC)}))
    assert ShimSet(own=frozenset({address}))
