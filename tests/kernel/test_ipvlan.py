"""ipvlan endpoints: many stations behind one MAC, for Wi-Fi and for switches that limit MACs."""

from __future__ import annotations

from collections.abc import Callable

from tests.kernel.lan import PEER, Lan, Space, frames

ADDRESS = "192.0.2.60"


def endpoint(make_space: Callable[[], Space], host: Space, mode: str, address: str) -> Space:
    space = make_space()
    host.ip(f"link add end0 link eth0 type ipvlan mode {mode}", f"link set end0 netns {space.path} name eth0")
    space.ip(f"addr add {address} dev eth0", "link set eth0 up")
    return space


def test_an_l2_endpoint_has_the_parents_mac(lan: Lan, make_space: Callable[[], Space]) -> None:
    station = endpoint(make_space, lan.host, "l2", f"{ADDRESS}/24")
    assert station.mac("eth0") == lan.host.mac("eth0")
    with frames(lan.peer) as seen:
        assert station.pings(PEER)
        assert {frame.source for frame in seen.now()} == {lan.host.mac("eth0")}
    assert lan.peer.pings(ADDRESS)


def test_an_l3_endpoint_asks_nobody_for_a_mac(lan: Lan, make_space: Callable[[], Space]) -> None:
    """The parent's own neighbours and routes are used: the LAN needs a route to what is behind it."""
    station = endpoint(make_space, lan.host, "l3", "198.51.100.60/32")
    station.ip("route add default dev eth0")
    lan.peer.ip("route add 198.51.100.60 via 192.0.2.2")
    assert station.pings(PEER)
    assert station.run("ip neigh show dev eth0").stdout == ""


def test_a_parent_has_ipvlans_or_macvlans_and_not_both(lan: Lan) -> None:
    lan.host.ip("link add end0 link eth0 type ipvlan mode l2")
    said = lan.host.refusal("link add end1 link eth0 type macvlan mode bridge")
    assert "Device or resource busy" in said
    lan.host.ip("link del end0", "link add end1 link eth0 type macvlan mode bridge")
    said = lan.host.refusal("link add end0 link eth0 type ipvlan mode l2")
    assert "Device or resource busy" in said
