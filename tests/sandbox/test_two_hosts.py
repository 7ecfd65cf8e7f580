"""The classic lab: two KVM hosts on one switch, a VM on each, and everybody reaches everybody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from provisioner.actions.sandbox import Sandbox
from tests.sandbox.kvm_host import KvmHost

pytestmark = pytest.mark.xdist_group("two hosts")

#: Asks the other guest, and shows on its own page what came.
ASK = """#!/bin/sh
until wget -q -O /www/peer.new http://{peer}/; do sleep 0.3; done
ping -c2 -W2 {peer} > /www/ping
mv /www/peer.new /www/peer
"""
ADDRESSES = {1: "192.0.2.11", 2: "192.0.2.12"}


@pytest.fixture(scope="module")
def lab(two_hosts: Sandbox) -> Iterator[dict[int, KvmHost]]:
    hosts = {number: KvmHost(two_hosts, number) for number in ADDRESSES}
    for number, host in hosts.items():
        host.macvm("image", "build", "tiny")
        host.node.run(["tee", "/run/ask"], input=ASK.format(peer=ADDRESSES[3 - number]), check=True)
        host.create(f"web{number}", "--mode", "bridge", "--ip", f"{ADDRESSES[number]}/24", "--user-data", "/run/ask")
    yield hosts
    for host in hosts.values():
        host.clear()


@pytest.mark.parametrize("number", [1, 2])
def test_the_guests_reach_one_another_across_the_switch(lab: dict[int, KvmHost], number: int) -> None:
    host, own, other = lab[number], ADDRESSES[number], ADDRESSES[3 - number]
    assert host.page(own, "peer", seconds=120) == f"web{3 - number}\n{other}/24 eth0\n"
    assert "2 packets received, 0% packet loss" in host.page(own, "ping")


@pytest.mark.parametrize("number", [1, 2])
def test_each_host_reaches_both_guests(lab: dict[int, KvmHost], number: int) -> None:
    host = lab[number]
    for which, address in ADDRESSES.items():
        assert host.page(address, seconds=120).startswith(f"web{which}\n")
        device = "mv-eth0" if which == number else "eth0"
        assert f"dev {device} " in host.sh(f"ip route get {address}")


def test_each_guest_is_known_to_its_own_host_alone(lab: dict[int, KvmHost]) -> None:
    for number, host in lab.items():
        assert host.macvm("list", "-o", "name").stdout == f"web{number}\n"


def test_the_other_hosts_guests_outlive_a_delete(lab: dict[int, KvmHost]) -> None:
    lab[1].macvm("delete", "--yes", "web1")
    assert lab[1].page(ADDRESSES[2]).startswith("web2\n")
    assert "mv-eth0" not in lab[1].sh("ip link; ip route")
