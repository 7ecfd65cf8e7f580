"""Networks as values: subnets, ranges, gateways and reserved addresses as the user writes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import MacvmError, Taken, Usage
from provisioner.model.mode import MacvtapMode
from provisioner.model.network import (
    Network,
    Range,
    Subnet,
    assemble_subnets,
    check_disjoint,
    check_reserved,
    overlap,
    parse_range,
    parse_reserved,
    parse_subnet,
)
from provisioner.model.nic import Address

ip, net = ipaddress.ip_address, ipaddress.ip_network
V4, V6, OTHER6 = net("192.0.2.0/24"), net("2001:db8::/64"), net("2001:db8:0:1::/64")


def refused(act: Callable[[], object], error: type[MacvmError] = Usage) -> str:
    """Message and hint of what `act` raises."""
    with pytest.raises(error) as caught:
        act()
    assert caught.value.hint
    return f"{caught.value.message} | {caught.value.hint}"


# what the user writes


@pytest.mark.parametrize(
    ("text", "subnet"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        (" 192.0.2.0/24 ", "192.0.2.0/24"),
        ("192.0.2.0/255.255.255.128", "192.0.2.0/25"),
        ("192.0.2.8/31", "192.0.2.8/31"),
        ("192.0.2.9/32", "192.0.2.9/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:DB8::/64", "2001:db8::/64"),
        ("2001:db8::/127", "2001:db8::/127"),
        ("fd00::/8", "fd00::/8"),
        ("2001:db8::1/128", "2001:db8::1/128"),
    ],
)
def test_a_subnet(text: str, subnet: str) -> None:
    assert parse_subnet(text) == net(subnet)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no subnet"),
        ("lan", "is no subnet | ADDRESS/LENGTH"),
        ("192.0.2.0/33", "is no subnet"),
        ("2001:db8::/129", "is no subnet"),
        ("192.0.2.0/-1", "is no subnet"),
        ("192.0.2.0/24/24", "is no subnet"),
        ("10/8", "is no subnet"),
        ("2001:db8::%eth0/64", "is no subnet for a guest"),
        ("2001:db8::%\n/64", "is no subnet"),
        ("192.0.2.11", "192.0.2.11 has no length | say it: 192.0.2.0/24"),
        ("2001:db8::11", "2001:db8::11 has no length | say it: 2001:db8::/64"),
        ("192.0.2.11/24", "192.0.2.11/24 is an address in a subnet, not a subnet | did you mean 192.0.2.0/24?"),
        ("2001:db8::1/64", "did you mean 2001:db8::/64?"),
        ("0.0.0.0/0", "no guest can live in 0.0.0.0/0"),
        ("0.0.0.0/8", "no guest can live in 0.0.0.0/8 |"),
        ("127.0.0.0/8", "no guest can live in 127.0.0.0/8"),
        ("126.0.0.0/7", "no guest can live in 126.0.0.0/7: 127.0.0.0/8"),
        ("169.254.7.0/24", "no guest can live in"),
        ("224.0.0.0/24", "no guest can live in"),
        ("128.0.0.0/1", "no guest can live in 128.0.0.0/1"),
        ("255.255.255.254/31", "no guest can live in 255.255.255.254/31: 255.255.255.255"),
        ("::/0", "no guest can live in"),
        ("::1/128", "no guest can live in"),
        ("fe80::/64", "no guest can live in"),
        ("fe00::/7", "no guest can live in"),
        ("ff02::/16", "no guest can live in"),
        ("::ffff:192.0.2.0/120", "no guest can live in"),
    ],
)
def test_what_is_no_subnet(text: str, said: str) -> None:
    told = refused(lambda: parse_subnet(text))
    assert said in told
    assert "\n" not in told


@given(st.ip_addresses(), st.integers(0, 128), st.integers(0, 1 << 128))
def test_a_subnet_has_only_addresses_that_a_guest_may_have(near: Address, length: int, number: int) -> None:
    subnet = net((near, length % (near.max_prefixlen + 1)), strict=False)
    try:
        assert parse_subnet(str(subnet)) == subnet
    except Usage:
        return
    for address in (subnet[0], subnet[-1], subnet[0] + number % subnet.num_addresses):
        unfit = address.is_multicast, address.is_loopback, address.is_link_local, address.is_unspecified
        assert not any(unfit), address


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.0.2.64/27", "192.0.2.64", "192.0.2.95"),
        ("192.0.2.64/32", "192.0.2.64", "192.0.2.64"),
        ("192.0.2.64-192.0.2.80", "192.0.2.64", "192.0.2.80"),
        (" 192.0.2.64 - 192.0.2.80 ", "192.0.2.64", "192.0.2.80"),
        ("192.0.2.64-192.0.2.64", "192.0.2.64", "192.0.2.64"),
        ("2001:db8::10-2001:db8::ff", "2001:db8::10", "2001:db8::ff"),
        ("2001:db8::100/120", "2001:db8::100", "2001:db8::1ff"),
    ],
)
def test_a_range(text: str, first: str, last: str) -> None:
    assert parse_range(text) == Range(ip(first), ip(last))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.0.2.80-192.0.2.64", "192.0.2.80-192.0.2.64 is no range: it ends before it begins"),
        ("192.0.2.80-2001:db8::1", "two families"),
        ("192.0.2.80", "'192.0.2.80' is no range | FIRST-LAST"),
        ("192.0.2.80-", "is no address"),
        ("-192.0.2.80", "is no address"),
        ("192.0.2.64-80", "'80' is no address"),
        ("192.0.2.64-192.0.2.70-192.0.2.80", "is no address"),
        ("192.0.2.70/27", "did you mean 192.0.2.64/27?"),
        ("2001:db8::1%a-2001:db8::2", "leave the % and what follows it out"),
        ("", "is no range"),
        ("a\nb", "is no range"),
    ],
)
def test_what_is_no_range(text: str, said: str) -> None:
    told = refused(lambda: parse_range(text))
    assert said in told
    assert "\n" not in told


ends = st.ip_addresses().flatmap(lambda a: st.tuples(st.just(a), st.ip_addresses(v=a.version)))
ranges = ends.map(lambda two: Range(*sorted(two, key=int)))


@given(ranges)
def test_a_range_is_read_as_it_is_written(range_: Range) -> None:
    text = str(range_)
    if "/" in text:
        block = net(text)
        assert (block[0], block[-1]) == range_
    else:
        assert parse_range(text) == range_


def test_what_is_in_a_range() -> None:
    range_ = parse_range("192.0.2.64/30")
    assert [last for last in range(60, 72) if ip(f"192.0.2.{last}") in range_] == [64, 65, 66, 67]
    assert ip(int(ip("192.0.2.64"))) in range_
    assert ipaddress.IPv6Address(int(ip("192.0.2.64"))) not in range_
    assert "192.0.2.64" not in range_


def test_a_reserved_address() -> None:
    assert parse_reserved(" printer = 192.0.2.9") == ("printer", ip("192.0.2.9"))
    assert "NAME=ADDRESS" in refused(lambda: parse_reserved("192.0.2.9"))
    for text in ("printer=", "=192.0.2.9", "a b=192.0.2.9", "printer=192.0.2.9/24"):
        refused(lambda text=text: parse_reserved(text))  # type: ignore[misc]


# what belongs to which subnet


def test_each_subnet_gets_the_gateway_and_the_range_that_lie_in_it() -> None:
    made = assemble_subnets(
        [V4, V6], [ip("2001:db8::1"), ip("192.0.2.1")], [parse_range("2001:db8::100/120"), parse_range("192.0.2.64/27")]
    )
    assert made == (
        Subnet(V4, ip("192.0.2.1"), parse_range("192.0.2.64/27")),
        Subnet(V6, ip("2001:db8::1"), parse_range("2001:db8::100/120")),
    )
    assert assemble_subnets([V4], [], []) == (Subnet(V4),)
    assert Subnet(V4).given_out == Range(ip("192.0.2.0"), ip("192.0.2.255"))


def test_a_link_local_gateway_serves_the_first_ipv6_subnet_without_one() -> None:
    router, other = ip("fe80::1"), ip("fe80::2")
    assert [one.gateway for one in assemble_subnets([V4, V6], [router], [])] == [None, router]
    assert [one.gateway for one in assemble_subnets([V6, OTHER6], [router, other], [])] == [router, other]
    for order in ([router, ip("2001:db8::1")], [ip("2001:db8::1"), router]):
        assert [one.gateway for one in assemble_subnets([V6, OTHER6], order, [])] == [ip("2001:db8::1"), router]
    assert "2001:db8::/64 has two gateways, fe80::1 and fe80::2" in refused(
        lambda: assemble_subnets([V6], [router, other], [])
    )


@pytest.mark.parametrize(
    ("subnets", "gateways", "ranges", "said"),
    [
        ("192.0.2.0/24 192.0.2.128/25", "", "", "the subnets 192.0.2.0/24 and 192.0.2.128/25 overlap"),
        ("192.0.2.0/24 192.0.2.0/24", "", "", "overlap"),
        ("192.0.2.0/24", "198.51.100.1", "", "gateway 198.51.100.1 lies in no subnet of the network (192.0.2.0/24)"),
        ("192.0.2.0/24", "2001:db8::1", "", "lies in no subnet"),
        ("192.0.2.0/24", "fe80::1", "", "gateway fe80::1 lies in no subnet"),
        ("2001:db8::/64", "169.254.0.1", "", "gateway 169.254.0.1 lies in no subnet"),
        ("", "192.0.2.1", "", "lies in no subnet of the network (none)"),
        ("192.0.2.0/24", "192.0.2.1 192.0.2.2", "", "192.0.2.0/24 has two gateways, 192.0.2.1 and 192.0.2.2"),
        ("192.0.2.0/24", "192.0.2.0", "", "192.0.2.0 is the network address of 192.0.2.0/24"),
        ("192.0.2.0/24", "192.0.2.255", "", "192.0.2.255 is the broadcast address"),
        ("192.0.2.0/24", "", "198.51.100.0/28", "range 198.51.100.0/28 lies in no subnet"),
        ("192.0.2.0/24", "", "192.0.2.250-192.0.3.4", "range 192.0.2.250-192.0.3.4 reaches beyond 192.0.2.0/24"),
        ("192.0.2.0/24", "", "192.0.1.250-192.0.2.4", "lies in no subnet"),
        ("192.0.2.0/24", "", "192.0.2.0/28 192.0.2.16/28", "two ranges, 192.0.2.0/28 and 192.0.2.16/28"),
        ("2001:db8::/64", "", "fe80::1-fe80::9", "range fe80::1-fe80::9 lies in no subnet"),
    ],
)
def test_what_fits_no_subnet(subnets: str, gateways: str, ranges: str, said: str) -> None:
    given_ = [parse_subnet(one) for one in subnets.split()]
    told = refused(lambda: assemble_subnets(given_, map(ip, gateways.split()), map(parse_range, ranges.split())))
    assert said in told


def test_all_of_a_31_may_be_a_gateway() -> None:
    for last in "01":
        assert assemble_subnets([net("192.0.2.0/31")], [ip(f"192.0.2.{last}")], [])[0].gateway


def test_reserved_addresses_lie_in_a_subnet_and_come_once() -> None:
    check_reserved([Subnet(V4)], [("a", ip("192.0.2.5")), ("b", ip("192.0.2.6"))])
    for reserved, said in (
        ([("a", ip("198.51.100.5"))], "a=198.51.100.5 lies in no subnet"),
        ([("a", ip("fe80::5"))], "a=fe80::5 lies in no subnet"),
        ([("a", ip("192.0.2.5")), ("a", ip("192.0.2.6"))], "the name a is given to 192.0.2.5 and 192.0.2.6"),
        ([("a", ip("192.0.2.5")), ("b", ip("192.0.2.5"))], "192.0.2.5 is reserved twice"),
    ):
        assert said in refused(lambda reserved=reserved: check_reserved([Subnet(V4), Subnet(V6)], reserved))  # type: ignore[misc]


def test_what_an_address_is_kept_for() -> None:
    network = Network("lan", "eth0", subnets=(Subnet(V4, ip("192.0.2.1")),), reserved=(("printer", ip("192.0.2.9")),))
    assert network.reserved_name(ip("192.0.2.1")) == "the gateway"
    assert network.reserved_name(ip("192.0.2.9")) == "printer"
    assert network.reserved_name(ip("192.0.2.2")) is None
    assert network.never_given() == {ip("192.0.2.1"), ip("192.0.2.9")}
    assert network.subnet_of(ip("192.0.2.77")) == network.subnets[0]
    assert network.subnet_of(ip("2001:db8::1")) is None


# two of them


@pytest.mark.parametrize(
    ("mine", "other", "both"),
    [
        ("192.0.2.0/28", "192.0.2.16/28", None),
        ("192.0.2.0/28", "192.0.2.15-192.0.2.20", "192.0.2.15/32"),
        ("192.0.2.0/24", "192.0.2.64/27", "192.0.2.64/27"),
        ("192.0.2.8-192.0.2.20", "192.0.2.11-192.0.2.40", "192.0.2.11-192.0.2.20"),
        ("192.0.2.0/24", "2001:db8::/64", None),
        ("2001:db8::/64", "2001:db8::ff00/120", "2001:db8::ff00/120"),
    ],
)
def test_what_two_ranges_share(mine: str, other: str, both: str | None) -> None:
    for one, two in ((mine, other), (other, mine)):
        found = overlap(parse_range(one), parse_range(two))
        assert (str(found) if found else None) == both


@given(ranges, ranges, st.data())
def test_an_address_is_shared_when_it_is_in_both(mine: Range, other: Range, data: st.DataObject) -> None:
    both = overlap(mine, other)
    address = data.draw(st.sampled_from([*mine, *other]))
    assert (both is not None and address in both) == (address in mine and address in other)


def on(parent: str, name: str, subnet: str, range_: str = "") -> Network:
    return Network(name, parent, subnets=(Subnet(parse_subnet(subnet), range=parse_range(range_) if range_ else None),))


def test_networks_on_one_parent_give_out_different_addresses() -> None:
    first = on("eth0", "first", "192.0.2.0/24", "192.0.2.0/27")
    check_disjoint(on("eth0", "second", "192.0.2.0/24", "192.0.2.32/27"), [first])
    check_disjoint(on("eth1", "second", "192.0.2.0/24"), [first])
    check_disjoint(on("eth0", "second", "198.51.100.0/24"), [first])
    told = refused(lambda: check_disjoint(on("eth0", "second", "192.0.2.0/25", "192.0.2.16/28"), [first]), Taken)
    assert "192.0.2.0/25 overlaps 192.0.2.0/24 of the network first, on eth0 too" in told
    assert "both would give out 192.0.2.16/28" in told


# the store's text

addresses = st.ip_addresses()
subnets_ = st.builds(
    lambda address, length, gateway, two: Subnet(
        net((address, length % (address.max_prefixlen + 1)), strict=False), gateway, two
    ),
    addresses,
    st.integers(0, 128),
    st.none() | addresses,
    st.none() | ranges,
)
networks = st.builds(
    Network,
    name=st.text(max_size=8),
    parent=st.text(max_size=8),
    mode=st.sampled_from(MacvtapMode),
    subnets=st.lists(subnets_, max_size=3).map(tuple),
    reserved=st.lists(st.tuples(st.text(max_size=4), addresses), max_size=3).map(tuple),
    dns=st.lists(addresses, max_size=3).map(tuple),
    mtu=st.none() | st.integers(68, 65535),
    shim=st.booleans(),
)


@given(networks)
def test_a_network_is_read_as_it_was_stored(network: Network) -> None:
    assert Network.from_json(network.to_json()) == network
