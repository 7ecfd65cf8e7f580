"""Real guests on libvirt's own macvtap: one gets its address by DHCP while we listen, one was there before and is silent."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sandbox.kvm_host import KvmHost

#: Runs functions of host/hearing on the KVM host: the name and arguments on standard input, what it returns as JSON.
CALL = """
import ipaddress, json, sys
from provisioner.host import hearing
name, networks, words = json.load(sys.stdin)
more = [[ipaddress.ip_network(network) for network in networks]] if networks else []
result = getattr(hearing, name)(*words, *more)
print(json.dumps([str(part) for part in result] if isinstance(result, tuple) else sorted(map(str, result or []))))
"""


def call(host: KvmHost, name: str, *words: object, networks: tuple[str, ...] = ()) -> Any:
    argv = [sys.executable, "-c", CALL]
    done = host.node.run(argv, input=json.dumps([name, networks, words]), check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quiet(host: KvmHost) -> Iterator[tuple[str, str]]:
    """MAC and device of a guest with static addresses, which booted before anybody listened."""
    host.create("quiet", "--ip", "192.0.2.70/24", "--ip", "2001:db8::70/64", "--wait")
    nic = host.show("quiet")["nics"][0]
    yield nic["mac"], nic["device"]
    host.clear()


def test_a_guest_that_asks_dhcp_is_heard_from_its_first_frame_on(host: KvmHost, quiet: tuple[str, str]) -> None:
    host.nodes.dhcp(True)
    try:
        host.create("asks", "--ip", "dhcp", "--no-start")
        host.sh("virsh start --paused asks")
        nic = host.show("asks")["nics"][0]
        argv = [sys.executable, "-c", CALL]
        with host.node.start(argv, input=json.dumps(["wait_for", [], [nic["device"], nic["mac"], 90, 4]])) as waits:
            host.sh("virsh resume asks")
            assert waits.wait(120) == 0, waits.stderr
            mac, address, how, lost = json.loads(waits.stdout)
        assert (mac, how, lost) == (nic["mac"], "dhcp", "False")
        leases = host.sh("cat /run/macvm-dhcp.leases", node=host.lan).splitlines()
        assert [line.split()[2] for line in leases if line.split()[1] == mac] == [address]
    finally:
        host.nodes.dhcp(False)


def test_a_silent_guest_is_asked(host: KvmHost, quiet: tuple[str, str]) -> None:
    mac, device = quiet
    assert call(host, "wait_for", device, mac, 0.3, 4) == []
    assert call(host, "ask", "mv-eth0", mac, networks=("192.0.2.0/24", "192.0.0.0/22")) == ["192.0.2.70"]
    local, given = sorted(call(host, "ask_v6", "mv-eth0", mac, networks=("2001:db8::/64",)), key=len, reverse=True)
    assert given == "2001:db8::70"
    assert local.startswith("fe80::")
