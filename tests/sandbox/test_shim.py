"""`macvm shim`: guests that libvirt does not know, served and forgotten; status, down, and up again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sandbox.kvm_host import KvmHost, complaints
from tests.sandbox.test_json import valid
from tests.sandbox.test_watch_events import say

BOX = """
ip netns add box
ip link add cc link eth0 type macvlan mode bridge
ip link set cc netns box name eth0
ip netns exec box sh -c 'ip link set lo up; ip addr add 192.0.2.40/24 dev eth0
  ip addr add 2001:db8::40/64 dev eth0 nodad; ip link set eth0 up'
"""


@pytest.fixture
def container(host: KvmHost) -> Iterator[KvmHost]:
    """A container's macvlan, made by hand; afterwards the host is as it was."""
    with host.unchanged():
        host.sh(BOX)
        yield host
        host.sh("ip netns del box")
        for words in ("forget 192.0.2.40", "forget 2001:db8::40", "down"):
            host.sh(f"macvm shim {words} || true")


def status(host: KvmHost) -> Any:
    return host.json("shim", "status", "eth0")[0]


def status_up(host: KvmHost) -> Any:
    return host.json("shim", "up", "eth0")[0]


def test_a_containers_macvlan_and_the_host_reach_one_another(container: KvmHost) -> None:
    assert "100% packet loss" in container.sh("ping -c1 -W1 192.0.2.40 || true")
    said = container.macvm("shim", "up", "eth0", "--to", "192.0.2.40", "--to", "2001:db8::40")
    assert "macvm shim up brings them back" in said.stderr
    for address in ("192.0.2.40", "2001:db8::40"):
        assert " 0% packet loss" in container.sh(f"ping -c2 -W2 {address}")
    for address in ("192.0.2.2", "2001:db8::2"):
        assert " 0% packet loss" in container.sh(f"ip netns exec box ping -c2 -W2 {address}")
    mac = container.sh("ip netns exec box cat /sys/class/net/eth0/address").strip()
    guests = status(container)["guests"]
    wanted = {"mac": mac, "owner": None, "source": "told", "route": True, "reason": ""}
    assert guests == [{"address": address, **wanted} for address in ("192.0.2.40", "2001:db8::40")]


def test_a_block_serves_those_in_it_that_answer_behind_the_parent(container: KvmHost) -> None:
    container.macvm("shim", "up", "--to", "192.0.2.0/24")
    assert [one["address"] for one in status(container)["guests"]] == ["192.0.2.40"], "not the LAN peer, nor the host"
    assert "192.0.2.0/24 dev mv" not in container.sh("ip route"), "one route for each, never the block's"
    assert "answers in 192.0.2.48/28" in container.macvm("shim", "up", "--to", "192.0.2.48/28").stderr


def test_forgotten_is_no_longer_served_and_down_is_kept_for_the_next_up(container: KvmHost) -> None:
    container.macvm("shim", "up", "eth0", "--to", "192.0.2.40", "--to", "2001:db8::40")
    container.macvm("shim", "forget", "2001:db8::40")
    assert [one["address"] for one in status(container)["guests"]] == ["192.0.2.40"]
    assert "2001:db8::40" not in container.sh("ip -6 route")
    container.macvm("shim", "down")
    assert "mv-eth0" not in container.sh("ip link; ip route")
    container.macvm("shim", "up")
    assert " 0% packet loss" in container.sh("ping -c1 -W2 192.0.2.40")


def test_up_again_changes_nothing_and_heals_what_was_taken_away(container: KvmHost) -> None:
    container.macvm("shim", "up", "eth0", "--to", "192.0.2.40")
    before = container.sh("ip -d link show mv-eth0; ip route; ip neigh show nud permanent")
    container.macvm("shim", "up")
    assert container.sh("ip -d link show mv-eth0; ip route; ip neigh show nud permanent") == before
    # The kernel removes every route that is pinned to an address with it, and brings none back.
    container.sh("ip addr del 192.0.2.2/24 dev eth0; ip addr add 192.0.2.2/24 brd + dev eth0")
    container.sh("ip route replace default via 192.0.2.1")
    assert "192.0.2.40" not in container.sh("ip route")
    assert [(one["route"], one["reason"]) for one in status(container)["guests"]] == [(False, "missing: macvm shim up")]
    container.macvm("shim", "up")
    assert " 0% packet loss" in container.sh("ping -c1 -W2 192.0.2.40")


@pytest.mark.parametrize(
    ("to", "code", "said"),
    [
        ("192.0.2.41", 3, "192.0.2.41 does not answer on eth0"),
        ("192.0.2.41/32", 3, "192.0.2.41 does not answer on eth0"),
        ("192.0.2.1,02:00:00:00:00:41", 4, "192.0.2.1 is that of a router of this host's"),
        ("192.0.2.255,02:00:00:00:00:41", 2, "192.0.2.255 is the broadcast address"),
        ("224.0.0.1,02:00:00:00:00:41", 2, "224.0.0.1 is no address that a guest may have"),
        ("fe80::41,02:00:00:00:00:41", 2, "fe80::41 is link-local"),
        ("192.0.2.1", 2, "which is no macvlan on eth0: the host reaches it over the LAN"),
        ("192.0.2.2", 4, "192.0.2.2 is this host's own address"),
        ("192.0.0.0/16", 2, "192.0.0.0/16 is too large"),
        ("192.0.2.0/24,52:54:00:12:34:56", 2, "many addresses have no one MAC"),
        ("nonsense", 2, "no address"),
    ],
)
def test_what_cannot_be_served_is_said_and_leaves_nothing(host: KvmHost, to: str, code: int, said: str) -> None:
    with host.unchanged():
        ((error, hint),) = complaints(host.macvm("shim", "up", "eth0", "--to", to, status=code).stderr)
    assert said in error
    assert hint


def test_whom_the_shim_does_not_serve_is_listed_with_the_reason(host: KvmHost) -> None:
    with host.unchanged():
        host.macvm("endpoint", "create", "alone", "--parent", "eth0", "--mode", "private", "--ip", "192.0.2.51/24")
        host.macvm("endpoint", "create", "seen", "--parent", "eth0", "--ip", "192.0.2.50/24")
        found = status(host)
        assert [(one["owner"], one["mode"]) for one in found["unreached"]] == [("alone", "private")]
        assert "private NIC" in found["unreached"][0]["reason"]
        assert [(one["owner"], one["source"], one["route"]) for one in found["guests"]] == [("seen", "lease", True)]
        host.macvm("endpoint", "delete", "alone", "seen")


def test_after_a_reboot_one_command_brings_all_back(container: KvmHost) -> None:
    container.macvm("endpoint", "create", "seen", "--parent", "eth0", "--ip", "192.0.2.50/24")
    container.macvm("shim", "up", "eth0", "--to", "192.0.2.40")
    before = sorted(container.sh("ip route; ip neigh show nud permanent").splitlines())
    container.sh("ip link del mv-eth0")
    assert "mv-eth0" not in container.sh("ip route; ip neigh")
    assert [one["parent"] for one in container.json("shim", "up")] == ["eth0"]
    assert sorted(container.sh("ip route; ip neigh show nud permanent").splitlines()) == before
    assert " 0% packet loss" in container.sh("ping -c1 -W2 192.0.2.40")
    assert " 0% packet loss" in container.sh("ping -c1 -W2 192.0.2.50")
    container.macvm("endpoint", "delete", "seen")


def test_a_guest_with_dhcp_is_asked_reached_and_forgotten_when_it_stops(host: KvmHost) -> None:
    with host.unchanged():
        host.create("asker", "--image", "tiny", "--ip", "dhcp")
        host.create("hidden", "--no-start", "--mode", "private")
        # A guest that answers with its link-local address alone has no other yet, and is asked again.
        deadline = time.monotonic() + 60
        while not host.show("asker")["nics"][0]["addresses"]:
            assert time.monotonic() < deadline, "the guest never had a link-local address"
            reasons = {one["owner"]: one["reason"] for one in status_up(host)["unreached"]}
            assert "no address of it is known" in reasons["asker"]
        assert (
            "no address of it is known" in {one["owner"]: one["reason"] for one in status(host)["unreached"]}["asker"]
        )
        host.nodes.dhcp(True)
        while not (found := status_up(host)["guests"]):
            assert time.monotonic() < deadline, "the guest never had an address"
            time.sleep(1)
        ((address, owner, source, route),) = [(g["address"], g["owner"], g["source"], g["route"]) for g in found]
        assert (owner, source, route) == ("asker", "wire", True)
        assert " 0% packet loss" in host.sh(f"ping -c2 -W2 {address}")
        assert address in {one["address"] for one in host.show("asker")["nics"][0]["addresses"]}
        assert host.macvm("ip", "asker").stdout == f"{address}\n"
        # One that it had before, when nobody listened any more as it was given this one.
        host.sh(f"sqlite3 /var/lib/macvm/macvm.db \"INSERT INTO heard SELECT mac, '192.0.2.199', parent, since, seen "
                f"FROM heard WHERE address = '{address}'\"")  # fmt: skip
        assert [one["address"] for one in status_up(host)["guests"]] == [address]
        host.macvm("stop", "--force", "asker")
        reasons = {one["owner"]: one["reason"] for one in status_up(host)["unreached"]}
        assert reasons == {"asker": "asker is off", "hidden": "hidden is off"}
        assert address not in host.sh("ip route; ip neigh")
        host.macvm("delete", "--yes", "asker", "hidden")
        host.macvm("shim", "down")
    host.nodes.dhcp(False)


def test_json_is_as_the_schemas_say(container: KvmHost) -> None:
    valid(container.json("shim", "up", "eth0", "--to", "192.0.2.40"), "shim-up.json")
    assert valid(container.json("shim", "status"), "shim-status.json")
    valid(container.json("shim", "forget", "192.0.2.40"), "shim-forget.json")
    assert container.macvm("shim", "status", "-o", "name").stdout == "mv-eth0\n"
    valid(container.json("shim", "down"), "shim-down.json")
    assert container.macvm("shim", "status", "-o", "json").stdout == "[]\n"


def test_dry_runs_change_nothing_and_say_the_lines(container: KvmHost) -> None:
    mac = container.sh("ip netns exec box cat /sys/class/net/eth0/address").strip()
    with container.unchanged():
        lines = container.macvm("shim", "up", "eth0", "--to", f"192.0.2.40,{mac}", "--dry-run").stdout
    container.sh(lines)
    assert " 0% packet loss" in container.sh("ping -c1 -W2 192.0.2.40")
    container.macvm("shim", "up", "eth0", "--to", f"192.0.2.40,{mac}")
    with container.unchanged():
        assert container.macvm("shim", "down", "--dry-run").stdout == "ip link del mv-eth0\n"
        assert "ip route del 192.0.2.40" in container.macvm("shim", "forget", "192.0.2.40", "--dry-run").stdout


def own(host: KvmHost) -> list[tuple[str, str]]:
    """Addresses of the network `far` that shims hold, with their MACs."""
    leases = host.json("network", "show", "far")["leases"]
    return [(one["address"], one["mac"]) for one in leases if one["owner"] == "shim eth0"]


def test_a_parent_without_an_address_there_speaks_from_its_shims(host: KvmHost) -> None:
    host.sh("ip addr add 198.51.100.2/24 dev eth0", node=host.lan)
    try:
        with host.unchanged():
            subnets = ["--subnet", "198.51.100.0/24", "--subnet", "2001:db8:1::/64"]
            host.macvm("network", "create", "far", "--parent", "eth0", *subnets)
            words = ["create", "guest", "--network", "far", "--ip", "198.51.100.1", "--ip", "2001:db8:1::11"]
            assert (
                "gives mv-eth0 an address of the network's pool" in host.macvm("endpoint", *words, "--dry-run").stdout
            )
            assert "no route" not in host.macvm("endpoint", *words).stderr
            assert host.json("network", "show", "far")["subnets"][0]["free"] == 254 - 2
            (v4, mac), (v6, _) = sorted(own(host), key=lambda one: ":" in one[0])
            assert (v4, mac) == ("198.51.100.3", status(host)["mac"]), "a LAN peer has 198.51.100.2"
            for address in ("198.51.100.1", "2001:db8:1::11"):
                assert " 0% packet loss" in host.sh(f"ping -c2 -W2 {address}")
            for address in (v4, v6):
                assert " 0% packet loss" in host.sh(f"macvm endpoint exec guest -- ping -c2 -W2 {address}")
            assert [one["reason"] for one in status(host)["guests"]] == ["", ""]
            host.macvm("gc")
            assert len(own(host)) == 2
            host.macvm("endpoint", "delete", "guest")
            assert own(host) == []
            host.macvm("network", "delete", "--yes", "far")
    finally:
        host.sh("ip addr del 198.51.100.2/24 dev eth0", node=host.lan)


def test_a_parent_without_any_address(host: KvmHost) -> None:
    host.sh("ip link add lan1 type veth peer name lan1p; ip link set lan1 up; ip link set lan1p up")
    try:
        host.macvm("network", "create", "far", "--parent", "lan1", "--subnet", "198.51.100.0/24")
        host.macvm("endpoint", "create", "guest", "--network", "far", "--ip", "198.51.100.9")
        assert " 0% packet loss" in host.sh("ping -c2 -W2 198.51.100.9")
        host.sh("macvm shim down lan1 && macvm shim up lan1")
        assert " 0% packet loss" in host.sh("ping -c2 -W2 198.51.100.9")
        host.macvm("shim", "down", "lan1")
        host.macvm("endpoint", "delete", "guest")
        host.macvm("network", "delete", "--yes", "far")
    finally:
        host.sh("ip link del lan1")


def test_a_vepa_guest_is_reached_as_far_as_the_switch_sends_back(host: KvmHost) -> None:
    try:
        with host.unchanged():
            host.macvm("endpoint", "create", "mirror", "--mode", "vepa", "--ip", "192.0.2.51/24")
            found = status(host)
            assert found["guests"] == []
            assert [(one["owner"], one["mode"]) for one in found["unreached"]] == [("mirror", "vepa")]
            assert "turn hairpin on" in found["unreached"][0]["reason"]
            assert "192.0.2.51" not in host.sh("ip route; ip neigh show nud permanent")
            host.sh("macvm sandbox hairpin on")
            (guest,) = status_up(host)["guests"]
            assert (guest["address"], guest["owner"], guest["route"]) == ("192.0.2.51", "mirror", True)
            assert status(host)["unreached"] == []
            assert " 0% packet loss" in host.sh("ping -c2 -W2 192.0.2.51")
            host.sh("macvm sandbox hairpin off")
            assert status_up(host)["guests"] == []
            assert "192.0.2.51" not in host.sh("ip route; ip neigh show nud permanent")
            host.macvm("endpoint", "delete", "mirror")
            host.macvm("shim", "down")
    finally:
        host.nodes.hairpin(False)


@pytest.fixture
def speaker(host: KvmHost) -> Iterator[KvmHost]:
    """With a guest whose frames the test sends, and a second NIC to take for it alone."""
    with host.unchanged():
        host.sh("ip link add port1 type veth peer name far1; ip link set far1 up; ip link set port1 up")
        yield host
        host.macvm("delete", "--yes", "speaker")
        host.sh("macvm shim down || true; ip link del port1")


def make_speaker(host: KvmHost, *words: str) -> tuple[str, str]:
    """MAC and device."""
    host.macvm("create", "speaker", "--memory", "128", *words)
    nic = host.show("speaker")["nics"][0]
    return nic["mac"], nic["device"]


def hear(host: KvmHost, mac: str, address: str) -> None:
    """Until macvm knows it; by then its route is there, where one is to be."""
    with host.node.start(["bash", "-c", f"while {say(host, mac, address)}; do sleep 0.1; done"]) as speaks:
        assert host.macvm("ip", "speaker", "--wait").stdout == f"{address}\n"
        speaks.signal(9)


def test_a_guest_that_is_heard_in_mode_private_gets_no_route(speaker: KvmHost) -> None:
    mac, device = make_speaker(speaker, "--ip", "none", "--mode", "private")
    routed = "192.0.2.45 dev mv-eth0 proto 109"
    hear(speaker, mac, "192.0.2.45")
    assert routed not in speaker.sh("ip route")
    for found in (status_up(speaker), status(speaker)):
        assert found["guests"] == []
        assert [(one["owner"], one["mode"]) for one in found["unreached"]] == [("speaker", "private")]
        assert "private NIC" in found["unreached"][0]["reason"]
    speaker.macvm("nic", "set", "speaker", "--mode", "bridge")
    assert routed in speaker.sh("ip route")
    speaker.sh(f"ip link set {device} type macvtap mode private")
    assert status_up(speaker)["guests"] == [], "what the kernel has counts"
    assert routed not in speaker.sh("ip route")


def test_a_guest_that_is_heard_in_mode_passthrough_keeps_nothing_from_coming_up(speaker: KvmHost) -> None:
    speaker.sh("ip addr add 198.51.100.2/24 dev port1")
    mac, _ = make_speaker(speaker, "--nic", "parent=port1,mode=passthrough,ip=none", "--take-parent")
    hear(speaker, mac, "198.51.100.45")
    for words in (["up"], ["status", "port1"]):
        ((unreached,),) = [one["unreached"] for one in speaker.json("shim", *words)]
        assert (unreached["owner"], unreached["mode"]) == ("speaker", "passthrough")
        assert "--nic libvirt=" in unreached["reason"]


def test_a_guest_that_says_it_is_the_router_is_not_taken_for_it(speaker: KvmHost) -> None:
    mac, _ = make_speaker(speaker, "--ip", "none")
    hear(speaker, mac, "192.0.2.1")
    found = status_up(speaker)
    assert found["guests"] == []
    assert "192.0.2.1 is the address of a router of this host's" in found["unreached"][0]["reason"]
    assert "192.0.2.1 dev mv-eth0" not in speaker.sh("ip route; ip neigh")
    assert " 0% packet loss" in speaker.sh("ping -c1 -W2 192.0.2.1")
