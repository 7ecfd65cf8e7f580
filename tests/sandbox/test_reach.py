"""Who reaches whom in which mode: what `model.reach` says, held against packets.

The table is measured between macvlans in network namespaces, which share the kernel's code with macvtaps; guests of
libvirt's confirm a pair of each kind.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Node, Sandbox
from provisioner.model.mode import MacvtapMode
from provisioner.model.reach import Place, Station, Verdict, expected
from tests.conftest import Require
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, complaints

pytestmark = pytest.mark.xdist_group("reach")

SHARED = (MacvtapMode.BRIDGE, MacvtapMode.VEPA, MacvtapMode.PRIVATE)
HAIRPIN = (False, True)

# --- the wiring -----------------------------------------------------------------------------------------------------


def first_process(box: Sandbox, node: str) -> int:
    """A node's PID 1 as the switch numbers it, whose PID namespace all others are in."""
    script = f'for p in $(pgrep -P 1); do grep -qsx {node} /proc/$p/root/etc/hostname && echo "$p"; done; true'
    return int(box.switch.run(["bash", "-c", script], check=True).stdout)


def ip(node: Node, *lines: str) -> None:
    node.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", check=True)


def lay_cable(box: Sandbox, device: str) -> None:
    """One more NIC of the KVM host's on the switch, without an address."""
    process = first_process(box, "host1")
    ip(
        box.switch,
        f"link add name to-{device} type veth peer name {device} netns {process}",
        f"link set dev to-{device} master switch0 up",
    )
    ip(box.host(), f"link set dev {device} up")


def set_hairpin(box: Sandbox, on: bool) -> None:
    """On the ports of all the KVM host's NICs."""
    box.hairpin(on)
    ports = json.loads(box.switch.run(["ip", "-j", "link", "show", "master", "switch0"], check=True).stdout)
    names = [port["ifname"] for port in ports if port["ifname"].startswith("to-")]
    state = "on" if on else "off"
    ip(box.switch, *(f"link set dev {name} type bridge_slave hairpin {state}" for name in names))


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """An ordered pair of stations, with the names that the probes know them by."""

    sender: Station
    receiver: Station
    names: tuple[str, str]

    @property
    def where(self) -> str:
        if Place.LAN in (self.sender.kind, self.receiver.kind):
            return "LAN"
        return "one parent" if self.sender.parent == self.receiver.parent else "two parents"


#: No station sends in one row and receives in another, so that none has learned a MAC by another row's packets.
GUESTS = {
    **{f"{mode.value}-{side}": Station(mode, "eth0") for mode in SHARED for side in ("sends", "hears")},
    **{f"{mode.value}-apart": Station(mode, "eth3") for mode in SHARED},
    "passthrough-sends": Station(MacvtapMode.PASSTHROUGH, "eth1"),
    "passthrough-hears": Station(MacvtapMode.PASSTHROUGH, "eth2"),
}
OTHERS = {"host": Station(Place.HOST, "eth0"), "lan": Station(Place.LAN)}
SENDERS = [name for name in GUESTS if name.endswith("sends")]
ROWS = [
    Row({**GUESTS, **OTHERS}[one], {**GUESTS, **OTHERS}[other], (one, other))
    for one, other in chain(
        product(SENDERS, [name for name in GUESTS if name.endswith("hears")]),
        product(SENDERS, [name for name in GUESTS if name.endswith("apart")]),
        product(SENDERS, OTHERS),
        product(OTHERS, [name for name in GUESTS if name.endswith("hears")]),
    )
]

#: What is counted, and what `expected` says of it; a ping is measured over both families.
PROBES = {
    "ping4": "unicast",
    "ping6": "unicast",
    "known": "known_mac",
    "arp": "broadcast",
    "ns": "solicitation",
}

Counts = dict[str, int]
Measured = dict[tuple[Row, bool], Counts]


@dataclass
class Bench:
    """All stations, ready to be measured between."""

    box: Sandbox
    probes: dict[str, dict[str, str]]

    def measure(self, pairs: list[tuple[str, str]], hairpin: bool) -> list[Counts]:
        """How often each probe arrived, pair by pair; nobody knows a neighbour before but the host on its shim."""
        set_hairpin(self.box, hairpin)
        forget = "ip -all netns exec ip neigh flush all; ip neigh flush dev eth0"
        for node in (self.box.host(), self.box.lan):
            node.run(["bash", "-c", forget], check=True)
        words = [sys.executable, Path(__file__).with_name("probes.py")]
        asked = json.dumps({"stations": self.probes, "pairs": pairs})
        counts: list[Counts] = json.loads(self.box.switch.run(words, input=asked, check=True).stdout)
        return counts


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_sandbox() as box:
        yield Bench(box, build_stations(box))


@pytest.fixture(scope="module")
def measured(bench: Bench) -> Measured:
    found: Measured = {}
    for hairpin in HAIRPIN:
        for apart in (False, True):
            # By themselves: here the host asks from its parent, and with hairpin private guests hear that.
            rows = [row for row in ROWS if (row.where == "two parents" and "host" in row.names) == apart]
            counts = bench.measure([row.names for row in rows], hairpin)
            found.update({(row, hairpin): count for row, count in zip(rows, counts, strict=True)})
    return found


def build_stations(box: Sandbox) -> dict[str, dict[str, str]]:
    """A network namespace with a macvlan for each guest, the shim, and what the probes have to know of all."""
    for device in ("eth1", "eth2", "eth3"):
        lay_cable(box, device)
        # As macvm does for a passthrough NIC's parent; here the NICs are made by hand.
        box.host().run(["sysctl", "-w", f"net.ipv4.conf.{device}.arp_ignore=1"], check=True)
    space = {name: f"/proc/{first_process(box, name)}" for name in ("host1", "lan")}
    probes, script = {}, ["set -e"]
    for number, (name, station) in enumerate(GUESTS.items(), 51):
        v4, v6 = f"192.0.2.{number}", f"2001:db8::{number}"
        mode = "passthru" if station.mode is MacvtapMode.PASSTHROUGH else station.mode.value
        script += [
            f"ip netns add {name}",
            f"ip link add station link {station.parent} netns {name} type macvlan mode {mode}",
            f"ip -n {name} address add {v4}/24 dev station",
            f"ip -n {name} address add {v6}/64 dev station nodad",
            f"ip -n {name} link set station up",
            f"mac=$(ip netns exec {name} cat /sys/class/net/station/address)",
        ]
        if station.parent == "eth0":
            script += [f"echo {v4} $mac", f"echo {v6} $mac"]
        netns = f"{space['host1']}/root/run/netns/{name}"
        probes[name] = {"netns": netns, "device": "station", "v4": v4, "v6": v6}
    routes = box.host().run(["bash", "-c", "\n".join(script)], check=True).stdout
    to = [f"--to={address},{mac}" for address, mac in map(str.split, routes.splitlines())]
    box.host().run(["macvm", "shim", "up", "eth0", *to], check=True)
    for name, node, device in (("host", "host1", "mv-eth0"), ("parent", "host1", "eth0"), ("lan", "lan", "eth0")):
        v4, v6 = (box.lan if name == "lan" else box.host()).addresses
        probes[name] = {"netns": f"{space[node]}/ns/net", "device": device, "v4": v4, "v6": v6}
    return probes


def cells(verdict: Verdict) -> dict[str, bool]:
    return {probe: getattr(verdict, field) for probe, field in PROBES.items()}


def table(measured: Measured) -> str:
    """Every row, hairpin off at the left and on at the right; a `!` where the packets and the rule differ."""
    head = "".join(f"{probe:<6}" for probe in PROBES)
    lines = [f"{'':38}{'hairpin off':<32}{'hairpin on'}", f"{'from':<13}{'to':<13}{'on':<12}{head}  {head}"]
    for row in ROWS:
        sides = []
        for hairpin in HAIRPIN:
            right = cells(expected(row.sender, row.receiver, hairpin))
            count = measured[row, hairpin]
            marks = [("yes" if count[p] else "-") + ("!" if bool(count[p]) != right[p] else "") for p in PROBES]
            sides.append("".join(f"{mark:<6}" for mark in marks))
        ends = f"{row.sender.kind.value:<13}{row.receiver.kind.value:<13}{row.where:<12}"
        lines.append(f"{ends}{'  '.join(sides)}".rstrip())
    return "\n".join(lines)


def test_the_rule_says_what_the_packets_do(measured: Measured) -> None:
    print("\n" + table(measured))
    wrong = []
    for (row, hairpin), count in measured.items():
        for probe, right in cells(expected(row.sender, row.receiver, hairpin)).items():
            if bool(count[probe]) != right:
                ends = f"{row.sender.kind.value} to {row.receiver.kind.value} on {row.where}"
                seen = f"expected {'yes' if right else 'no'}, arrived {count[probe]} times"
                wrong.append(f"{ends}, hairpin {'on' if hairpin else 'off'}, {probe}: {seen}")
    assert not wrong, "\n".join(wrong)


def test_nothing_arrives_twice(measured: Measured) -> None:
    twice = {(row.names, hairpin): count for (row, hairpin), count in measured.items() if max(count.values()) > 1}
    assert not twice


def test_private_hears_what_the_host_says_from_the_parent(bench: Bench) -> None:
    """The parent is no macvlan: what comes back is from outside. So a private guest may learn the host's MAC."""
    off, on = (bench.measure([("parent", "private-hears")], hairpin)[0] for hairpin in HAIRPIN)
    assert (off["arp"], off["ns"]) == (0, 0)
    assert (on["arp"], on["ns"]) == (1, 1)


def test_every_pair_was_measured() -> None:
    """Each mode to each on one parent, to the LAN peer and back, and to the host and back."""
    pairs = {(row.sender.kind, row.receiver.kind, row.where) for row in ROWS}
    wanted = {(one, other, "one parent") for one, other in product(SHARED, SHARED)}
    for mode in MacvtapMode:
        alone = mode is MacvtapMode.PASSTHROUGH
        wanted |= {(mode, MacvtapMode.PASSTHROUGH, "two parents"), (mode, Place.LAN, "LAN"), (Place.LAN, mode, "LAN")}
        wanted |= {(MacvtapMode.PASSTHROUGH, other, "two parents") for other in MacvtapMode}
        where = "two parents" if alone else "one parent"
        wanted |= {(mode, Place.HOST, where), (Place.HOST, mode, where)}
    assert wanted <= pairs


# --- guests of libvirt's --------------------------------------------------------------------------------------------

#: Makes a page of the guest's that pings addresses, and says which of them answered. They are told by their last
#: numbers, behind the question mark.
GUEST = """#!/bin/sh
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/ping <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\\n\\n'
for number in $(echo "$QUERY_STRING" | tr , ' '); do
    for address in "192.0.2.$number" "2001:db8::$number"; do
        (ping -c2 -W2 "$address" > /dev/null 2>&1 && echo "$address yes" || echo "$address no") &
    done
done
wait
END
sed 's/ping -c2 .*/echo "$address $(ping -c8 -W2 "$address" | grep -c seq=)") \\&/' /www/cgi-bin/ping > /www/cgi-bin/long
chmod 755 /www/cgi-bin/ping /www/cgi-bin/long
echo ready > /www/ready
"""

#: The same on a node, whose addresses are its arguments. Through a pipe: a node's standard output is a file in memory,
#: and there two that write at once may overwrite one another.
NODE = """
{
    for address; do
        (ping -c2 -W2 "$address" > /dev/null && echo "$address yes" || echo "$address no") &
    done
    wait
} | cat
"""

ADDRESSES: dict[str, tuple[MacvtapMode | Place, str, tuple[str, str]]] = {
    "anna": (MacvtapMode.BRIDGE, "eth0", ("192.0.2.61", "2001:db8::61")),
    "ben": (MacvtapMode.BRIDGE, "eth0", ("192.0.2.62", "2001:db8::62")),
    "vera": (MacvtapMode.VEPA, "eth0", ("192.0.2.63", "2001:db8::63")),
    "pia": (MacvtapMode.PRIVATE, "eth0", ("192.0.2.64", "2001:db8::64")),
    "otto": (MacvtapMode.PASSTHROUGH, "eth1", ("192.0.2.65", "2001:db8::65")),
    "host": (Place.HOST, "eth0", ("192.0.2.2", "2001:db8::2")),
    "lan": (Place.LAN, "", ("192.0.2.1", "2001:db8::1")),
}
RUNNING = {name: facts for name, facts in ADDRESSES.items() if isinstance(facts[0], MacvtapMode)}


@pytest.fixture(scope="module")
def guests() -> Iterator[KvmHost]:
    """A guest in each mode and a second one in bridge mode, all booted, on a host of their own."""
    with make_sandbox() as box:
        host = KvmHost(box)
        lay_cable(box, "eth1")
        host.macvm("image", "build", "tiny")
        host.node.run(["tee", "/run/guest"], input=GUEST, check=True)
        for name, (mode, parent, (v4, v6)) in RUNNING.items():
            words = ["--mode", mode.value, "--parent", parent, "--ip", f"{v4}/24", "--ip", f"{v6}/64"]
            host.macvm("create", name, "--memory", 160, *words, "--user-data", "/run/guest")
        for _, _, (v4, _) in RUNNING.values():
            host.page(v4, "ready", node=host.lan, seconds=150)
        yield host


def answering(host: KvmHost, one: str, others: list[str]) -> set[str]:
    """Those who answer its pings on all of their addresses; none may do so on some alone."""
    asked = {address: other for other in others for address in ADDRESSES[other][2]}
    if one in RUNNING:  # told to by way of the LAN, which everyone reaches
        numbers = ",".join(ADDRESSES[other][2][0].rpartition(".")[2] for other in others)
        words = ["curl", "-sSgf", "-m", "60", f"http://{ADDRESSES[one][2][0]}/cgi-bin/ping?{numbers}"]
        said = host.lan.run(words, check=True, timeout=70).stdout
    else:
        node = host.node if one == "host" else host.lan
        said = node.run(["bash", "-c", NODE, "ping", *asked], check=True).stdout
    answers = dict(line.split() for line in said.splitlines())
    assert set(answers) == set(asked), said
    yes, no = ({asked[address] for address in asked if answers[address] == word} for word in ("yes", "no"))
    assert not yes & no, f"over one family alone, from {one}: {answers}"
    return yes


@pytest.mark.parametrize("hairpin", HAIRPIN, ids=["hairpin-off", "hairpin-on"])
def test_guests_reach_whom_the_rule_says(guests: KvmHost, hairpin: bool) -> None:
    assert isinstance(guests.nodes, Sandbox)
    set_hairpin(guests.nodes, hairpin)
    # macvm routes nothing to a private guest through the shim: the table has that pair, and the next test the parent's.
    elsewhere = [{"host", "pia"}] if hairpin else []
    asked = {one: [other for other in ADDRESSES if other != one and {one, other} not in elsewhere] for one in ADDRESSES}
    wrong = []
    for one, others in asked.items():
        answered = answering(guests, one, others)
        for other in others:
            right = expected(Station(*ADDRESSES[one][:2]), Station(*ADDRESSES[other][:2]), hairpin).unicast
            if (other in answered) != right:
                ends = " to ".join(f"{name} ({ADDRESSES[name][0].value})" for name in (one, other))
                wrong.append(f"{ends}: expected {'an answer' if right else 'none'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("hairpin", HAIRPIN, ids=["hairpin-off", "hairpin-on"])
def test_the_host_reaches_a_private_guest_through_its_parent_with_hairpin(guests: KvmHost, hairpin: bool) -> None:
    assert isinstance(guests.nodes, Sandbox)
    set_hairpin(guests.nodes, hairpin)
    assert "dev eth0 " in guests.sh(f"ip route get {ADDRESSES['pia'][2][0]}")
    assert ("pia" in answering(guests, "host", ["pia"])) == hairpin


def test_a_guest_reaches_the_host_while_another_is_killed(guests: KvmHost) -> None:
    """It pings eight times, once a second; meanwhile the other loses its power, its route, and comes back."""
    url = f"http://{ADDRESSES['anna'][2][0]}/cgi-bin/long?2"
    with guests.lan.start(["curl", "-sSgf", "-m", "60", url]) as pings:
        guests.sh("virsh destroy ben")
        guests.macvm("shim", "up", "eth0")
        guests.macvm("start", "ben")
        assert pings.wait(60) == 0, pings.stderr
        assert sorted(pings.stdout.splitlines()) == ["192.0.2.2 8", "2001:db8::2 8"]
    guests.page(ADDRESSES["ben"][2][0], "ready", node=guests.lan, seconds=150)


def test_a_guest_of_virt_installs_and_the_host_reach_one_another_by_shim_up(guests: KvmHost, require: Require) -> None:
    """On a disk and a seed of macvm's, so that it does what it is told to."""
    require(guests.node.run(["which", "virt-install"]).returncode == 0, "virt-install is not installed (virtinst)")
    v4, v6 = "192.0.2.66", "2001:db8::66"
    words = ["--ip", f"{v4}/24", "--ip", f"{v6}/64", "--mac", "52:54:00:00:00:66", "--user-data", "/run/guest"]
    guests.macvm("create", "model", "--no-start", *words)
    guests.sh(f"""cp /var/lib/macvm/machines/{guests.show("model")["uuid"]}/* /var/lib/libvirt/images
        macvm delete --yes model; cd /var/lib/libvirt/images
        virt-install --name theo --memory 160 --virt-type qemu --import --disk disk.qcow2 --disk seed.iso,device=cdrom \
        --network type=direct,source=eth0,source.mode=bridge,mac=52:54:00:00:00:66,model=virtio --graphics none \
        --noautoconsole --osinfo detect=off,require=off""", timeout=90)  # fmt: skip
    guests.page(v4, "ready", node=guests.lan, seconds=150)
    assert "dev eth0 " in guests.sh(f"ip route get {v4}"), "it has no way through the shim yet"
    (found,) = guests.json("shim", "up", "eth0")
    theirs = [(one["address"], one["source"], one["route"]) for one in found["guests"] if one["owner"] == "theo"]
    assert sorted(theirs) == [(v4, "wire", True), (v6, "wire", True)]
    said = guests.sh(f"ping -q -c2 -W2 {v4} && ping -q -c2 -W2 {v6}")
    assert said.count(" 0% packet loss") == 2
    said = guests.sh(f"curl -sSgf -m 60 http://{v4}/cgi-bin/ping?2", node=guests.lan)
    assert sorted(said.splitlines()) == ["192.0.2.2 yes", "2001:db8::2 yes"]
    guests.sh("virsh destroy theo; virsh undefine theo; macvm shim up eth0; rm /var/lib/libvirt/images/*")


def test_the_lan_keeps_the_host_beside_a_passthrough_guest(guests: KvmHost) -> None:
    """The guest's parent is on the host's own LAN, and would answer ARP for the host with the guest's MAC."""
    ask = "ip neigh flush all; ping -c3 -i0.2 -W1 192.0.2.2 >/dev/null; ip neigh show 192.0.2.2"
    right = guests.sh("cat /sys/class/net/eth0/address").strip()
    assert right in guests.sh(ask, node=guests.lan)
    assert guests.sh("sysctl -n net.ipv4.conf.eth1.arp_ignore").strip() == "1"
    answers = "tcpdump -lni eth0 arp src host 192.0.2.2 -e 2>/dev/null & ip neigh flush all; sleep 1; "
    answers += "for n in 1 2 3 4 5; do ping -c1 -W1 192.0.2.2 >/dev/null; ip neigh flush all; done; sleep 1; kill %1"
    macs = set(re.findall(r"([0-9a-f:]{17}) > ", guests.sh(answers, node=guests.lan)))
    assert macs == {right}, "somebody else answered for the host"


# --- who holds the parent -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spare() -> Iterator[KvmHost]:
    """A host with a second NIC, eth1, that nobody uses."""
    with make_sandbox() as box:
        lay_cable(box, "eth1")
        host = KvmHost(box)
        host.macvm("image", "build", "tiny")
        host.create("first", "--no-start", "--ip", "none")  # makes the files that macvm makes once
        host.clear()
        yield host


@pytest.fixture
def parent(spare: KvmHost) -> Iterator[KvmHost]:
    yield spare
    spare.clear()
    spare.sh("ip link delete plain 2>/dev/null || true")


def held_by(said: str) -> str:
    """The error that the parent is held, once it is one that can be understood."""
    assert "busy" not in said.lower(), said
    assert "invalid argument" not in said.lower(), said
    ((error, hint),) = complaints(said)
    assert error.startswith("eth1 is held by "), error
    assert error.endswith("passthrough shares its parent with nobody"), error
    assert "choose another --parent" in hint
    return error


@contextmanager
def nothing_made(host: KvmHost) -> Iterator[None]:
    """Coarser than `unchanged`: a guest that has just started still changes its own link's state."""
    script = (
        "ls /sys/class/net; virsh list --all; virsh dumpxml --inactive late 2>&1; find /var/lib/macvm ! -name '*.db-*'"
    )
    before = host.sh(script)
    yield
    assert host.sh(script) == before


PASSTHROUGH, BRIDGE = ("--mode", "passthrough", "--parent", "eth1"), ("--mode", "bridge", "--parent", "eth1")


@pytest.mark.parametrize(
    ("first", "second"),
    [(BRIDGE, PASSTHROUGH), (PASSTHROUGH, BRIDGE), (PASSTHROUGH, PASSTHROUGH)],
    ids=["then-passthrough", "passthrough-first", "passthrough-twice"],
)
class TestHeldByAMachine:
    def test_create(self, parent: KvmHost, first: tuple[str, ...], second: tuple[str, ...]) -> None:
        parent.create("holder", *first, "--ip", "none")
        (nic,) = parent.show("holder")["nics"]
        with nothing_made(parent):
            done = parent.create("late", *second, "--ip", "none", status=4)
        assert f"{nic['device']} ({nic['mode']})" in held_by(done.stderr)

    def test_start(self, parent: KvmHost, first: tuple[str, ...], second: tuple[str, ...]) -> None:
        parent.create("late", *second, "--ip", "none", "--no-start")
        parent.create("holder", *first, "--ip", "none")
        (nic,) = parent.show("holder")["nics"]
        with nothing_made(parent):
            done = parent.macvm("start", "late", status=4)
        assert f"{nic['device']} ({nic['mode']})" in held_by(done.stderr)

    def test_attach(self, parent: KvmHost, first: tuple[str, ...], second: tuple[str, ...]) -> None:
        parent.create("holder", *first, "--ip", "none")
        parent.create("late", "--ip", "none")
        (nic,) = parent.show("holder")["nics"]
        with nothing_made(parent):
            done = parent.macvm("nic", "attach", "late", *second, "--ip", "none", status=4)
        assert f"{nic['device']} ({nic['mode']})" in held_by(done.stderr)


@pytest.mark.parametrize(("mode", "second"), [("bridge", PASSTHROUGH), ("passthru", BRIDGE), ("passthru", PASSTHROUGH)])
def test_held_by_a_link_of_nobodys(parent: KvmHost, mode: str, second: tuple[str, ...]) -> None:
    parent.sh(f"ip link add plain link eth1 type macvlan mode {mode}")
    with parent.unchanged():
        done = parent.create("late", *second, "--ip", "none", status=4)
    assert f"plain ({mode.replace('passthru', 'passthrough')})" in held_by(done.stderr)
