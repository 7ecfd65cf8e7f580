"""Guests whose address nobody knows: heard, asked, followed by `shim watch`, whoever starts and stops them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from provisioner.actions.sandbox import Process, dhcp_server
from tests.sandbox.kvm_host import KvmHost


@pytest.fixture(scope="module")
def dhcp(host: KvmHost) -> Iterator[KvmHost]:
    """A LAN with a DHCP server, and a guest that asks it; it runs, and nobody has heard it yet."""
    host.nodes.dhcp(True)
    host.create("asker", "--ip", "dhcp")
    yield host
    host.clear()
    host.nodes.dhcp(False)


@contextmanager
def watching(host: KvmHost) -> Iterator[Process]:
    """`shim watch`, which ends well when it is told to."""
    running = host.node.start(["macvm", "shim", "watch"])
    try:
        # It tells nothing when it is ready: it is, once it has a socket for the kernel's events.
        until(host, "ss -f netlink -p | grep -q macvm", "shim watch never listened")
        yield running
    finally:
        running.signal(15)
        assert running.wait(20) == 0


def until(host: KvmHost, condition: str, otherwise: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while host.node.run(["bash", "-c", condition]).returncode != 0:
        assert time.monotonic() < deadline, (
            f"{otherwise}\n{host.sh('ip route; ip -6 route; macvm list; macvm shim status')}"
        )
        time.sleep(0.1)


def test_ip_waits_for_what_dhcp_gives_and_the_host_reaches_it(dhcp: KvmHost) -> None:
    address = dhcp.macvm("ip", "asker", "--wait", "--timeout", "60").stdout.strip()
    # The server's word is heard before the guest has it.
    until(dhcp, f"ping -c1 -W1 {address}", "the guest does not answer")
    found = {(one["address"], one["source"]) for one in dhcp.show("asker")["nics"][0]["addresses"]}
    assert (address, "wire") in found
    dhcp.macvm("stop", "--force", "asker")
    assert address not in dhcp.sh("ip route; ip neigh")
    assert dhcp.show("asker")["nics"][0]["addresses"] == []
    dhcp.macvm("start", "asker")


def test_watch_follows_guests_that_virsh_starts_and_stops(dhcp: KvmHost) -> None:
    with watching(dhcp):
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "the guest was never served", 60)
        dhcp.sh("virsh destroy asker")
        until(dhcp, "! ip route | grep -q 'proto 109'", "the route of a guest that is gone stays")
        dhcp.sh("virsh start asker")
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "the guest was never served again", 60)
        address = dhcp.macvm("ip", "asker").stdout.strip()
        until(dhcp, f"ping -c1 -W1 {address}", "the guest does not answer")


def test_watch_brings_back_what_somebody_takes_away(dhcp: KvmHost) -> None:
    with watching(dhcp):
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "the guest was never served", 60)
        dhcp.sh("ip link del mv-eth0")
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "a shim that was deleted never came back")
        dhcp.sh("ip addr del 192.0.2.2/24 dev eth0")
        dhcp.sh("ip addr add 192.0.2.2/24 brd + dev eth0; ip route replace default via 192.0.2.1")
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "routes never came back with the parent's address")


#: The guest looks after its cable twice a second, of its own time.
REPLUG = """macvm nic set asker --link down; sleep 3; macvm nic set asker --link up
for _ in $(seq 100); do ip route | grep -q '{}' && exit 0; sleep 0.1; done; exit 1"""


def serve_others(host: KvmHost, span: str) -> None:
    """Has the DHCP server give addresses of a span, and know nothing of those that it gave before."""
    host.nodes.dhcp(False)
    host.sh("rm -f /run/macvm-dhcp.leases", node=host.lan)
    host.lan.run([word.replace("192.0.2.100,192.0.2.199", span) for word in dhcp_server()], check=True)


def test_a_guest_is_found_again_when_dhcp_gives_it_another_address(dhcp: KvmHost) -> None:
    """It runs on meanwhile, and asks anew once its cable is back."""
    with watching(dhcp):
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "the guest was never served", 60)
        before = dhcp.macvm("ip", "asker").stdout.strip()
        serve_others(dhcp, "192.0.2.71,192.0.2.71")
        until(dhcp, REPLUG.format("192.0.2.71 dev mv-eth0 proto 109"), "it was not found again", 120)
        until(dhcp, "ping -c1 -W1 192.0.2.71", "the guest does not answer")
    known = [one["address"] for one in dhcp.json("ip", "asker")["addresses"] if ":" not in one["address"]]
    assert known == ["192.0.2.71"], f"{before} is no longer its own"
    assert before not in dhcp.sh("ip route; ip neigh show nud permanent")
    serve_others(dhcp, "192.0.2.100,192.0.2.199")


def test_watch_outlives_libvirtd(dhcp: KvmHost) -> None:
    with watching(dhcp) as watch:
        until(dhcp, "ip route | grep -q 'dev mv-eth0 proto 109'", "the guest was never served", 60)
        dhcp.sh("kill -9 $(cat /run/libvirtd.pid); sleep 0.3; libvirtd --daemon --pid-file /run/libvirtd.pid")
        # It answers before it has found its machines again.
        until(dhcp, "virsh domstate asker | grep -q running", "libvirtd never came back")
        dhcp.sh("virsh destroy asker")
        until(dhcp, "! ip route | grep -q 'proto 109'", "the route of a guest that is gone stays")
    # Had it gone on unnoticed, libvirt's events would be lost from then on.
    assert "libvirt is back" in watch.stderr


def test_delete_takes_the_route_of_an_address_that_was_heard(host: KvmHost, dhcp: KvmHost) -> None:
    dhcp.sh("macvm start asker || true")
    address = dhcp.macvm("ip", "asker", "--wait", "--timeout", "60").stdout.strip()
    dhcp.macvm("delete", "--yes", "asker")
    assert address not in dhcp.sh("ip route; ip neigh")
    assert "mv-eth0" not in dhcp.sh("ip link")
