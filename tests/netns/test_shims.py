"""The host's own macvlan: made, kept, left alone and taken away."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

import pytest

from provisioner.actions import passthrough, shims
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import Taken, Unable
from provisioner.host import links, netlink, routing
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, shim_mac, shim_name
from provisioner.model.network import AnyNetwork, Network, Subnet
from provisioner.model.shim import ShimSet, wanted
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("lan")

MAC1, MAC2 = "52:54:00:00:00:0b", "52:54:00:00:00:0c"


def route(address: str, mac: str = MAC1, parent: str = "eth0") -> GuestRoute:
    return GuestRoute(ipaddress.ip_address(address), mac, parent)


def hold(context: Context, owner: str, address: str, mac: str, parent: str = "eth0") -> None:
    context.store.claim(owner, owner, [NicClaim(mac, (LeaseClaim(parent, address),))])


def ensure(context: Context, routes: Iterable[GuestRoute]) -> list[str]:
    """As a command does: the leases are claimed first."""
    wanted = list(routes)
    addresses = {(one.parent, str(one.address)) for one in wanted}
    for lease in context.store.leases():
        if (lease.parent, lease.address) in addresses:
            context.store.release_mac(lease.mac)
    for mac in dict.fromkeys(one.mac for one in wanted):
        held = tuple(LeaseClaim(one.parent, str(one.address)) for one in wanted if one.mac == mac)
        context.store.claim(mac, mac, [NicClaim(mac, held)])
    return shims.ensure(context, wanted)


def sysctl(key: str) -> str:
    return Path("/proc/sys/net", key).read_text().strip()


def everything() -> dict[str, list[str]]:
    """All that a shim is made of and could change, readable; without link-local entries, which come when they come."""
    shown = {"links": [f"{one.name} {one.mac} {one.mtu} {one.up} {one.alias}" for one in netlink.links()]}
    shown["addresses"] = [f"{one} on {link.name}" for link in netlink.links() for one in netlink.addresses(link.index)]
    shown["routes"] = [str(one) for one in netlink.routes() if not one.destination.is_link_local]
    shown["neighbours"] = [str(one) for one in netlink.neighbours() if one.state == 0x80]
    shown["proxies"] = [str(one) for one in netlink.neighbours(proxies=True)]
    shown["rules"] = [str(one) for one in ip("rule show")]
    return shown


def test_a_shim_is_what_it_has_to_be(context: Context) -> None:
    assert ensure(context, [route("192.0.2.11"), route("2001:db8::11")]) == []
    shim = netlink.get_link("mv-eth0")
    parent = netlink.get_link("eth0")
    assert (shim.kind, shim.mode, shim.up, shim.lower) == ("macvlan", "bridge", True, parent.index)
    assert (shim.mac, shim.alias) == (shim_mac(parent.mac), "macvm:shim:eth0")
    assert netlink.addresses(shim.index) == [], "it has no address of its own"
    assert sysctl("ipv4/conf/mv-eth0/arp_filter") == "1"
    assert sysctl("ipv6/conf/mv-eth0/accept_ra") == "0"
    assert sysctl("ipv6/conf/mv-eth0/proxy_ndp") == "1"
    assert sysctl("ipv6/conf/all/forwarding") == "0", "the host is no router for it"
    found = {
        (str(one.destination), str(one.source), one.protocol) for one in netlink.routes() if one.device == shim.index
    }
    assert {
        ("192.0.2.11/32", "192.0.2.2", links.PROTOCOL),
        ("2001:db8::11/128", "2001:db8::2", links.PROTOCOL),
    } <= found
    entries = {(str(one.address), one.mac, one.state) for one in netlink.neighbours() if one.device == shim.index}
    assert {("192.0.2.11", MAC1, 0x80), ("2001:db8::11", MAC1, 0x80)} <= entries
    assert [(str(one.address), one.device) for one in netlink.neighbours(proxies=True)] == [("2001:db8::2", shim.index)]
    for address, source in (("192.0.2.11", "192.0.2.2"), ("2001:db8::11", "2001:db8::2")):
        taken = ip("route get", address)[0]
        assert (taken["dev"], taken["prefsrc"]) == ("mv-eth0", source)


def test_a_second_time_changes_nothing(context: Context) -> None:
    guests = [route("192.0.2.11"), route("2001:db8::11"), route("192.0.2.12", MAC2)]
    ensure(context, guests)
    before = everything()
    assert shims.ensure(context, guests) == []
    assert everything() == before


def test_what_someone_took_away_comes_back(context: Context) -> None:
    guests = [route("192.0.2.11"), route("2001:db8::11")]
    ensure(context, guests)
    ip("link set mv-eth0 down")
    assert shims.ensure(context, guests) == []
    assert ip("route get 192.0.2.11")[0]["dev"] == "mv-eth0"
    assert ip("route get 2001:db8::11")[0]["dev"] == "mv-eth0"
    ip("neigh del 192.0.2.11 dev mv-eth0")
    shims.ensure(context, guests)
    assert ("192.0.2.11", MAC1) in {(str(one.address), one.mac) for one in netlink.neighbours()}


def test_a_guest_with_another_mac_gets_the_new_one(context: Context) -> None:
    ensure(context, [route("192.0.2.11", MAC1)])
    ensure(context, [route("192.0.2.11", MAC2)])
    assert [one.mac for one in netlink.neighbours() if str(one.address) == "192.0.2.11"] == [MAC2]


def test_the_source_follows_the_parents_address(context: Context) -> None:
    ensure(context, [route("192.0.2.11")])
    ip("addr del 192.0.2.2/24 dev eth0")
    ip("addr add 192.0.2.3/24 dev eth0")
    ensure(context, [route("192.0.2.11")])
    assert ip("route get 192.0.2.11")[0]["prefsrc"] == "192.0.2.3"
    assert len([one for one in netlink.routes() if str(one.destination) == "192.0.2.11/32"]) == 1


@pytest.mark.parametrize("address", ["192.0.2.11", "2001:db8::11"])
def test_a_route_of_someone_else_is_taken_and_stays(context: Context, address: str) -> None:
    ip("link add other type bridge")
    ip("link set other up")
    ip("route add", address, "dev other")
    with pytest.raises(Taken, match=f"route to {address} through other already") as refused:
        ensure(context, [route(address)])
    assert "ip route del" in refused.value.hint
    there = [one for one in netlink.routes() if str(one.destination.network_address) == address]
    assert [one.protocol == links.PROTOCOL for one in there] == [False]


def test_a_link_of_someone_else_with_the_shims_name_is_taken_and_stays(context: Context) -> None:
    ip("link add mv-eth0 type bridge")
    with pytest.raises(Taken, match="not macvm's shim") as refused:
        ensure(context, [route("192.0.2.11")])
    assert "ip link del mv-eth0" in refused.value.hint
    assert netlink.get_link("mv-eth0").kind == "bridge"
    with pytest.raises(Unable, match="is not macvm's"):
        links.remove(netlink.get_link("mv-eth0"))
    assert netlink.find_link("mv-eth0")


def test_a_parent_without_an_address_there_is_a_note_and_makes_nothing(context: Context) -> None:
    notes = ensure(context, [route("198.51.100.7"), route("2001:db8:1::7")])
    assert [note.split(":")[0] for note in notes] == ["no route to 198.51.100.7", "no route to 2001"]
    assert shims.find_shim(netlink.get_link("eth0")) is None


@pytest.mark.parametrize("order", [("web1", "web2"), ("web2", "web1")])
def test_the_shim_goes_with_the_last_lease(context: Context, order: tuple[str, str]) -> None:
    before = everything()
    guests = {"web1": route("192.0.2.11", MAC1), "web2": route("2001:db8::12", MAC2)}
    for name, guest in guests.items():
        hold(context, name, str(guest.address), guest.mac)
    shims.ensure(context, guests.values())
    first, last = order
    context.store.release(first)
    shims.release(context, [guests[first]])
    assert netlink.find_link("mv-eth0"), "another guest is still behind it"
    there = {one.destination.network_address for one in netlink.routes()}
    assert (guests[last].address in there, guests[first].address in there) == (True, False)
    assert guests[first].address not in {one.address for one in netlink.neighbours() if one.state == 0x80}
    context.store.release(last)
    shims.release(context, [guests[last]])
    assert netlink.find_link("mv-eth0") is None
    shims.release(context, [guests[last]])
    assert everything() == before


def test_a_lease_that_is_still_held_keeps_its_route(context: Context) -> None:
    hold(context, "web1", "192.0.2.11", MAC1)
    shims.ensure(context, [route("192.0.2.11")])
    shims.release(context, [route("192.0.2.11")])
    assert ip("route get 192.0.2.11")[0]["dev"] == "mv-eth0"


def test_releasing_where_the_parent_is_gone_is_fine(context: Context) -> None:
    hold(context, "web1", "192.0.2.11", MAC1)
    shims.ensure(context, [route("192.0.2.11")])
    ip("link del eth0")
    context.store.release("web1")
    shims.release(context, [route("192.0.2.11")])


def test_a_parent_with_a_long_name_gets_a_hashed_shim(context: Context) -> None:
    ip("link set eth0 down")
    ip("link set eth0 name enp216s0f3np3")
    ip("link set enp216s0f3np3 up")
    ensure(context, [route("192.0.2.11", parent="enp216s0f3np3")])
    shim = netlink.get_link(shim_name("enp216s0f3np3"))
    assert shim.alias == "macvm:shim:enp216s0f3np3"
    assert len(shim.name) <= 15


def test_a_shim_is_found_after_its_parent_was_renamed(context: Context) -> None:
    ensure(context, [route("192.0.2.11")])
    ip("link set eth0 down")
    ip("link set eth0 name lan0")
    ip("link set lan0 up")
    context.store.release_mac(MAC1)
    assert ensure(context, [route("192.0.2.11", parent="lan0")]) == []
    assert [link.name for link in netlink.links() if link.kind == "macvlan"] == ["mv-eth0"]


def test_an_idle_shim_gives_way_to_passthrough_and_a_used_one_does_not(context: Context) -> None:
    hold(context, "web1", "192.0.2.11", MAC1)
    shims.ensure(context, [route("192.0.2.11")])
    with pytest.raises(Taken, match="through which the host reaches web1"):
        passthrough.take(context, "other", "eth0", MacvtapMode.PASSTHROUGH)
    context.store.release("web1")
    passthrough.take(context, "other", "eth0", MacvtapMode.PRIVATE)
    assert netlink.find_link("mv-eth0")
    passthrough.take(context, "other", "eth0", MacvtapMode.PASSTHROUGH)
    assert netlink.find_link("mv-eth0") is None
    ip("link add mt0 link eth0 type macvtap mode passthru")
    passthrough.take(context, "other", "nosuch", MacvtapMode.PASSTHROUGH)


def test_a_passthrough_parent_answers_for_itself_alone_until_it_is_given_back(context: Context) -> None:
    key = "net/ipv4/conf/eth0/arp_ignore"
    for mode in (MacvtapMode.BRIDGE, None):
        passthrough.take(context, "web1", "eth0", mode)
        assert links.read_sysctl(key) == "0"
    for _ in range(2):
        passthrough.take(context, "web1", "eth0", MacvtapMode.PASSTHROUGH)
        assert links.read_sysctl(key) == "1"
    # As libvirt leaves it when the guest goes.
    ip("link set eth0 down")
    passthrough.give_back(context, "another")
    passthrough.give_back(context, "web1", "eth1")
    assert links.read_sysctl(key) == "1"
    assert not netlink.get_link("eth0").up
    passthrough.give_back(context, "web1")
    assert links.read_sysctl(key) == "0"
    assert netlink.get_link("eth0").up
    links.sysctl(key, "2")
    passthrough.take(context, "web1", "eth0", MacvtapMode.PASSTHROUGH)
    passthrough.give_back(context, "web1")
    assert links.read_sysctl(key) == "2", "what somebody has set is left"


def test_a_mac_that_is_on_the_parent_already_is_taken() -> None:
    parent = netlink.get_link("eth0")
    links.set_up(links.add_macvlan("one", parent, MAC1, "macvm:test"))

    def another() -> None:
        links.set_up(links.add_macvlan("two", parent, MAC1, "macvm:test"))

    with pytest.raises(Taken, match="another link on the parent has this MAC"):
        another()


def test_a_guests_macvtap_is_prepared() -> None:
    mac = Mac.parse(MAC1)
    ip("link add", mac.device, "link eth0 address", mac, "type macvtap mode bridge")
    links.prepare_nic(mac.device, 1400)
    ip("link set", mac.device, "up")
    entry = ip("-d link show", mac.device)[0]
    assert "ALLMULTI" in entry["flags"]
    assert entry["mtu"] == 1400
    assert ip("-6 addr show dev", mac.device) in ([], [{}]), "the host has no address on it"


def test_removing_what_is_gone_is_fine() -> None:
    made = links.add_macvlan("gone", netlink.get_link("eth0"), MAC1, "macvm:test")
    ip("link del gone")
    links.remove(made)
    gone = wanted([ipaddress.ip_interface("192.0.2.2/24")], routing.packed([("192.0.2.11", MAC1)]))
    routing.change(netlink.get_link("eth0"), ShimSet(), gone)


# --- parents without an address there --------------------------------------------------------------------------------

FAR4, FAR6 = ipaddress.ip_network("198.51.100.0/29"), ipaddress.ip_network("2001:db8:1::/64")


def network(context: Context, name: str = "far", subnets: tuple[AnyNetwork, ...] = (FAR4, FAR6)) -> None:
    context.store.networks.add(Network(name, "eth0", subnets=tuple(Subnet(one) for one in subnets)))


def on_network(context: Context, owner: str, mac: str, *addresses: str, network: str = "far") -> list[GuestRoute]:
    claims = tuple(LeaseClaim("eth0", address) for address in addresses)
    context.store.claim(owner, owner, [NicClaim(mac, claims, network=network)])
    return [route(address, mac) for address in addresses]


def of_shim(context: Context) -> dict[str, str]:
    """Address to network."""
    return {lease.address: lease.network for lease in context.store.leases(owner="shim/eth0")}


def test_a_shim_speaks_from_an_address_of_its_own_where_the_parent_has_none(context: Context) -> None:
    network(context)
    guests = on_network(context, "web1", MAC1, "198.51.100.1", "2001:db8:1::11")
    assert shims.ensure(context, guests) == []
    given = of_shim(context)
    assert given == {"198.51.100.2": "far", "2001:db8:1::1": "far"}
    shim = netlink.get_link("mv-eth0")
    assert {str(one) for one in netlink.addresses(shim.index)} == {"198.51.100.2/32", "2001:db8:1::1/128"}
    for guest, source in (("198.51.100.1", "198.51.100.2"), ("2001:db8:1::11", "2001:db8:1::1")):
        taken = ip("route get", guest)[0]
        assert (taken["dev"], taken["prefsrc"]) == ("mv-eth0", source)
    before = everything()
    assert shims.ensure(context, guests) == []
    assert everything() == before
    assert of_shim(context) == given
    assert "shim/eth0" not in context.store.machines()


def test_it_goes_with_the_last_guest_that_needs_it(context: Context) -> None:
    before = everything()
    network(context)
    network(context, "near", (ipaddress.ip_network("203.0.113.0/24"),))
    first = on_network(context, "web1", MAC1, "198.51.100.1")
    second = on_network(context, "web2", MAC2, "203.0.113.9", network="near")
    shims.ensure(context, [*first, *second])
    assert of_shim(context) == {"198.51.100.2": "far", "203.0.113.1": "near"}
    context.store.release("web1")
    shims.release(context, first)
    assert of_shim(context) == {"203.0.113.1": "near"}
    context.store.networks.remove("far")
    context.store.release("web2")
    shims.release(context, second)
    assert of_shim(context) == {}
    assert everything() == before


def test_it_goes_once_the_parent_has_an_address_or_is_gone(context: Context) -> None:
    network(context)
    guests = on_network(context, "web1", MAC1, "198.51.100.1", "2001:db8:1::11")
    shims.ensure(context, guests)
    ip("addr add 198.51.100.6/29 dev eth0")
    shims.ensure(context, guests)
    assert of_shim(context) == {"2001:db8:1::1": "far"}
    assert ip("route get 198.51.100.1")[0]["prefsrc"] == "198.51.100.6"
    ip("link del eth0")
    context.store.release("web1")
    shims.release(context, guests)
    assert of_shim(context) == {}


def test_a_pool_without_room_for_it_is_a_note(context: Context) -> None:
    network(context, subnets=(ipaddress.ip_network("198.51.100.0/32"),))
    (note,) = shims.ensure(context, on_network(context, "web1", MAC1, "198.51.100.0"))
    assert note.startswith("no route to 198.51.100.0: eth0 has no address in its subnet")
    assert of_shim(context) == {}
