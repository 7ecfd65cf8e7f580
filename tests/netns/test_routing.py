"""Routes, neighbour entries and proxies of macvm's own: read as a set, changed as a batch."""

from __future__ import annotations

import ipaddress

import pytest

from provisioner.host import links, netlink, routing
from provisioner.host.netlink import Link
from provisioner.model.shim import ShimSet, wanted
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("lan")

MAC = "52:54:00:00:00:0b"


@pytest.fixture
def shim(lan: None) -> Link:
    made = links.add_macvlan("mv-eth0", netlink.get_link("eth0"), "02:00:00:00:00:0c", "macvm:shim:eth0")
    links.set_up(made)
    return netlink.get_link("mv-eth0")


def own() -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    return netlink.addresses(netlink.get_link("eth0").index)


def set_for(*addresses: str, mac: str = MAC) -> ShimSet:
    return wanted(own(), routing.packed([(address, mac) for address in addresses]))


def test_what_is_added_is_what_is_read_and_what_is_removed_is_gone(shim: Link) -> None:
    want = set_for("192.0.2.11", "192.0.2.12", "2001:db8::11")
    assert (len(want.routes), len(want.neighbours), len(want.proxies)) == (3, 3, 1)
    routing.change(shim, want, ShimSet())
    assert routing.read(shim) == want
    routing.change(shim, ShimSet(), want)
    assert routing.read(shim) == ShimSet()
    routing.change(shim, ShimSet(), want)


def test_ip_sees_the_same(shim: Link) -> None:
    routing.change(shim, set_for("192.0.2.11", "2001:db8::11"), ShimSet())
    (four,) = ip("route show 192.0.2.11")
    assert (four["dev"], four["protocol"], four["scope"], four["prefsrc"]) == ("mv-eth0", "109", "link", "192.0.2.2")
    (six,) = ip("-6 route show 2001:db8::11")
    assert (six["dev"], six["protocol"], six["prefsrc"]) == ("mv-eth0", "109", "2001:db8::2")
    (entry,) = ip("neigh show 192.0.2.11 dev mv-eth0")
    assert (entry["lladdr"], entry["state"]) == (MAC, ["PERMANENT"])


def test_adding_again_is_fine_and_another_mac_or_source_takes_the_place(shim: Link) -> None:
    before = set_for("192.0.2.11")
    routing.change(shim, before, ShimSet())
    routing.change(shim, before, ShimSet())
    ip("addr add 192.0.2.3/24 dev eth0")
    address, source = (ipaddress.ip_address(text).packed for text in ("192.0.2.11", "192.0.2.3"))
    after = ShimSet({address: source}, {address: bytes.fromhex("52540000000c")})
    routing.change(shim, after - before, before - after)
    assert routing.read(shim) == after


def test_a_route_moves_from_one_shim_to_another(shim: Link) -> None:
    routing.change(shim, set_for("192.0.2.11", "2001:db8::11"), ShimSet())
    other = links.add_macvlan("mv-two", netlink.get_link("eth0"), "02:00:00:00:00:0d", "macvm:shim:two")
    links.set_up(other)
    other = netlink.get_link("mv-two")
    routing.change(other, set_for("192.0.2.11", "2001:db8::11"), ShimSet())
    assert routing.read(other).routes == set_for("192.0.2.11", "2001:db8::11").routes
    assert not routing.read(shim).routes


def test_what_others_have_put_on_the_shim_is_not_seen_and_not_touched(shim: Link) -> None:
    ip("route add 192.0.2.99 dev mv-eth0")
    ip(f"neigh add 192.0.2.98 lladdr {MAC} dev mv-eth0 nud permanent")
    want = set_for("192.0.2.11")
    routing.change(shim, want, ShimSet())
    assert routing.read(shim) == want
    routing.change(shim, ShimSet(), routing.read(shim))
    assert ip("route show 192.0.2.99")
    assert ip("neigh show 192.0.2.98 dev mv-eth0")


def test_a_foreign_route_is_named_and_adding_beside_it_is_refused(shim: Link) -> None:
    ip("route add 192.0.2.11 dev far")
    found = routing.HostRoutes.read().foreign(routing.packed([("192.0.2.11", MAC), ("192.0.2.12", MAC)]))
    assert found == [(ipaddress.ip_address("192.0.2.11"), "far")]
    with pytest.raises(routing.RoutingFailed, match=r"add the route to 192\.0\.2\.11 through mv-eth0: EEXIST"):
        routing.change(shim, set_for("192.0.2.11"), ShimSet())


def test_an_address_of_the_shims_own_brings_no_route_and_answers_for_itself(shim: Link) -> None:
    given = [ipaddress.ip_interface("203.0.113.5/24"), ipaddress.ip_interface("2001:db8:1::5/64")]
    guests = routing.packed([(text, MAC) for text in ("203.0.113.9", "2001:db8:1::9")])
    want = wanted(own(), guests, given)
    routing.change(shim, want, ShimSet())
    assert routing.read(shim) == want
    assert {str(one) for one in netlink.addresses(shim.index)} == {"203.0.113.5/32", "2001:db8:1::5/128"}
    shown = [route["dst"] for route in ip("route show dev mv-eth0")]
    assert shown == ["203.0.113.9"], "a subnet's route would take the guests'"
    routing.change(shim, ShimSet(), want)
    assert routing.read(shim) == ShimSet()


def test_a_thousand_guests_and_one_that_is_refused(shim: Link) -> None:
    ip("addr add 198.18.0.1/16 dev eth0")
    guests = routing.packed([(f"198.18.{n // 250 + 1}.{n % 250 + 1}", MAC) for n in range(1000)])
    want = wanted(own(), guests)
    routing.change(shim, want, ShimSet())
    assert routing.read(shim) == want
    routing.change(shim, ShimSet(), want)
    ip("route add 198.18.3.7 dev far")
    with pytest.raises(routing.RoutingFailed, match=r"198\.18\.3\.7"):
        routing.change(shim, want, ShimSet())
