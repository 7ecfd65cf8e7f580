"""`macvm endpoint` with what other kernels lack: ipvlan, and source mode's list as `ip` reads it back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, complaints

LAN, PEER_MAC, OTHER_MAC = "192.0.2.1", "02:00:c0:00:02:01", "52:54:00:99:99:99"


@pytest.fixture(scope="module")
def sandboxed() -> Iterator[KvmHost]:
    with make_sandbox() as box:
        made = KvmHost(box)
        made.macvm("network", "create", "lan", "--parent", "eth0", "--ip-range", "192.0.2.64/28", "--dns", LAN)
        yield made


@pytest.fixture
def host(as_root: None, sandboxed: KvmHost) -> Iterator[KvmHost]:
    """Without endpoints, before and after."""
    before = look(sandboxed)
    yield sandboxed
    sandboxed.delete_endpoints()
    assert look(sandboxed) == before


def look(host: KvmHost) -> str:
    database = "/var/lib/macvm/macvm.db"
    rows = "; ".join(f"SELECT * FROM {table}" for table in ("endpoints", "macs", "leases", "journal"))
    # In the order of their names: the numbers differ.
    return host.sh(
        f"ls /run/netns; ip -o -br link | sort; ip route; ip neigh show nud permanent; sqlite3 {database} '{rows}'"
    )


def pings(host: KvmHost, name: str, address: str) -> bool:
    words = ["macvm", "endpoint", "exec", name, "--", "ping", "-c", "1", "-W", "20", address]
    return host.node.run(words).returncode == 0


def lan_pings(host: KvmHost, address: str) -> bool:
    return host.lan.run(["ping", "-c", "1", "-W", "20", address]).returncode == 0


def test_l2_endpoints_of_a_network_share_the_parents_mac(host: KvmHost) -> None:
    mac = host.sh("cat /sys/class/net/eth0/address").strip()
    made = [host.json("endpoint", "create", name, "--network", "lan", "--ipvlan", "l2") for name in ("alice", "bob")]
    assert [(one["type"], one["mode"], one["mac"]) for one in made] == [("ipvlan", "l2", mac)] * 2
    one, other = (made[number]["addresses"][0]["address"] for number in range(2))
    assert host.macvm("endpoint", "exec", "alice", "--", "cat", "/sys/class/net/eth0/address").stdout.strip() == mac
    assert pings(host, "alice", LAN)
    assert pings(host, "alice", other)
    assert lan_pings(host, one)
    seen = host.sh(f"ip neigh show {one}; ip neigh show {other}", node=host.lan)
    assert {line.split()[4] for line in seen.splitlines()} == {mac}
    shown = host.json("network", "show", "lan")
    assert [(lease["owner"], lease["mac"]) for lease in shown["leases"]] == [("alice", mac), ("bob", mac)]
    assert shown["macs_on_parent"] == 1
    assert [row["nics"][0]["mac"] for row in host.json("list")] == [mac, mac]


def test_an_address_in_use_is_found_beside_an_ipvlan(host: KvmHost) -> None:
    """There is no room then for a macvlan to ask from: the parent asks."""
    host.macvm("endpoint", "create", "alice", "--ipvlan", "l2")
    host.sh("ip address add 192.0.2.70/24 dev eth0", node=host.lan)
    try:
        words = ("--network", "lan", "--ipvlan", "l2", "--ip", "192.0.2.70")
        refused = host.macvm("endpoint", "create", "bob", *words, status=4)
    finally:
        host.sh("ip address del 192.0.2.70/24 dev eth0", node=host.lan)
    assert f"192.0.2.70 is in use on the LAN by {PEER_MAC}" in refused.stderr


def test_what_an_ipvlan_excludes(host: KvmHost) -> None:
    host.macvm("endpoint", "create", "alice", "--ipvlan", "l2")
    for words, said in (
        ((), "a link carries macvlans and macvtaps, or ipvlans, never both"),
        (("--ipvlan", "l3"), "all ipvlans of one parent have one mode"),
    ):
        ((error, _),) = complaints(host.macvm("endpoint", "create", "bob", *words, status=4).stderr)
        assert error == f"eth0 carries the ipvlan of the endpoint alice, in mode l2: {said}"
    host.macvm("endpoint", "delete", "alice")
    host.sh("ip link add theirs link eth0 type macvlan")
    ((error, _),) = complaints(host.macvm("endpoint", "create", "alice", "--ipvlan", "l2", status=4).stderr)
    assert error == "eth0 is in use by theirs (macvlan)"
    host.sh("ip link del theirs")


def test_macvms_own_shim_is_in_the_way_while_it_is_used(host: KvmHost) -> None:
    host.macvm("endpoint", "create", "alice", "--ip", "192.0.2.41/24")
    refused = host.macvm("endpoint", "create", "bob", "--ipvlan", "l2", status=4)
    assert "eth0 carries the macvlan of the endpoint alice" in refused.stderr
    host.macvm("endpoint", "delete", "alice")
    host.macvm("endpoint", "create", "bob", "--ipvlan", "l2")


def test_an_l3_endpoint_is_reached_by_way_of_the_host(host: KvmHost) -> None:
    made = host.macvm("endpoint", "create", "alice", "--ipvlan", "l3", "--ip", "192.0.2.60/24", "-o", "json")
    assert "the host cannot reach alice" in made.stderr
    assert json.loads(made.stdout)["mode"] == "l3"
    host.sh("ip route add 192.0.2.60/32 via 192.0.2.2", node=host.lan)
    try:
        assert pings(host, "alice", LAN)
        assert lan_pings(host, "192.0.2.60")
    finally:
        host.sh("ip route del 192.0.2.60/32", node=host.lan)


def test_a_vlans_link_stays_below_an_ipvlan(host: KvmHost) -> None:
    """Which leaves no trace of itself on this side; macvm made the link, and no network is on it any more."""
    host.macvm("network", "create", "fifty", "--parent", "eth0.50", "--subnet", "198.51.100.0/24")
    host.macvm("endpoint", "create", "alice", "--parent", "eth0.50", "--ipvlan", "l2")
    host.macvm("network", "delete", "fifty")
    assert [one["state"] for one in host.json("endpoint", "list")] == ["up"]
    host.macvm("endpoint", "delete", "alice")
    assert "removed: eth0.50" in host.macvm("gc").stderr


def test_ipvlan_in_a_container(host: KvmHost) -> None:
    with host.node.start(["unshare", "--net", "sleep", "600"]) as process:
        host.sh(f"until [ $(readlink /proc/{process.pid}/ns/net) != $(readlink /proc/1/ns/net) ]; do sleep 0.1; done")
        words = ("--netns", process.pid, "--ipvlan", "l2", "--ip", "192.0.2.61/24")
        assert host.json("endpoint", "create", "alice", *words)["device"] == "eth0"
        assert pings(host, "alice", LAN)
        host.macvm("endpoint", "delete", "alice")
        assert "eth0" not in host.sh(f"nsenter -n -t {process.pid} ip -br link")


def test_source_mode_lets_the_listed_macs_through(host: KvmHost) -> None:
    words = ("--ip", "192.0.2.62/24", "--mode", "source")
    host.macvm("endpoint", "create", "alice", *words, "--allow-source", PEER_MAC, "--allow-source", OTHER_MAC)
    shown = host.sh("ip -n macvm-alice -d link show eth0")
    assert re.search(r"macvlan mode source .*remotes \(2\)", shown)
    assert PEER_MAC in shown
    assert lan_pings(host, "192.0.2.62")
    host.macvm("endpoint", "delete", "alice")
    host.macvm("endpoint", "create", "alice", *words, "--allow-source", OTHER_MAC)
    assert host.lan.run(["ping", "-c", "2", "-W", "1", "192.0.2.62"]).returncode == 1
