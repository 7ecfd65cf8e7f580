"""Endpoints: whom they reach in each mode, what runs in them, and that nothing is left of them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from provisioner.actions.sandbox import Sandbox
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, complaints
from tests.sandbox.test_json import valid
from tests.sandbox.test_kill import macvm
from tests.sandbox.test_reach import lay_cable

pytestmark = pytest.mark.xdist_group("endpoints")

HOST, LAN = ("192.0.2.2", "2001:db8::2"), ("192.0.2.1", "2001:db8::1")
#: The LAN peer's NIC (host/sandbox/layout.py).
PEER_MAC, OTHER_MAC = "02:00:c0:00:02:01", "52:54:00:99:99:99"

ALICE = ("--ip", "192.0.2.41/24", "--ip", "2001:db8::41/64")


@pytest.fixture(scope="module")
def host() -> Iterator[KvmHost]:
    """With a store, so that snapshots compare; eth1 is a second NIC on the same switch."""
    with make_sandbox() as box:
        made = KvmHost(box)
        lay_cable(box, "eth1")
        made.settle_addresses()
        made.macvm("endpoint", "create", "first")
        made.macvm("endpoint", "delete", "first")
        yield made


@pytest.fixture
def clean(host: KvmHost) -> Iterator[None]:
    """Whatever endpoints a test makes, deleting them leaves nothing."""
    with host.unchanged():
        yield
        host.delete_endpoints()
        assert host.sh("ls /run/netns") == ""


def create(host: KvmHost, name: str, *words: object, status: int = 0) -> Any:
    done = host.macvm("endpoint", "create", name, *words, "-o", "json", status=status)
    return valid(json.loads(done.stdout), "endpoint.json") if status == 0 else done


def inside(host: KvmHost, name: str, *words: object, status: int = 0) -> str:
    return host.macvm("endpoint", "exec", name, "--", *words, status=status).stdout


def answering(host: KvmHost, who: str, asked: Iterable[str]) -> set[str]:
    """Those of some addresses that answer the pings of an endpoint, of the host or of the LAN peer."""
    script = "for a; do (ping -n -c 2 -i 0.2 -W 1 $a > /dev/null && echo $a) & done; wait"
    words = ["sh", "-c", script, "ping", *asked]
    if who in ("host", "LAN"):
        done = (host.node if who == "host" else host.lan).run(words, check=True)
    else:
        done = host.node.run(["macvm", "endpoint", "exec", who, "--", *words], check=True)
    return set(done.stdout.split())


def pings(host: KvmHost, who: str, address: str) -> bool:
    return answering(host, who, [address]) == {address}


@contextmanager
def hairpin(host: KvmHost) -> Iterator[None]:
    assert isinstance(host.nodes, Sandbox)
    host.nodes.hairpin(True)
    try:
        yield
    finally:
        host.nodes.hairpin(False)


@contextmanager
def container(host: KvmHost) -> Iterator[int]:
    """A process in a network namespace of its own, as a container's; its PID."""
    with host.node.start(["unshare", "--net", "sleep", "300"]) as process:
        host.sh(f"until [ $(readlink /proc/{process.pid}/ns/net) != $(readlink /proc/1/ns/net) ]; do sleep 0.01; done")
        yield process.pid


@contextmanager
def named(host: KvmHost) -> Iterator[None]:
    """The namespace `theirs`, with links of its own."""
    host.sh("ip netns add theirs; ip -n theirs link add eth0 type veth peer name eth1")
    try:
        yield
    finally:
        host.sh("ip netns del theirs")


# --- reach ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "words", "reaches"),
    [
        ("bridge", (), {"host", "LAN"}),
        ("vepa", (), {"LAN"}),
        ("private", (), {"LAN"}),
        ("source", ("--allow-source", PEER_MAC, "--allow-source", OTHER_MAC), {"LAN"}),
        ("source", ("--allow-source", OTHER_MAC), set()),
    ],
)
def test_whom_a_mode_reaches(host: KvmHost, clean: None, mode: str, words: tuple[str, ...], reaches: set[str]) -> None:
    made = create(host, "alice", *ALICE, "--mode", mode, *words)
    assert (made["mode"], made["parent"], made["state"]) == (mode, "eth0", "up")
    mine = {"192.0.2.41", "2001:db8::41"}
    theirs = {"host": HOST, "LAN": LAN}
    expected = {address for who in reaches for address in theirs[who]}
    assert answering(host, "alice", (*HOST, *LAN)) == expected
    for who in theirs:
        assert answering(host, who, mine) == (mine if who in reaches else set()), who


def test_vepa_reaches_the_host_and_its_neighbours_by_a_switch_that_sends_back(host: KvmHost, clean: None) -> None:
    create(host, "alice", *ALICE, "--mode", "vepa")
    create(host, "bob", "--ip", "192.0.2.42/24")
    assert not pings(host, "alice", "192.0.2.42")
    with hairpin(host):
        # Whatever changes on that parent has the switch asked again.
        create(host, "carol", "--ip", "192.0.2.43/24")
        assert pings(host, "host", "192.0.2.41")
        assert pings(host, "alice", "192.0.2.42")


def test_bridge_endpoints_reach_one_another(host: KvmHost, clean: None) -> None:
    create(host, "alice", *ALICE)
    create(host, "bob", "--ip", "192.0.2.42/24")
    assert pings(host, "alice", "192.0.2.42")
    routes = [line.split()[:3] for line in host.sh("ip route show proto 109").splitlines()]
    assert routes == [["192.0.2.41", "dev", "mv-eth0"], ["192.0.2.42", "dev", "mv-eth0"]]


def test_the_lan_is_told_of_the_addresses(host: KvmHost, clean: None) -> None:
    """Whoever knew another NIC at them would send there for half a minute."""
    for _ in range(2):
        create(host, "alice", *ALICE)
        for address in ("192.0.2.41", "2001:db8::41"):
            assert pings(host, "LAN", address)
        host.macvm("endpoint", "delete", "alice")


def test_no_shim_leaves_the_host_alone(host: KvmHost, clean: None) -> None:
    before = host.state()["routes"]
    create(host, "alice", *ALICE, "--no-shim")
    assert host.state()["routes"] == before
    assert not pings(host, "host", "192.0.2.41")
    assert pings(host, "LAN", "192.0.2.41")


def test_passthrough_takes_the_parent_alone(host: KvmHost, clean: None) -> None:
    made = create(host, "alice", "--mode", "passthru", "--parent", "eth1", "--ip", "192.0.2.41/24")
    assert (made["mode"], made["mac"]) == ("passthrough", host.sh("cat /sys/class/net/eth1/address").strip())
    assert pings(host, "alice", LAN[0])
    assert pings(host, "LAN", "192.0.2.41")
    for words in (("--mode", "bridge"), ("--mode", "passthrough"), ("--ipvlan", "l2")):
        refused = create(host, "bob", "--parent", "eth1", *words, status=4)
        assert "eth1 carries the macvlan of the endpoint alice, in mode passthrough" in refused.stderr


def test_passthrough_finds_macvlans_of_other_namespaces(host: KvmHost, clean: None) -> None:
    with container(host) as pid:
        host.sh(f"ip link add theirs link eth1 netns {pid} type macvlan; nsenter -n -t {pid} ip link set theirs up")
        mac = host.sh(f"nsenter -n -t {pid} ip -br link show theirs").split()[2]
        refused = create(host, "alice", "--mode", "passthrough", "--parent", "eth1", status=4)
        assert f"eth1 is held by {mac}, in other network namespaces" in refused.stderr
        host.sh(f"nsenter -n -t {pid} ip link del theirs")


def test_passthrough_of_the_hosts_own_link_wants_to_be_told(host: KvmHost, clean: None) -> None:
    refused = create(host, "alice", "--mode", "passthrough", "--parent", "eth0", status=5)
    assert "--take-parent" in complaints(refused.stderr)[0][1]


def test_a_parent_without_ipvlan_in_the_kernel(host: KvmHost, clean: None) -> None:
    if host.node.run(["ip", "link", "add", "probe", "link", "eth0", "type", "ipvlan"]).returncode == 0:
        host.sh("ip link del probe")
        pytest.skip("this kernel has ipvlan: tests/kernel has what it does")
    refused = create(host, "alice", *ALICE, "--ipvlan", "l2", status=5)
    ((error, hint),) = complaints(refused.stderr)
    assert "it has no ipvlan" in error
    assert hint == "modprobe ipvlan"


# --- what runs inside -----------------------------------------------------------------------------------------------


def test_exec_passes_everything_through(host: KvmHost, clean: None) -> None:
    create(host, "alice", *ALICE, "--dns", "192.0.2.53", "--dns", "2001:db8::53", "--mtu", 1400)
    assert inside(host, "alice", "printf", "%s|", "a b", "", "--help", "--", "-n") == "a b||--help|--|-n|"
    inside(host, "alice", "sh", "-c", "exit 7", status=7)
    inside(host, "alice", "sh", "-c", "kill -TERM $$", status=128 + signal.SIGTERM)
    assert inside(host, "alice", "cat", "/etc/resolv.conf") == "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"
    assert sorted(inside(host, "alice", "ls", "/sys/class/net").split()) == ["eth0", "lo"]
    assert inside(host, "alice", "cat", "/sys/class/net/eth0/mtu") == "1400\n"
    routes = inside(host, "alice", "ip", "route") + inside(host, "alice", "ip", "-6", "route")
    assert "default via 192.0.2.1 dev eth0" in routes
    assert inside(host, "alice", "ping", "-c", 1, "127.0.0.1")
    # `ip netns` knows it too.
    assert host.sh("ip netns exec macvm-alice ip -br link show eth0").split()[0].startswith("eth0")
    typed = host.node.run(["macvm", "endpoint", "exec", "alice", "--", "cat"], input="typed\n")
    assert typed.stdout == "typed\n"


def test_execs_own_failures(host: KvmHost, clean: None) -> None:
    create(host, "alice")
    for words, status, said in (
        (("alice", "--", "nonesuch"), 127, "command not found"),
        (("alice", "--", "/etc/passwd"), 126, "cannot be executed"),
        (("nobody", "--", "true"), 125, "there is no endpoint 'nobody'"),
    ):
        ((error, _),) = complaints(host.macvm("endpoint", "exec", *words, status=status).stderr)
        assert said in error
    host.sh("ip -n macvm-alice link del eth0")
    ((error, hint),) = complaints(host.macvm("endpoint", "exec", "alice", "true", status=125).stderr)
    assert error == "the endpoint alice has no link any more"
    assert "macvm endpoint delete alice" in hint


def test_shell_on_a_terminal(host: KvmHost, clean: None) -> None:
    create(host, "alice", *ALICE)
    command = ["env", "SHELL=/bin/sh", "PS1=prompt> ", "macvm", "endpoint", "shell", "alice"]
    steps = [("prompt> ", "ip -br addr show eth0\n"), ("192.0.2.41/24", "exit 5\n")]
    done = host.terminal(command, steps)
    assert done.returncode == 5, done.stdout


# --- namespaces of others -------------------------------------------------------------------------------------------


def test_into_a_process_namespace(host: KvmHost, clean: None) -> None:
    with container(host) as pid:
        first = create(host, "alice", *ALICE, "--netns", pid)
        second = create(host, "bob", "--ip", "192.0.2.42/24", "--netns", pid)
        assert (first["namespace"], first["device"], second["device"]) == (str(pid), "eth0", "eth1")
        assert "which stays: 192.0.2.1 is not used" in host.macvm(
            "endpoint", "create", "carol", "--ip", "192.0.2.43/24", "--netns", pid).stderr  # fmt: skip
        assert pings(host, "host", "192.0.2.41")
        # A container may name its links as it likes.
        host.sh(f"nsenter -n -t {pid} ip link set eth0 down; nsenter -n -t {pid} ip link set eth0 name lan0")
        assert [one["device"] for one in host.json("endpoint", "list")] == ["lan0", "eth1", "eth2"]
        host.macvm("endpoint", "delete", "alice", "bob", "carol")
        assert host.sh(f"nsenter -n -t {pid} ls /proc/{pid}/ns; nsenter -n -t {pid} ip -br link | grep -c eth || true"
                       ).split()[-1] == "0"  # fmt: skip
        assert host.sh(f"nsenter -n -t {pid} ip -br link").startswith("lo ")


@pytest.mark.parametrize("where", ["theirs", "/run/netns/theirs"])
def test_into_a_named_namespace_which_stays(host: KvmHost, clean: None, where: str) -> None:
    with named(host):
        made = create(host, "alice", *ALICE, "--netns", where)
        assert (made["namespace"], made["device"]) == (where, "eth2")
        assert pings(host, "LAN", "192.0.2.41")
        host.macvm("endpoint", "delete", "alice")
        left = {line.split()[0].partition("@")[0] for line in host.sh("ip -n theirs -br link").splitlines()}
        assert left == {"lo", "eth0", "eth1"}


def test_another_process_keeps_the_namespace(host: KvmHost, clean: None) -> None:
    """The process that named it has ended, and a child of its lives on in it."""
    with container(host) as pid, host.node.start(["nsenter", "-n", "-t", str(pid), "sleep", "300"]) as child:
        host.sh(f"until [ $(readlink /proc/{child.pid}/ns/net) = $(readlink /proc/{pid}/ns/net) ]; do sleep 0.01; done")
        create(host, "alice", *ALICE, "--netns", pid)
        host.sh(f"kill {pid}; tail --pid={pid} -s 0.01 -f /dev/null")
        assert [one["state"] for one in host.json("endpoint", "list")] == ["up"]
        host.macvm("endpoint", "delete", "alice")
        assert host.sh(f"nsenter -n -t {child.pid} ip -br link").startswith("lo ")


def test_another_namespace_of_that_name_is_left_alone(host: KvmHost, clean: None) -> None:
    """With links of its own, named as the one before had them."""
    with named(host):
        create(host, "alice", *ALICE, "--netns", "theirs")
    with named(host):
        assert [one["state"] for one in host.json("endpoint", "list")] == ["gone"]
        before = host.sh("ip -n theirs -br link")
        host.macvm("endpoint", "delete", "alice")
        assert host.sh("ip -n theirs -br link") == before


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("4000000", 3, "there is no process 4000000"),
        ("nowhere", 3, "there is no network namespace 'nowhere'"),
        ("1", 2, "is this host's own"),
    ],
)
def test_namespaces_that_will_not_do(host: KvmHost, clean: None, where: str, status: int, said: str) -> None:
    refused = create(host, "alice", "--netns", where, status=status)
    assert said in complaints(refused.stderr)[0][0]


def test_a_namespace_that_ended_with_its_container(host: KvmHost, clean: None) -> None:
    with container(host) as pid:
        create(host, "alice", *ALICE, "--netns", pid)
    host.macvm("endpoint", "delete", "alice")


# --- names, addresses and networks ----------------------------------------------------------------------------------


def test_names_and_addresses_are_shared_with_machines(host: KvmHost, clean: None) -> None:
    xml = (
        "<domain type='qemu'><name>theirs</name><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
    )
    host.node.run(["virsh", "define", "/dev/stdin"], input=xml, check=True)
    try:
        refused = create(host, "theirs", status=4)
        assert complaints(refused.stderr)[0][0] == "a machine named theirs exists already"
    finally:
        host.sh("virsh undefine theirs")
    create(host, "alice", *ALICE)
    assert "there is an endpoint alice already" in create(host, "alice", status=4).stderr
    assert "there is an endpoint alice already" in host.macvm("create", "alice", status=4).stderr
    assert "alice is an endpoint" in host.macvm("show", "alice", status=3).stderr
    assert complaints(host.macvm("delete", "-y", "alice", status=3).stderr)[0][1] == "macvm endpoint delete alice"
    assert "192.0.2.41 is held by" in create(host, "bob", "--ip", "192.0.2.41/24", status=4).stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--mode source", 2, "would let nothing through at all"),
        (f"--allow-source {OTHER_MAC}", 2, "is the list of --mode source"),
        ("--mode bridge --ipvlan l2", 2, "exclude one another"),
        ("--ip dhcp", 2, "runs no DHCP client"),
        ("--ip auto", 2, "needs a network"),
        ("--gateway 192.0.2.1", 2, "goes with an address"),
        ("--mode macvtap", 2, "is no macvlan mode"),
        (f"--ipvlan l2 --mac {OTHER_MAC}", 2, "has its parent's MAC"),
        ("--parent nowhere", 3, "there is no link 'nowhere'"),
        ("--parent lo", 5, "is no Ethernet link"),
        ("--ip 192.0.2.2/24", 4, "is this host's own"),
        ("--network nowhere", 3, "there is no network 'nowhere'"),
        ("--mtu 9000", 5, "is above that of eth0"),
    ],
)
def test_what_is_refused(host: KvmHost, clean: None, words: str, status: int, said: str) -> None:
    refused = create(host, "alice", *words.split(), status=status)
    assert said in complaints(refused.stderr)[0][0]


def test_names_that_are_none(host: KvmHost, clean: None) -> None:
    for name in ("-x", "a/b", "x" * 58, "Ä"):
        host.macvm("endpoint", "create", "--", name, status=2)


@pytest.fixture
def network(host: KvmHost) -> Iterator[None]:
    with host.unchanged():
        words = ["--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.64/29", "--subnet", "2001:db8::/64"]
        words += ["--ip-range", "2001:db8::64-2001:db8::6f", "--gateway", "192.0.2.1", "--gateway", "2001:db8::1"]
        host.macvm("network", "create", "lan", "--parent", "eth0", *words, "--dns", "192.0.2.53", "--mtu", 1400)
        yield
        host.delete_endpoints()
        host.macvm("network", "delete", "lan")


def addresses(made: Any) -> list[str]:
    return [address["address"] for address in made["addresses"]]


def test_on_a_network(host: KvmHost, network: None) -> None:
    """The LAN peer has the first address of the pool, which is not given out."""
    host.sh("ip address add 192.0.2.64/24 dev eth0", node=host.lan)
    try:
        done = host.macvm("endpoint", "create", "alice", "--network", "lan", "-o", "json")
    finally:
        host.sh("ip address del 192.0.2.64/24 dev eth0", node=host.lan)
    assert f"192.0.2.64 is in use on the LAN by {PEER_MAC}" in done.stderr
    alice = json.loads(done.stdout)
    # The family without a conflict may get another address, too.
    assert alice["network"] == "lan"
    assert addresses(alice)[0] == "192.0.2.65"
    bob = create(host, "bob", "--network", "lan", "--mode", "source", "--allow-source", PEER_MAC)
    assert (bob["mode"], addresses(bob)[0]) == ("source", "192.0.2.66")
    given = create(host, "carol", "--network", "lan", "--ip", "192.0.2.70", "--no-probe")
    assert addresses(given) == ["192.0.2.70"]
    for address in addresses(alice):
        assert pings(host, "host", address)
        assert pings(host, "LAN", address)
    assert pings(host, "alice", "192.0.2.70")
    assert pings(host, "LAN", addresses(bob)[0])
    assert inside(host, "alice", "cat", "/etc/resolv.conf") == "nameserver 192.0.2.53\n"
    assert inside(host, "alice", "cat", "/sys/class/net/eth0/mtu") == "1400\n"
    assert "default via 2001:db8::1 dev eth0" in inside(host, "alice", "ip", "-6", "route")
    shown = host.json("network", "show", "lan")
    assert {lease["owner"] for lease in shown["leases"]} == {"alice", "bob", "carol"}
    assert shown["macs_on_parent"] == 5, "eth0, the shim, and three endpoints"
    assert [conflict["address"] for conflict in shown["conflicts"]] == ["192.0.2.64"]
    assert "in use by alice" in host.macvm("network", "delete", "lan", status=4).stderr


def test_what_is_said_beside_a_network_must_agree(host: KvmHost, network: None) -> None:
    create(host, "alice", "--network", "lan", "--mode", "bridge", "--parent", "eth0", "--no-probe")
    for words in (("--mode", "private"), ("--parent", "eth1")):
        refused = create(host, "bob", "--network", "lan", *words, status=2)
        assert f"{words[0]} is decided by the network lan" in refused.stderr


def test_the_first_command_ever(fresh_box: Sandbox) -> None:
    """No store yet: the command makes it half way, and reads it then."""
    host = KvmHost(fresh_box)
    assert host.json("endpoint", "list") == []
    host.macvm("endpoint", "delete", "nobody", status=3)
    assert host.json("network", "create", "lan", "--subnet", "192.0.2.0/24")["name"] == "lan"
    assert addresses(create(host, "alice", "--network", "lan", "--no-probe")) == ["192.0.2.3"]


def test_a_machine_and_an_endpoint_on_one_network(fresh_box: Sandbox) -> None:
    host = KvmHost(fresh_box)
    host.macvm("image", "build", "tiny")
    ranges = ("--ip-range", "192.0.2.64/28", "--ip-range", "2001:db8::40/124")
    host.macvm("network", "create", "lan", "--parent", "eth0", *ranges)
    host.macvm("create", "web1", "--memory", "128", "--network", "lan", "--wait")
    machine = {one["address"] for one in host.show("web1")["nics"][0]["addresses"]}
    alice = set(addresses(create(host, "alice", "--network", "lan")))
    assert len(machine) == len(alice) == 2
    assert not machine & alice
    assert answering(host, "alice", {*machine, *HOST, *LAN}) == {*machine, *HOST, *LAN}
    for who in ("host", "LAN"):
        assert answering(host, who, machine | alice) == machine | alice
    listed = [(row["name"], row["kind"]) for row in valid(host.json("list"), "list.json")]
    assert listed == [("web1", "machine"), ("alice", "endpoint")]
    assert host.macvm("list", "-o", "name").stdout == "web1\n"
    host.macvm("delete", "-y", "web1")
    # The shim stays for the endpoint.
    assert answering(host, "host", alice) == alice


# --- lists ----------------------------------------------------------------------------------------------------------


def test_lists(host: KvmHost, clean: None) -> None:
    assert host.macvm("endpoint", "list").stdout.split()[:2] == ["NAME", "STATE"]
    assert host.json("endpoint", "list") == []
    assert host.json("list") == []
    alice = create(host, "alice", *ALICE)
    create(host, "bob", "--mode", "source", "--allow-source", OTHER_MAC)
    found = valid(host.json("endpoint", "list"), "endpoint-list.json")
    assert found[0] == alice
    assert [(one["name"], one["allow_source"]) for one in found] == [("alice", []), ("bob", [OTHER_MAC])]
    assert host.macvm("endpoint", "list", "-o", "name").stdout == "alice\nbob\n"
    rows = valid(host.json("list"), "list.json")
    assert [(row["name"], row["kind"], row["state"]) for row in rows] == [
        ("alice", "endpoint", "endpoint"),
        ("bob", "endpoint", "endpoint"),
    ]
    assert rows[0]["nics"][0]["mac"] == alice["mac"]
    assert [row["name"] for row in host.json("list", "a*")] == ["alice"]
    assert host.json("list", "--lab", "l") == []
    # Names are for `start` and the like, which take machines.
    assert host.macvm("list", "-o", "name").stdout == ""
    assert re.search(r"^alice +endpoint +bridge +eth0 ", host.macvm("list").stdout, re.MULTILINE)


def test_an_ordinary_user_sees_them_without_their_state(host: KvmHost, clean: None) -> None:
    from tests.sandbox.kvm_host import NOBODY

    create(host, "alice", *ALICE)
    found = host.node.run([*NOBODY, "macvm", "endpoint", "list", "-o", "json"], check=True)
    assert [(one["name"], one["state"]) for one in json.loads(found.stdout)] == [("alice", "unknown")]
    refused = host.node.run([*NOBODY, "macvm", "endpoint", "exec", "alice", "--", "true"])
    assert (refused.returncode, "run as root" in refused.stderr) == (125, True)


def test_names_complete(host: KvmHost, clean: None) -> None:
    create(host, "alice", *ALICE)
    words = "_MACVM_COMPLETE=bash_complete COMP_WORDS='macvm endpoint exec a' COMP_CWORD=3 macvm"
    assert host.sh(words) == "plain,alice\n"


def test_dry_runs_do_nothing(host: KvmHost, clean: None) -> None:
    with host.unchanged():
        said = host.macvm("endpoint", "create", "alice", *ALICE, "--dry-run").stdout
        assert "ip netns add macvm-alice\n" in said
        assert "ip -n macvm-alice address add 192.0.2.41/24 dev eth0\n" in said
        assert "dev mv-eth0 src 192.0.2.2 proto 109" in said
    create(host, "alice", *ALICE, "--dns", "192.0.2.53")
    with host.unchanged():
        said = host.macvm("endpoint", "delete", "alice", "--dry-run").stdout
        assert "ip netns delete macvm-alice\n" in said
        assert "ip route del 192.0.2.41 dev mv-eth0 proto 109\n" in said


def test_the_lines_of_a_dry_run_make_it(host: KvmHost, clean: None) -> None:
    words = (*ALICE, "--mtu", "1400", "--mode", "source", "--allow-source", PEER_MAC)
    lines = host.macvm("endpoint", "create", "alice", *words, "--dry-run").stdout
    host.sh(lines)
    assert host.sh("ip netns exec macvm-alice ping -c 1 -W 2 192.0.2.1")
    host.sh("ip netns del macvm-alice")


# --- what is left ---------------------------------------------------------------------------------------------------


def test_gc_releases_what_is_gone(host: KvmHost, clean: None) -> None:
    """As after a reboot."""
    create(host, "alice", *ALICE, "--dns", "192.0.2.53")
    create(host, "bob", "--ip", "192.0.2.42/24")
    host.sh("ip netns del macvm-alice")
    told = "what the endpoint alice held, which is gone"
    assert host.macvm("gc", "--dry-run").stdout == f"# would release: {told}\n"
    said = host.macvm("gc").stderr
    assert said == "released: what the endpoint alice held, which is gone\n"
    assert [one["name"] for one in host.json("endpoint", "list")] == ["bob"]
    create(host, "alice", *ALICE)


def test_delete_is_done_with_several(host: KvmHost, clean: None) -> None:
    create(host, "alice", *ALICE)
    refused = host.macvm("endpoint", "delete", "alice", "nobody", status=3)
    assert complaints(refused.stderr)[0][0] == "there is no endpoint 'nobody'"
    assert [one["state"] for one in host.json("endpoint", "list")] == ["up"], "nothing is deleted before all are known"
    gone = host.json("endpoint", "delete", "alice", "alice")
    assert valid(gone, "endpoint-delete.json") == [{"name": "alice", "result": "deleted"}]


CREATE_STEPS = ("namespace", "link", "inside", "files", "routes")
DELETE_STEPS = ("link", "namespace", "files", "leases", "routes")
MADE = ("endpoint", "create", "alice", *ALICE, "--dns", "192.0.2.53")


def boundaries(action: str, steps: tuple[str, ...]) -> list[str]:
    return [f"{action}:begin:after", *(f"{action}:{step}:{side}" for step in steps for side in ("before", "after"))]


def test_the_boundaries_are_all_there_are(host: KvmHost, clean: None) -> None:
    record = "/run/endpoint-boundaries"
    for words in (MADE, ("endpoint", "delete", "alice")):
        done = macvm(host.node, *words, record=record)
        assert done.returncode == 0, done.stderr
    seen = host.sh(f"cat {record}; rm {record}").split()
    assert seen == [*boundaries("endpoint-create", CREATE_STEPS), *boundaries("endpoint-delete", DELETE_STEPS)]


@pytest.mark.parametrize("point", boundaries("endpoint-create", CREATE_STEPS))
def test_create_killed_leaves_nothing(host: KvmHost, clean: None, point: str) -> None:
    killed = macvm(host.node, *MADE, kill=point)
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr
    assert "unfinished: endpoint-create alice" in host.macvm("endpoint", "list").stderr
    assert "undid: endpoint-create alice" in host.macvm("gc").stderr


@pytest.mark.parametrize("point", boundaries("endpoint-create", CREATE_STEPS))
def test_create_failing_leaves_nothing(host: KvmHost, clean: None, point: str) -> None:
    failed = macvm(host.node, *MADE, fail=point)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.endswith(f"error: made to fail at {point}\nhint: none\n")
    assert host.json("endpoint", "list") == []


@pytest.mark.parametrize("point", boundaries("endpoint-delete", DELETE_STEPS))
def test_delete_killed_is_finished_by_the_next_change(host: KvmHost, clean: None, point: str) -> None:
    assert macvm(host.node, *MADE).returncode == 0
    killed = macvm(host.node, "endpoint", "delete", "alice", kill=point)
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr
    again = host.macvm(*MADE)
    assert "finished: endpoint-delete alice" in again.stderr


@pytest.mark.parametrize("point", boundaries("endpoint-create", ("probe", "others"))[1:])
def test_create_killed_while_the_lan_is_asked(host: KvmHost, network: None, point: str) -> None:
    """The LAN peer has the first address of the pool."""
    host.sh("ip address add 192.0.2.64/24 dev eth0", node=host.lan)
    try:
        words = ("endpoint", "create", "alice", "--network", "lan")
        assert macvm(host.node, *words, kill=point).returncode == 128 + signal.SIGKILL
    finally:
        host.sh("ip address del 192.0.2.64/24 dev eth0", node=host.lan)
    assert "undid: endpoint-create alice" in host.macvm("gc").stderr
    assert host.json("endpoint", "list") == []
    assert host.sh("ls /run/netns; ip -br link show type macvlan") == ""


@pytest.mark.parametrize("point", boundaries("endpoint-create", ("link", "inside"))[1:])
def test_passthrough_killed_gives_its_parent_back(host: KvmHost, clean: None, point: str) -> None:
    words = ("endpoint", "create", "alice", "--mode", "passthrough", "--parent", "eth1")
    assert macvm(host.node, *words, kill=point).returncode == 128 + signal.SIGKILL
    host.macvm("gc")


@pytest.mark.parametrize("point", boundaries("endpoint-create", ("link", "inside"))[1:])
def test_create_killed_in_a_container(host: KvmHost, clean: None, point: str) -> None:
    with container(host) as pid:
        before = host.sh(f"nsenter -n -t {pid} ip addr")
        assert macvm(host.node, *MADE, "--netns", str(pid), kill=point).returncode == 128 + signal.SIGKILL
        host.macvm("gc")
        assert host.sh(f"nsenter -n -t {pid} ip addr") == before


def test_a_link_that_was_never_marked_goes(host: KvmHost, clean: None) -> None:
    """Killed between the two messages that make a link and that mark it."""
    assert macvm(host.node, *MADE, kill="endpoint-create:link:before").returncode == 128 + signal.SIGKILL
    facts = host.sh("sqlite3 /var/lib/macvm/macvm.db 'SELECT facts FROM journal'")
    name = json.loads(json.loads(facts)["endpoint"])["link"]
    host.sh(f"ip link add {name} link eth0 type macvlan")
    host.macvm("gc")
