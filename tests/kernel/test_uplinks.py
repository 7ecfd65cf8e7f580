"""Bonds and VLAN links as parents of macvtaps: frames go out and come back as from a guest's NIC."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.kernel.lan import HOST, PEER, Lan, Tap, frames

GUEST = "192.0.2.70"


def macvtap(lan: Lan, parent: str, mode: str, name: str = "tap0") -> Tap:
    lan.host.ip(f"link add link {parent} name {name} type macvtap mode {mode}", f"link set {name} up")
    return Tap(lan.host, name)


@pytest.fixture
def bond(lan: Lan) -> Lan:
    """The host's eth0 and a second cable, whose other end leads nowhere, in an active-backup bond: bond0."""
    lan.host.ip(
        "addr flush dev eth0",
        "link set eth0 down",
        "link add eth1 type veth peer name far1",
        "link add bond0 type bond mode active-backup miimon 100",
        "link set eth0 master bond0",
        "link set eth1 master bond0",
        "link set bond0 up",
        f"addr add {HOST}/24 dev bond0",
    )
    return lan


def test_a_bond_as_parent(bond: Lan) -> None:
    with macvtap(bond, "bond0", "bridge") as guest, frames(bond.peer) as seen:
        assert guest.asks(GUEST, PEER) == bond.peer.mac("eth0")
        assert {frame.source for frame in seen.now()} >= {guest.mac}


def test_a_bonds_port_is_no_parent(bond: Lan) -> None:
    said = bond.host.refusal("link add link eth0 name tap0 type macvtap mode bridge")
    assert "Device or resource busy" in said


def test_a_vlan_link_as_parent(lan: Lan) -> None:
    for space, address in ((lan.host, "198.51.100.2"), (lan.peer, "198.51.100.1")):
        space.ip("link add link eth0 name eth0.50 type vlan id 50", f"addr add {address}/24 dev eth0.50")
        space.ip("link set eth0.50 up")
    with macvtap(lan, "eth0.50", "bridge") as guest, frames(lan.peer) as seen:
        assert guest.asks("198.51.100.70", "198.51.100.1") == lan.peer.mac("eth0.50")
        assert {frame.vlan for frame in seen.now() if frame.source == guest.mac} == {50}


def test_passthrough_on_two_vlans_of_one_parent_at_once(lan: Lan) -> None:
    """Each VLAN link is a parent of its own; what macvtap passthrough takes whole is that link alone."""
    with ExitStack() as stack:
        guests = {}
        for number in (50, 51):
            for space in lan:
                space.ip(f"link add link eth0 name eth0.{number} type vlan id {number}", f"link set eth0.{number} up")
            lan.peer.ip(f"addr add 198.51.{number}.1/24 dev eth0.{number}")
            guests[number] = stack.enter_context(macvtap(lan, f"eth0.{number}", "passthru", f"tap{number}"))
        seen = stack.enter_context(frames(lan.peer))
        for number, guest in guests.items():
            assert guest.asks(f"198.51.{number}.70", f"198.51.{number}.1") == lan.peer.mac(f"eth0.{number}")
            assert {(frame.vlan, frame.source) for frame in seen.now()} == {(number, guest.mac)}
        assert lan.host.pings(PEER), "the parent itself is cut off"
