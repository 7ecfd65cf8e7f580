"""Making links, and what an endpoint's link goes through. VLANs and ipvlans: tests/kernel."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from provisioner.errors import NotFound, Taken, Unable
from provisioner.host import links, netlink, netns
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("lan")

#: Ends with the first answer. A link that has just come up may drop what is sent in its first second (linkwatch).
PING = ("ping", "-c", "1", "-w", "10", "-i", "0.2")

MAC1, MAC2, MAC3 = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


def macvlan(name: str, mac: str = MAC1, mode: str = "bridge", *sources: str, parent: str = "eth0") -> netlink.Link:
    return links.add_macvlan(name, netlink.get_link(parent), mac, f"macvm:test:{name}", mode, sources)


def shown(name: str) -> Any:
    return ip("-d link show", name)[0]


@pytest.fixture
def inside(run: None) -> Iterator[int]:
    """A descriptor of another, empty namespace."""
    netns.create("inside")
    fd = netns.open_namespace("inside")
    yield fd
    os.close(fd)


def in_namespace(fd: int, words: str) -> Any:
    return netns.run_inside(fd, lambda: ip(words))


@pytest.mark.parametrize("mode", ["private", "vepa", "bridge", "passthrough", "source"])
def test_a_macvlan_in_each_mode_with_its_mac_and_mark(mode: str) -> None:
    made = macvlan("mv0", mode=mode)
    there = shown("mv0")
    assert there["linkinfo"]["info_kind"] == "macvlan"
    assert there["linkinfo"]["info_data"]["mode"] == mode.replace("passthrough", "passthru")
    assert there["address"] == made.mac == (netlink.get_link("eth0").mac if mode == "passthrough" else MAC1)
    assert there["ifalias"] == "macvm:test:mv0"
    assert there["link"] == "eth0"
    assert "UP" not in there["flags"]
    assert made == netlink.get_link("mv0")


def test_the_mac_is_there_from_the_first_moment() -> None:
    """udev sees the link as the message made it, and changes a MAC that was set later."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as heard:
        heard.settimeout(10)
        heard.bind((0, 1))  # RTMGRP_LINK
        macvlan("mv0")
        first = next(said for said in iter(lambda: heard.recv(1 << 16), b"") if b"mv0\0" in said)
    assert bytes.fromhex(MAC1.replace(":", "")) in first


def test_pyroute2_is_not_imported_to_make_one() -> None:
    code = (
        "import sys; from provisioner.host import links, netlink\n"
        f"links.set_up(links.add_macvlan('mv0', netlink.get_link('eth0'), '{MAC1}', 'macvm:test'))\n"
        "print(*(name for name in sys.modules if name in ('pyroute2', 'ctypes')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
    assert netlink.get_link("mv0").up


def test_mode_source_lists_the_macs_it_listens_to() -> None:
    macvlan("mv0", MAC1, "source", MAC2, MAC3)
    listed = shown("mv0")["linkinfo"]["info_data"]["macaddr_data"]
    assert sorted(str(one).lower() for one in listed) == [MAC2, MAC3]
    macvlan("mv1", "02:00:00:00:00:04", "source")
    assert not shown("mv1")["linkinfo"]["info_data"].get("macaddr_data")


def test_mode_source_lets_only_the_listed_macs_through(inside: int) -> None:
    links.move(macvlan("mv0", "02:00:00:00:00:0a", "source", MAC2, parent="far"), inside, "eth0")
    in_namespace(inside, "link set eth0 up")
    in_namespace(inside, "addr add 192.0.2.10/24 dev eth0")
    in_namespace(inside, "link set lo up")
    ip("neigh replace 192.0.2.10 lladdr 02:00:00:00:00:0a dev eth0 nud permanent")
    # The veth speaks, with one MAC after the other.
    for mac, words in ((MAC2, PING), (MAC3, ("ping", "-c", "3", "-i", "0.1", "-W", "0.3")), (MAC2, PING)):
        ip("link set eth0 address", mac)
        in_namespace(inside, f"neigh replace 192.0.2.2 lladdr {mac} dev eth0 nud permanent")
        answered = subprocess.run([*words, "192.0.2.10"], capture_output=True, check=False).returncode == 0
        assert answered == (mac == MAC2), mac


def test_a_name_that_exists_is_taken_and_left() -> None:
    ip("link add mv0 type veth peer name other")
    with pytest.raises(Taken, match=r"mv0 on eth0.*exists already"):
        macvlan("mv0")
    assert shown("mv0").get("ifalias") is None


def test_a_link_that_cannot_be_marked_is_not_left() -> None:
    with pytest.raises(links.LinkFailed, match="mark mv0"):
        links.add_macvlan("mv0", netlink.get_link("eth0"), MAC1, "macvm:" + "x" * 300)
    assert netlink.find_link("mv0") is None


def test_a_parent_that_is_a_port_or_gone() -> None:
    parent = netlink.get_link("eth0")
    ip("link add br0 type bridge")
    ip("link set eth0 master br0")
    with pytest.raises(Taken, match="eth0 is a port of br0") as caught:
        macvlan("mv0")
    assert caught.value.hint == "use br0"
    ip("link del eth0")
    with pytest.raises(NotFound):
        links.add_macvlan("mv0", parent, MAC1, "macvm:test")


@pytest.mark.parametrize(("kind", "module"), [("vlan id 50", "8021q"), ("ipvlan mode l2", "ipvlan")])
def test_a_kernel_without_a_kind_says_which_module(kind: str, module: str) -> None:
    if (
        subprocess.run(f"ip link add x0 link eth0 type {kind}".split(), capture_output=True, check=False).returncode
        == 0
    ):
        ip("link del x0")  # this kernel has it: tests/kernel has the rest
        return
    parent = netlink.get_link("eth0")
    make = {
        "8021q": lambda: links.add_vlan("eth0.50", parent, 50, "macvm:test"),
        "ipvlan": lambda: links.add_ipvlan("ipv0", parent, "l2", "macvm:test"),
    }[module]
    with pytest.raises(Unable, match=f"it has no {module}") as caught:
        make()
    assert caught.value.hint == f"modprobe {module}"


def test_up_down_and_mtu() -> None:
    link = macvlan("mv0")
    links.set_up(link)
    assert netlink.get_link("mv0").up
    links.set_mtu(link, 1400)
    assert netlink.get_link("mv0").mtu == 1400
    assert netlink.get_link("mv0").up, "what is not named is left"
    with pytest.raises(Unable, match="mv0 cannot have MTU 9000"):
        links.set_mtu(link, 9000)
    ip("link set mv0 down")
    assert not netlink.get_link("mv0").up
    assert netlink.get_link("mv0").mtu == 1400


def test_moved_under_a_new_name(inside: int) -> None:
    moved = links.move(macvlan("mv0"), inside, "eth0")
    assert netlink.find_link("mv0") is None
    there = netns.run_inside(inside, lambda: netlink.get_link("eth0"))
    assert there == moved
    assert (there.mac, there.alias, there.mode, there.up) == (MAC1, "macvm:test:mv0", "bridge", False)
    assert there.lower == 0, "it is in another namespace"
    netns.run_inside(inside, lambda: links.remove(moved))
    assert netns.run_inside(inside, lambda: netlink.find_link("eth0")) is None


def test_a_name_that_is_taken_there_leaves_the_link_here(inside: int) -> None:
    in_namespace(inside, "link add eth0 type veth peer name mv1")
    for name, mac in (("mv0", MAC1), ("mv1", MAC2)):  # mv1: both names are taken there
        link = macvlan(name, mac)
        with pytest.raises(Taken, match="there is a link eth0 in that namespace"):
            links.move(link, inside, "eth0")
        assert netlink.get_link(name) == link
    assert {one["ifname"] for one in in_namespace(inside, "link show")} >= {"eth0", "mv1"}
    assert not netns.run_inside(inside, lambda: [link for link in netlink.links() if link.kind == "macvlan"])


def test_a_name_that_is_taken_only_there_for_the_old_one(inside: int) -> None:
    in_namespace(inside, "link add mv0 type veth peer name other")
    assert links.move(macvlan("mv0"), inside, "eth0").alias == "macvm:test:mv0"


def test_a_link_that_is_gone_is_not_moved(inside: int) -> None:
    link = macvlan("mv0")
    ip("link del mv0")
    with pytest.raises(NotFound):
        links.move(link, inside, "eth0")


def test_addresses_and_default_routes_inside(inside: int) -> None:
    moved = links.move(macvlan("mv0", parent="far"), inside, "eth0")

    def furnish() -> None:
        for text in ("192.0.2.10/24", "2001:db8::10/64"):
            links.add_address(ipaddress.ip_interface(text), moved)
        links.set_up(moved)
        for text in ("192.0.2.2", "2001:db8::2"):
            links.add_default_route(ipaddress.ip_address(text), moved)

    netns.run_inside(inside, furnish)
    entries = {one["local"]: one for one in in_namespace(inside, "addr show dev eth0")[0]["addr_info"]}
    assert entries["192.0.2.10"]["prefixlen"] == 24
    assert entries["2001:db8::10"]["prefixlen"] == 64
    assert not entries["2001:db8::10"].get("tentative"), "usable at once"
    for family, gateway in (("-4", "192.0.2.2"), ("-6", "2001:db8::2")):
        [route] = in_namespace(inside, f"{family} -N route show default")
        assert (route["gateway"], route["dev"], route["protocol"]) == (gateway, "eth0", str(links.PROTOCOL))
    # Beyond the LAN, by way of it.
    ip("addr add 203.0.113.1/32 dev lo")
    done = netns.run_inside(inside, lambda: subprocess.run([*PING, "203.0.113.1"], capture_output=True))
    assert done.returncode == 0
    done = netns.run_inside(inside, lambda: subprocess.run([*PING, "2001:db8::2"], capture_output=True))
    assert done.returncode == 0, "from an IPv6 address that is not tentative"

    def again() -> None:
        links.add_address(ipaddress.ip_interface("192.0.2.10/24"), moved)

    with pytest.raises(Taken, match=r"give eth0 the address 192\.0\.2\.10/24"):
        netns.run_inside(inside, again)
    with pytest.raises(Taken, match=r"route through 192\.0\.2\.2 by default"):
        netns.run_inside(inside, lambda: links.add_default_route(ipaddress.ip_address("192.0.2.2"), moved))


@pytest.mark.parametrize(
    ("address", "gateway"), [("192.0.2.10/24", "198.51.100.1"), ("2001:db8::10/64", "2001:db9::1")]
)
def test_a_gateway_out_of_reach(address: str, gateway: str) -> None:
    link = macvlan("mv0")
    links.set_up(link)
    links.add_address(ipaddress.ip_interface(address), link)
    with pytest.raises(Unable, match=f"gateway {gateway} is in no subnet of mv0"):
        links.add_default_route(ipaddress.ip_address(gateway), link)


def test_ipv6_that_is_off_is_said() -> None:
    link = macvlan("mv0")
    links.sysctl("net/ipv6/conf/mv0/disable_ipv6", "1")
    with pytest.raises(Unable, match="IPv6 is off on mv0") as caught:
        links.add_address(ipaddress.ip_interface("2001:db8::10/64"), link)
    assert "disable_ipv6=0" in caught.value.hint


def test_macs_behind_a_parent_are_seen_wherever_their_links_are(inside: int) -> None:
    parent = netlink.get_link("eth0")
    assert netlink.macs_behind(parent.index) == set()
    links.set_up(macvlan("mv0"))
    moved = links.move(macvlan("mv1", MAC2), inside, "eth0")
    assert netlink.macs_behind(parent.index) == {MAC1}, "one that is down takes no frames"
    netns.run_inside(inside, lambda: links.set_up(moved))
    assert netlink.macs_behind(parent.index) == {MAC1, MAC2}
    assert netlink.macs_behind(netlink.get_link("far").index) == set()
