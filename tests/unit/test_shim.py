"""What the host wants on a shim, from the parent's addresses and its guests alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.host.routing import packed
from provisioner.model.shim import Guest, Guests, ShimSet, source_for, unpacked, unreachable, wanted

MAC = "52:54:00:00:00:0b"
OWN = [ipaddress.ip_interface(text) for text in ("192.0.2.2/24", "198.51.100.2/25", "2001:db8::2/64")]


def guests(*addresses: str) -> Guests:
    return packed([(address, MAC) for address in addresses])


def pairs(rows: Mapping[bytes, bytes]) -> set[tuple[str, str]]:
    return {(str(ipaddress.ip_address(one)), str(ipaddress.ip_address(other))) for one, other in rows.items()}


def texts(addresses: Iterable[bytes]) -> set[str]:
    return {str(ipaddress.ip_address(address)) for address in addresses}


def test_each_guest_has_a_route_from_the_hosts_address_in_its_subnet_and_an_entry() -> None:
    found = wanted(OWN, guests("192.0.2.11", "198.51.100.9", "2001:db8::11"))
    assert pairs(found.routes) == {
        ("192.0.2.11", "192.0.2.2"),
        ("198.51.100.9", "198.51.100.2"),
        ("2001:db8::11", "2001:db8::2"),
    }
    assert {(str(one.address), one.mac) for one in unpacked(found.neighbours)} == {
        (address, MAC) for address in ("192.0.2.11", "198.51.100.9", "2001:db8::11")
    }
    assert texts(found.proxies) == {"2001:db8::2"}, "ARP needs no proxy"
    assert found.own == frozenset()


@pytest.mark.parametrize("address", ["198.51.100.200", "203.0.113.1", "2001:db8:1::1"])
def test_a_guest_in_no_subnet_of_the_hosts_gets_nothing_and_is_named(address: str) -> None:
    assert not wanted(OWN, guests(address))
    assert unreachable(OWN, guests(address, "192.0.2.11")) == [Guest(ipaddress.ip_address(address), MAC)]


def test_where_the_parent_has_no_address_the_shim_has_one_and_needs_no_proxy() -> None:
    given_ = [ipaddress.ip_interface("203.0.113.5/24"), ipaddress.ip_interface("2001:db8:1::5/64")]
    found = wanted(OWN, guests("203.0.113.9", "2001:db8:1::9"), given_)
    assert texts(found.routes.values()) == {"203.0.113.5", "2001:db8:1::5"}
    assert texts(found.own) == {"203.0.113.5", "2001:db8:1::5"}
    assert found.proxies == frozenset()


def test_an_address_of_the_shims_that_no_guest_needs_is_not_wanted() -> None:
    given_ = [ipaddress.ip_interface("203.0.113.5/24")]
    assert wanted(OWN, guests("192.0.2.11"), given_).own == frozenset()


def test_the_first_of_several_addresses_in_one_subnet_is_the_source() -> None:
    own = [ipaddress.ip_interface("192.0.2.2/24"), ipaddress.ip_interface("192.0.2.3/24")]
    assert str(source_for(ipaddress.ip_address("192.0.2.11"), own)) == "192.0.2.2"
    assert pairs(wanted(own, guests("192.0.2.11")).routes) == {("192.0.2.11", "192.0.2.2")}


def test_an_address_is_in_no_subnet_of_the_other_family() -> None:
    """Its first bytes may lie between the subnet's first and last all the same."""
    own = [ipaddress.ip_interface("32.0.0.1/4")]
    assert not wanted(own, guests("2001:db8::11"))


sets = st.builds(
    wanted,
    st.just(OWN),
    st.dictionaries(
        st.sampled_from([one.packed for own in OWN[:2] for one in [*own.network][2:9]]), st.sampled_from([b"a", b"b"])
    ),
)


@given(sets, sets)
def test_adding_what_lacks_and_removing_what_is_too_much_leads_from_one_to_the_other(
    want: ShimSet, have: ShimSet
) -> None:
    add, remove = want - have, have - want
    for lacks, too_much, before, after in zip(add, remove, have, want, strict=True):
        left = (
            {one: before[one] for one in before if one not in too_much}
            if isinstance(before, dict)
            else before - too_much
        )
        assert left | lacks == after
    assert not want - want


def test_an_empty_set_is_false_and_any_part_makes_it_true() -> None:
    address = ipaddress.ip_address("192.0.2.11").packed
    assert not ShimSet()
    assert ShimSet(routes={address: OWN[0].ip.packed})
    assert ShimSet(neighbours={address: b"123456"})
    assert ShimSet(own=frozenset({address}))
