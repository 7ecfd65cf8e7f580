"""`shim watch` while parents come, go and change, NICs come behind macvm's back, and a guest floods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandbox.kvm_host import KvmHost
from tests.sandbox.test_watch import until, watching

#: A second NIC of the host's, and somebody on its LAN; what stands in for a container's macvlan on it.
PORT = """
ip link add port1 type veth peer name far1
ip link set far1 up; ip link set port1 up
"""
ADDRESSES = "ip addr add 198.51.100.2/24 dev {0}; ip addr add 2001:db8:51::2/64 dev {0} nodad"
TOLD = ["--to", "198.51.100.40,02:00:00:00:00:40", "--to", "2001:db8:51::40,02:00:00:00:00:40"]
BOTH = """ip route | grep -q '198.51.100.40 dev mv-port1 proto 109 scope link src 198.51.100.2' &&
  ip -6 route | grep -q '2001:db8:51::40 dev mv-port1 proto 109 src 2001:db8:51::2' &&
  ip neigh show nud permanent | grep -q '198.51.100.40 dev mv-port1' &&
  ip neigh show proxy | grep -q '2001:db8:51::2 dev mv-port1'"""
#: No event of the kernel's has watch look at all by chance.
QUIET = '[ -z "$(timeout 2 ip monitor link address route)" ]'
MAC = "52:54:00:00:00:61"


@pytest.fixture(scope="module")
def watched(host: KvmHost) -> Iterator[KvmHost]:
    with watching(host):
        yield host
    host.clear()


@pytest.fixture
def port(watched: KvmHost) -> Iterator[KvmHost]:
    """port1 with two addresses, and a guest served behind it in both families."""
    watched.sh(PORT + ADDRESSES.format("port1"))
    watched.macvm("shim", "up", "port1", *TOLD)
    until(watched, BOTH, "it is not served to begin with")
    yield watched
    watched.sh("for link in port1 lan7; do ip link del $link 2>/dev/null || true; done")
    for one in TOLD[1::2]:
        watched.macvm("shim", "forget", one.split(",")[0])
    watched.sh("sqlite3 /var/lib/macvm/macvm.db \"DELETE FROM shims WHERE parent IN ('port1', 'lan7')\"")


def test_the_parent_goes_down_and_up(port: KvmHost) -> None:
    """Which takes its IPv6 address, and with that the route pinned to it."""
    port.sh("ip link set port1 down")
    until(port, "! ip -6 route | grep -q 'src 2001:db8:51::2'", "a route has an address that nobody has")
    port.sh("ip link set port1 up; ip addr add 2001:db8:51::2/64 dev port1 nodad")
    until(port, BOTH, "not all came back")


def test_the_parent_loses_its_addresses_and_gets_others(port: KvmHost) -> None:
    port.sh("ip addr flush dev port1")
    until(
        port, "! ip route | grep -q 198.51.100.40 && ! ip -6 route | grep -q db8:51::40", "routes from no address stay"
    )
    assert "mv-port1" in port.sh("ip link"), "it was asked for, and waits"
    port.sh("ip addr add 198.51.100.9/24 dev port1; ip addr add 2001:db8:51::9/64 dev port1 nodad")
    moved = BOTH.replace("src 198.51.100.2'", "src 198.51.100.9'").replace("db8:51::2", "db8:51::9")
    until(port, moved, "routes did not follow to the new addresses")
    port.sh("ip addr flush dev port1; " + ADDRESSES.format("port1"))
    until(port, BOTH, "routes did not follow back")


def test_the_parent_is_renamed(port: KvmHost) -> None:
    """Guests on it run on: their devices, and the shim, are on the link and not on its name."""
    port.sh("ip link set port1 down; ip link set port1 name lan7; ip link set lan7 up; ip addr flush dev lan7")
    until(port, "! ip route | grep -q 198.51.100.40", "a route from no address stays")
    port.sh(ADDRESSES.format("lan7"))
    until(port, BOTH, "a parent with a new name is not followed")
    assert "mv-port1@lan7" in port.sh("ip link")
    # Guests that are told of now are behind the same shim.
    port.macvm("shim", "up", "lan7", "--to", "198.51.100.41,02:00:00:00:00:41")
    for found in (port.json("shim", "up"), port.json("shim", "status")):
        (guests,) = [one["guests"] for one in found if one["parent"] == "lan7"]
        assert sorted((one["address"], one["route"]) for one in guests) == [
            ("198.51.100.40", True), ("198.51.100.41", True), ("2001:db8:51::40", True)
        ]  # fmt: skip
    port.macvm("shim", "forget", "198.51.100.41")
    port.sh(BOTH)


def test_the_parent_is_deleted_and_made_again(port: KvmHost) -> None:
    port.sh("ip link del port1")
    until(port, "! ip link | grep -q mv-port1", "the shim is on nothing")
    port.sh(PORT + ADDRESSES.format("port1"))
    until(port, BOTH, "a parent that was made again is not followed")


#: Says, as a guest does, that it has an address: what is sent by its macvtap is to the kernel what the guest sent.
SPEAK = """
import socket, sys, itertools, ipaddress
device, mac, first, count = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", "")), sys.argv[3], int(sys.argv[4])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((device, 0))
for number in range(count):
    own = (ipaddress.IPv4Address(first) + number).packed
    head = b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040001")
    try:
        wire.send(head + mac + own + bytes(6) + own)
    except OSError:
        pass
"""


def say(host: KvmHost, mac: str, first: str, count: int = 1) -> str:
    return f"python3 -c '{SPEAK}' mt-{mac.replace(':', '')} {mac} {first} {count}"


@pytest.fixture(scope="module")
def guest(watched: KvmHost) -> KvmHost:
    """One that has booted, and lets go of a NIC when it is told to."""
    watched.create("web1", "--ip", "192.0.2.66/24")
    watched.page("192.0.2.66")
    return watched


def test_virsh_attaches_and_detaches_a_nic_behind_macvms_back(guest: KvmHost) -> None:
    device = f"mt-{MAC.replace(':', '')}"
    nic = f"<interface type='direct'><mac address='{MAC}'/><source dev='eth0' mode='bridge'/><target dev='{device}'/>"
    guest.sh(f"echo \"{nic}<model type='virtio'/></interface>\" >/run/nic.xml; virsh attach-device web1 /run/nic.xml")
    said = f"{say(guest, MAC, '192.0.2.61')}; ip route | grep -q '192.0.2.61 dev mv-eth0 proto 109'"
    until(guest, said, "a NIC that virsh attached is not heard")
    guest.sh("virsh detach-device web1 /run/nic.xml")
    until(guest, "! ip route | grep -q 192.0.2.61", "the route of a NIC that is gone stays", 60)
    assert guest.sh(f"ip -o link show {device} 2>/dev/null || echo gone") == "gone\n"


def test_a_vepa_guest_is_reached_once_the_switch_sends_back(guest: KvmHost) -> None:
    """The switch tells nobody: it is asked again and again."""
    guest.macvm("create", "away", "--memory", "128", "--ip", "192.0.2.62/24", "--mode", "vepa")
    try:
        assert "192.0.2.62" not in guest.sh("ip route")
        until(guest, QUIET, "the kernel never has nothing to tell", 120)
        guest.nodes.hairpin(True)
        until(guest, "ip route | grep -q '192.0.2.62 dev mv-eth0'", "the switch was never asked again")
        until(guest, QUIET, "the kernel never has nothing to tell", 120)
        guest.nodes.hairpin(False)
        until(guest, "! ip route | grep -q 192.0.2.62", "the route leads nowhere")
    finally:
        guest.nodes.hairpin(False)
        guest.macvm("delete", "--yes", "away")


def test_a_guest_that_floods_fills_nothing_and_keeps_nobody_waiting(guest: KvmHost) -> None:
    flooding = guest.show("web1")["nics"][0]["mac"]
    guest.macvm("create", "web2", "--memory", "128", "--ip", "none")
    other = guest.show("web2")["nics"][0]["mac"]
    try:
        with guest.node.start(["bash", "-c", f"while {say(guest, flooding, '192.0.2.128', 100)}; do :; done"]) as flood:
            count = "sqlite3 /var/lib/macvm/macvm.db \"SELECT count(*) FROM heard WHERE mac = '{}'\""
            until(guest, f"[ $({count.format(flooding)}) -ge 32 ]", "it does not flood")
            said = f"{say(guest, other, '192.0.2.63')}; ip route | grep -q '192.0.2.63 dev mv-eth0 proto 109'"
            until(guest, said, "another guest is kept waiting")
            assert int(guest.sh(count.format(flooding))) == 32
            assert len(guest.sh("ip route show proto 109 root 192.0.2.128/25").splitlines()) <= 32
            flood.signal(9)
    finally:
        guest.macvm("delete", "--yes", "web1", "web2")
    until(guest, "! ip route | grep -q 'proto 109'", "routes of guests that are gone stay")
