"""VLAN links and ipvlans as macvm makes them, and what it leaves alone."""

from __future__ import annotations

import ipaddress
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.actions import shims, vlans
from provisioner.context import Context, Settings
from provisioner.errors import MacvmError, NotFound, Taken, Unable, Usage
from provisioner.host import links, netlink, netns
from provisioner.host.netlink import Link
from tests.kernel.lan import Lan, Space, frames, in_namespace
from tests.netns.conftest import ip

LONG = "enx0123456789ab"
MAC = "02:00:00:00:00:01"


@pytest.fixture
def here(lan: Lan, tmp_path: Path) -> Iterator[Context]:
    """This thread is the host of the LAN. Libvirt is never asked."""
    uri = "qemu+unix:///system?socket=/nonexistent"
    context = Context(Settings(uri, tmp_path, "", "", "auto", ""), readonly=True)
    with in_namespace(lan.host):
        yield context
    context.close()


def shown(name: str) -> Any:
    return ip("-d link show", name)[0]


def vlan_ids() -> dict[str, int]:
    return {one["ifname"]: one["linkinfo"]["info_data"]["id"] for one in ip("-d link show type vlan")}


def endpoint(parent: str, space: Space, address: str = "198.51.100.50/24", mac: str = MAC) -> Link:
    made = links.add_macvlan("end0", netlink.get_link(parent), mac, "macvm:test")
    moved = links.move(made, space.fd, "eth0")
    with in_namespace(space):
        links.add_address(ipaddress.ip_interface(address), moved)
        links.set_up(moved)
    return moved


def test_made_marked_and_up_and_what_leaves_by_it_is_tagged(
    here: Context, lan: Lan, make_space: Callable[[], Space]
) -> None:
    assert vlans.ensure(here, "eth0.50") is True
    there = shown("eth0.50")
    assert there["linkinfo"]["info_data"]["id"] == 50
    assert there["linkinfo"]["info_data"]["protocol"] == "802.1Q"
    assert there["link"] == "eth0"
    assert there["ifalias"] == "macvm:vlan:eth0.50"
    assert "UP" in there["flags"]
    assert ip("addr show dev eth0.50")[0]["addr_info"] == [], "the host takes no address on it, not even link-local"
    lan.peer.ip("link add link eth0 name v50 type vlan id 50", "link set v50 up", "addr add 198.51.100.1/24 dev v50")
    station = make_space()
    endpoint("eth0.50", station)
    with frames(lan.peer) as seen:
        assert station.pings("198.51.100.1")
        assert {frame.vlan for frame in seen.now() if frame.source == MAC} == {50}
    assert vlans.ensure(here, "eth0.50") is False, "any number of times"


def test_netlink_shows_vlans_as_ip_does(here: Context) -> None:
    ip("link add link eth0 name v7 type vlan id 7")
    ip("link add ipv0 link eth0 type ipvlan mode l3")
    found = {link.name: link for link in netlink.links()}
    base = found["eth0"]
    assert (found["v7"].kind, found["v7"].vlan, found["v7"].lower, found["v7"].mode) == ("vlan", 7, base.index, "")
    assert (found["ipv0"].kind, found["ipv0"].vlan, found["ipv0"].mode) == ("ipvlan", 0, "l3")
    assert found["ipv0"].lower == base.index
    assert links.find_vlan(base, 7) == found["v7"]
    assert links.find_vlan(base, 8) is None


def test_it_goes_with_an_idle_shim_on_it(here: Context) -> None:
    vlans.ensure(here, "eth0.50")
    ip("addr add 198.51.100.2/24 dev eth0.50")
    shim = shims.hold(here, netlink.get_link("eth0.50"))
    assert vlans.release(here, "eth0.50") is True
    assert {netlink.find_link("eth0.50"), netlink.find_link(shim.name)} == {None}
    assert netlink.get_link("eth0").up
    assert vlans.release(here, "eth0.50") is True, "gone already"


def test_a_link_of_that_name_is_used_and_left_whoever_made_it(here: Context) -> None:
    ip("link add link eth0 name eth0.50 type vlan id 50")
    before = shown("eth0.50")
    assert vlans.ensure(here, "eth0.50") is False
    assert vlans.making_lines("eth0.50") == []
    assert vlans.release(here, "eth0.50") is False
    assert shown("eth0.50") == before, "down, and without a mark"


def test_one_of_macvms_that_is_down_comes_up(here: Context) -> None:
    vlans.ensure(here, "eth0.50")
    ip("link set eth0.50 down")
    assert vlans.ensure(here, "eth0.50") is False
    assert netlink.get_link("eth0.50").up


def test_a_vlan_that_has_a_link_of_another_name(here: Context) -> None:
    ip("link add link eth0 name office type vlan id 50")
    for attempt in (vlans.ensure, lambda _, parent: vlans.making_lines(parent)):
        with pytest.raises(Taken, match="VLAN 50 of eth0 has a link already: office") as caught:
            attempt(here, "eth0.50")
        assert caught.value.hint == "use --parent office"
    with pytest.raises(Taken, match="has a link already: office"):
        links.add_vlan("eth0.50", netlink.get_link("eth0"), 50, "macvm:test")
    ip("link add eth0.51 type veth peer name other")
    with pytest.raises(Taken, match=r"eth0\.51 on eth0.*exists already"):
        links.add_vlan("eth0.51", netlink.get_link("eth0"), 51, "macvm:test")
    assert vlan_ids() == {"office": 50}
    assert vlans.release(here, "eth0.50") is True, "there is none of that name"
    assert vlan_ids() == {"office": 50}


@pytest.mark.parametrize("made", [True, False])
def test_no_vlan_in_a_vlan(here: Context, made: bool) -> None:
    if made:
        vlans.ensure(here, "eth0.50")
    with pytest.raises(Unable, match="QinQ") as caught:
        vlans.ensure(here, "eth0.50.60")
    assert set(vlan_ids()) == ({"eth0.50"} if made else set())
    if made:
        # What the hint says works.
        ip("link add link eth0.50 name q60 type vlan id 60")
        assert "ip link add link eth0.50 name q60 type vlan id 60" in caught.value.hint
        assert vlans.ensure(here, "q60") is False
        assert vlans.release(here, "eth0.50") is False, "something is on it"


def test_a_base_with_a_dot_that_is_no_vlan(here: Context) -> None:
    ip("link add wan.5 type veth peer name other")
    ip("link set wan.5 up")
    assert vlans.ensure(here, "wan.5") is False
    assert vlans.ensure(here, "wan.5.60") is True
    assert vlan_ids() == {"wan.5.60": 60}


@pytest.mark.parametrize(
    ("parent", "error", "said"),
    [
        ("eth0.0", Usage, "priority"),
        ("eth0.4095", Usage, "reserves"),
        ("eth9.50", NotFound, "no link 'eth9' on this host for VLAN 50"),
        ("eth9", NotFound, "no link 'eth9'"),
        ("down0.50", Unable, "down0 is down"),
        ("lo.50", Unable, "lo carries no VLANs"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(here: Context, parent: str, error: type[MacvmError], said: str) -> None:
    ip("link add down0 type veth peer name other")
    with pytest.raises(error, match=said) as caught:
        vlans.ensure(here, parent)
    assert caught.value.hint
    assert vlan_ids() == {}
    assert not netlink.get_link("down0").up


def test_a_long_name_is_hashed_and_found_again_by_the_hash(here: Context) -> None:
    ip("link set eth0 down")
    ip("link set eth0 name", LONG)
    ip("link set", LONG, "up")
    assert vlans.ensure(here, f"{LONG}.50") is True
    [name] = vlan_ids()
    assert name.startswith("vl-")
    assert shown(name)["ifalias"] == f"macvm:vlan:{LONG}.50"
    assert vlans.ensure(here, f"{LONG}.50") is False
    assert vlans.ensure(here, name) is False
    ip("link del", name)
    assert vlans.ensure(here, name) is True, "as after a reboot, by the name that a network keeps"
    assert vlan_ids() == {name: 50}
    assert shown(name)["link"] == LONG
    assert vlans.release(here, f"{LONG}.50") is True
    assert vlan_ids() == {}
    ip("link add", name, "type veth peer name other")
    with pytest.raises(Taken, match=f"there is a link {name}, and it is not VLAN 50 of {LONG}"):
        vlans.ensure(here, f"{LONG}.50")


def test_it_stays_while_something_is_on_it(here: Context, make_space: Callable[[], Space]) -> None:
    vlans.ensure(here, "eth0.50")
    ip("link add mine link eth0.50 type macvlan mode bridge")
    assert vlans.release(here, "eth0.50") is False
    ip("link del mine")
    ip("link add br0 type bridge")
    ip("link set eth0.50 master br0")
    assert vlans.release(here, "eth0.50") is False
    ip("link set eth0.50 nomaster")
    away = make_space()
    endpoint("eth0.50", away)  # the kernel would delete it in there, without a word
    assert vlans.release(here, "eth0.50") is False
    away.ip("link del eth0")
    assert vlans.release(here, "eth0.50") is True


def test_the_lines_of_a_dry_run_do_the_same(here: Context) -> None:
    lines = vlans.making_lines("eth0.50")
    assert netlink.find_link("eth0.50") is None
    for line in lines:
        subprocess.run(shlex.split(line), check=True, capture_output=True)
    by_hand = netlink.get_link("eth0.50")
    keys = [f"net/ipv6/conf/eth0.50/{key}" for key in ("addr_gen_mode", "autoconf", "accept_ra")]
    settings = [links.read_sysctl(key) for key in keys]
    assert settings == ["1", "0", "0"]
    assert vlans.release(here, "eth0.50") is True
    vlans.ensure(here, "eth0.50")
    assert netlink.get_link("eth0.50")._replace(index=0) == by_hand._replace(index=0)
    assert [links.read_sysctl(key) for key in keys] == settings


@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_an_ipvlan_has_its_parents_mac_and_reaches_the_lan(
    here: Context, lan: Lan, make_space: Callable[[], Space], mode: str
) -> None:
    parent, station = netlink.get_link("eth0"), make_space()
    made = links.add_ipvlan("end0", parent, mode, "macvm:test")
    assert (made.mac, made.mode, made.alias, made.up) == (parent.mac, mode, "macvm:test", False)
    moved = links.move(made, station.fd, "eth0")
    with in_namespace(station):
        links.add_address(ipaddress.ip_interface("192.0.2.50/24"), moved)
        links.set_up(moved)
        links.add_default_route(ipaddress.ip_address("192.0.2.1"), moved)
    lan.peer.ip("addr add 203.0.113.1/32 dev lo")
    if mode == "l3":  # it hears no broadcast, so nobody on the LAN can ask for it: its router must know the way
        lan.peer.ip("route add 192.0.2.50/32 via 192.0.2.2")
    with frames(lan.peer) as seen:
        assert station.pings("203.0.113.1")
        assert {frame.source for frame in seen.now()} == {parent.mac}
    assert netlink.macs_behind(parent.index) == set()


def test_another_ipvlan_does_not_change_the_mode_of_those_there(here: Context) -> None:
    parent = netlink.get_link("eth0")
    links.add_ipvlan("one", parent, "l2", "macvm:test")
    with pytest.raises(Taken, match="eth0 carries one in mode l2") as caught:
        links.add_ipvlan("two", parent, "l3", "macvm:test")
    assert "use l2" in caught.value.hint
    links.add_ipvlan("three", parent, "l2", "macvm:test")
    assert {link.name: link.mode for link in netlink.links() if link.kind == "ipvlan"} == {"one": "l2", "three": "l2"}
    # The reason for it: the kernel would.
    ip("link add two link eth0 type ipvlan mode l3")
    assert {link.mode for link in netlink.links() if link.kind == "ipvlan"} == {"l3"}


def test_macvlans_and_ipvlans_exclude_one_another(here: Context, make_space: Callable[[], Space]) -> None:
    parent, away = netlink.get_link("eth0"), make_space()
    made = links.add_macvlan("mv0", parent, MAC, "macvm:test")
    with pytest.raises(Taken, match=r"eth0 is in use by mv0 \(macvlan\)") as caught:
        links.add_ipvlan("ipv0", parent, "l2", "macvm:test")
    assert "never both" in caught.value.hint
    moved = links.move(made, away.fd, "eth0")
    with pytest.raises(Taken, match="links in another network namespace"):
        links.add_ipvlan("ipv0", parent, "l2", "macvm:test")
    netns.run_inside(away.fd, lambda: links.remove(moved))
    links.add_ipvlan("ipv0", parent, "l2", "macvm:test")
    with pytest.raises(Taken, match=r"eth0 is in use by ipv0 \(ipvlan\)"):
        links.add_macvlan("mv0", parent, MAC, "macvm:test")
