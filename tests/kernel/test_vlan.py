"""VLAN links as parents: what leaves by `eth0.50` is tagged, and stays in its VLAN."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.lan import BROADCAST, ETH_P_ARP, ETH_P_IP, Lan, Space, arp_sender, frames

#: The VLANs, each with the peer's address in it.
VLANS = {50: "198.51.100.1", 51: "203.0.113.1"}


@pytest.fixture
def trunk(lan: Lan) -> Lan:
    """Both ends with eth0.50 and eth0.51, up."""
    for number, address in VLANS.items():
        for space in lan:
            space.ip(f"link add link eth0 name eth0.{number} type vlan id {number}", f"link set eth0.{number} up")
        lan.peer.ip(f"addr add {address}/24 dev eth0.{number}")
    return lan


def endpoint(make_space: Callable[[], Space], host: Space, parent: str, address: str, mode: str = "bridge") -> Space:
    """A macvlan on one of the host's links, in a namespace of its own, where it is eth0."""
    space = make_space()
    host.ip(f"link add end0 link {parent} type macvlan mode {mode}", f"link set end0 netns {space.path} name eth0")
    space.ip(f"addr add {address} dev eth0", "link set eth0 up")
    return space


def test_a_macvlan_on_a_vlan_link_sends_tagged_frames(trunk: Lan, make_space: Callable[[], Space]) -> None:
    station = endpoint(make_space, trunk.host, "eth0.50", "198.51.100.50/24")
    mac = station.mac("eth0")
    with frames(trunk.peer) as seen:
        assert station.pings("198.51.100.1")
        sent = [frame for frame in seen.now() if frame.source == mac]
    assert {frame.vlan for frame in sent} == {50}
    assert {frame.kind for frame in sent} >= {ETH_P_ARP, ETH_P_IP}


def test_what_the_host_sends_by_the_parent_itself_has_no_tag(trunk: Lan) -> None:
    with frames(trunk.peer) as seen:
        assert trunk.host.pings("192.0.2.1")
        assert {frame.vlan for frame in seen.now()} == {None}


def test_two_vlans_are_isolated(trunk: Lan, make_space: Callable[[], Space]) -> None:
    """A station of one asks for the address that one of the other has, and is not heard there."""
    first = endpoint(make_space, trunk.host, "eth0.50", "198.51.100.50/24")
    second = endpoint(make_space, trunk.host, "eth0.51", "203.0.113.51/24")
    second.ip("addr add 198.51.100.51/24 dev eth0")
    with frames(trunk.peer) as cable, frames(second, "eth0") as there, frames(trunk.peer, "eth0.51") as beyond:
        first.run("ping -c 1 -W 1 198.51.100.51", status=1)
        asked = cable.wait(lambda frame: frame.source == first.mac("eth0"))
        assert (asked.vlan, asked.destination, arp_sender(asked)) == (50, BROADCAST, (1, "198.51.100.50"))
        # Once the other VLAN has carried a ping, whatever was to come before has come.
        assert second.pings("203.0.113.1")
        assert {frame.source for frame in there.now()} == {trunk.peer.mac("eth0.51")}
        assert {frame.source for frame in beyond.now()} == {second.mac("eth0")}
