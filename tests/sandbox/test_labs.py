"""Labs brought up, changed and taken down on a real host."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.sandbox.kvm_host import KvmHost, complaints
from tests.sandbox.test_json import valid
from tests.sandbox.test_kill import DRIVER
from tests.sandbox.test_reaching import until

pytestmark = pytest.mark.xdist_group("labs")

DEFAULTS = "defaults: {image: tiny, memory: 128M, virt_type: qemu, ssh_keys: []}\n"
LAN = "networks: {lan: {parent: eth0, subnets: [192.0.2.0/24]}}\n"
TWO = f"lab: two\n{DEFAULTS}{LAN}vms: {{web: {{count: 2, start: false, nics: [{{network: lan}}]}}}}\n"

#: Nobody's, of a name that the lab has.
THEIRS = '<domain type="qemu"><name>web-2</name><memory unit="MiB">16</memory><os><type>hvm</type></os></domain>'


class Lab:
    """A lab file, and `macvm lab` with it."""

    def __init__(self, host: KvmHost, path: Path) -> None:
        self.host = host
        self.path = path

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def up(self, *words: str, status: int = 0, file: str = "") -> str:
        """What it says to standard error."""
        if file:
            self.write(file)
        return self.host.macvm("lab", "up", self.path, "--yes", *words, status=status).stderr

    def plan(self, file: str = "") -> list[str]:
        """Each change in short; `--exit-code` says whether there are any."""
        if file:
            self.write(file)
        done = self.host.node.run(["macvm", "lab", "plan", str(self.path), "--exit-code", "-o", "json"])
        changes = valid(json.loads(done.stdout), "lab-plan.json")["changes"]
        assert done.returncode == (8 if changes else 0), done.stderr
        return [" ".join(filter(None, (one["what"], one["kind"], one["machine"], one["words"]))) for one in changes]

    def down(self, name: str) -> None:
        self.host.macvm("lab", "down", name, "--yes")


@pytest.fixture
def lab(host: KvmHost, tmp_path: Path) -> Iterator[Lab]:
    """Whatever a lab does, its `down` takes back."""
    made = Lab(host, tmp_path / "macvm.yaml")
    made.up(file="lab: nothing\nvms: {}\n")  # which makes the key that stays
    made.down("nothing")
    with host.unchanged():
        yield made
        # Of a test that failed: the next one begins with nothing all the same.
        for left in host.json("lab", "list"):
            made.down(left["name"])
            pytest.fail(f"the lab {left['name']} was left")


def leases(host: KvmHost) -> dict[str, list[str]]:
    return {
        one["name"]: [address["address"] for nic in one["nics"] for address in nic["addresses"]]
        for one in host.json("list")
    }


def pid(host: KvmHost, name: str) -> str:
    return host.sh(f"cat /run/libvirt/qemu/{name}.pid")


def test_up_is_up_and_a_second_has_nothing_to_do(lab: Lab) -> None:
    assert lab.plan(TWO)[0] == "+ network bridge on eth0, 192.0.2.0/24"
    assert lab.up().endswith("two: up\n")
    assert lab.plan() == []
    assert lab.up() == "two: nothing to change\n"
    assert sorted(leases(lab.host)) == ["web-1", "web-2"]
    listed = valid(lab.host.json("lab", "list"), "lab-list.json")
    assert [(one["name"], one["machines"], one["path"]) for one in listed] == [("two", 2, str(lab.path))]
    lab.path.unlink()
    lab.down("two")


def test_what_can_change_live_does_without_a_restart(lab: Lab) -> None:
    """The guest's QEMU is the same one all the time."""
    host = lab.host
    base = f"lab: live\n{DEFAULTS}{LAN}"
    lab.up("--wait", file=f"{base}vms: {{web: {{nics: [{{network: lan, ip: 192.0.2.11}}], labels: {{role: web}}}}}}\n")
    before = pid(host, "web")
    more = (
        "networks: {lan: {parent: eth0, mode: vepa, subnets: [192.0.2.0/24]}, "
        "two: {parent: eth0, subnets: [198.51.100.0/24]}}\n"
    )
    nics = "[{network: lan, ip: 192.0.2.12}, {network: two}]"
    lab.write(f"lab: live\n{DEFAULTS}{more}vms: {{web: {{nics: {nics}, labels: {{role: app}}, autostart: true}}}}\n")
    assert lab.plan() == [
        "~ network vepa on eth0, 192.0.2.0/24",
        "+ network bridge on eth0, 198.51.100.0/24",
        "~ vm labels",
        "~ vm autostart",
        "~ nic web vepa on lan (192.0.2.12)",
        "+ nic web bridge on two (auto)",
    ]
    lab.up()
    assert lab.plan() == []
    machine = host.show("web")
    assert [nic["kernel_mode"] for nic in machine["nics"]] == ["vepa", "bridge"]
    assert machine["labels"] == {"role": "app"}
    lab.up(file=f"{base}vms: {{web: {{nics: [{{network: lan}}]}}}}\n")
    assert [nic["kernel_mode"] for nic in host.show("web")["nics"]] == ["bridge"]
    assert pid(host, "web") == before
    # By hand, behind macvm's back.
    mac = host.show("web")["nics"][0]["mac"]
    host.sh(f"virsh domif-setlink web {mac} down; virsh setmem web 65536 --config")
    host.sh("virsh attach-interface web direct eth0 --model virtio --config")
    assert lab.plan() == ["~ vm definition", "- nic web vepa on eth0", "~ nic web bridge on lan (auto)"]
    assert lab.up(status=7).endswith("needs --restart\nhint: macvm lab up --restart\n")
    host.macvm("stop", "--force", "web")
    lab.up()
    assert lab.plan() == []
    lab.down("live")


def test_what_is_lost_behind_macvm_shows_and_comes_back(lab: Lab) -> None:
    """A route, the shim, the macvtap of a guest that runs, and its definition; the guest runs on."""
    # To the second NIC's address the host never has a route: it has none of its own there to speak from.
    host, only = lab.host, "vms: {web: {nics: [{ip: 192.0.2.11/24}, {ip: 203.0.113.9/24}]}}\n"
    lab.up(file=f"lab: lost\n{DEFAULTS}{only}")
    host.page("192.0.2.11", seconds=120)  # one that still boots lets go of no NIC
    first = pid(host, "web")
    nic, _ = host.show("web")["nics"]
    for lose, change in (
        ("ip route del 192.0.2.11", "~ shim shim"),
        ("ip link del mv-eth0", "~ shim shim"),
        (f"ip link del {nic['device']}", "~ nic web bridge on eth0 (192.0.2.11)"),
        ("virsh undefine web", "~ vm definition"),
    ):
        host.sh(lose)
        assert lab.plan() == [change], lose
        things = host.json("lab", "status", lab.path)["things"]
        assert [bool(one["differs"]) for one in things].count(True) == 1
        lab.up()
        assert lab.plan() == [], lose
        assert "dev mv-eth0" in host.sh("ip route get 192.0.2.11")
    after = next(one for one in host.show("web")["nics"] if one["mac"] == nic["mac"])
    assert (after["link"], pid(host, "web")) == ("up", first)
    # And with its definition gone it can be taken down.
    host.sh("virsh undefine web")
    lab.down("lost")


def test_an_image_that_is_not_to_be_had_is_seen_by_the_plan(lab: Lab) -> None:
    lab.write(
        "lab: wrong\ndefaults: {image: nosuch}\nvms:\n  a: {}\n  b: {image: 'debian:99'}\n"
        "  c: {image: https://example.org/x.qcow2, count: 3}\n  d: {image: tiny}\n"
    )
    for doing in ("plan", "up"):
        said = lab.host.macvm("lab", doing, lab.path, status=3).stderr
        assert [error.removeprefix(f"{lab.path}:") for error, _ in complaints(said)] == [
            "2:19: there is no image 'nosuch' here",
            "5:14: there is no image 'debian:99' here",
            "6:14: nothing says what 'https://example.org/x.qcow2' should be: it has no checksum",
        ]
        # A command is the command line's, and all else the file's.
        assert "macvm image import FILE|URL NAME --checksum sha256:" in said
        assert "hint: add checksum sha256:…, from its publisher; or insist with insecure_no_checksum\n" in said


def test_a_pool_that_is_too_small_is_seen_by_the_plan(lab: Lab) -> None:
    subnets = "subnets: [{subnet: 192.0.2.0/24, range: 192.0.2.67-192.0.2.69}, {subnet: '2001:db8::/64'}]"
    vms = "vms:\n  a: {nics: [{network: lan, ip: 192.0.2.68}]}\n  b: {count: 3, nics: [{network: lan}]}\n"
    lab.write(f"lab: wrong\nnetworks:\n  lan: {{parent: eth0, {subnets}}}\n{vms}")
    ((error, _),) = complaints(lab.host.macvm("lab", "plan", lab.path, status=2).stderr)
    assert error == f"{lab.path}:3:8: the pool of lan has room for 2 NICs in IPv4, and 3 are to choose from it"
    lab.write(lab.path.read_text().replace("count: 3", "count: 2"))
    lab.host.macvm("lab", "plan", lab.path)


def test_what_this_host_finds_wrong_has_its_place_too(lab: Lab) -> None:
    lab.write(
        "lab: wrong\nvms:\n"
        "  a: {nics: [{ip: 192.0.2.11/24}]}\n"
        "  b: {count: 2, nics: [{ip: none}, {parent: eth0, ip: 192.0.2.20/24, gateway: 10.9.9.9}]}\n"
        "  c: {nics: [{parent: eth0, ip: 192.0.2.11/24}]}\n"
        "  d: {nics: [{parent: eth7, ip: 192.0.2.12/24}, {ip: 10.0.0.1}]}\n"
    )
    said = lab.up(status=2).splitlines()
    assert [line.removeprefix(f"error: {lab.path}:") for line in said if "hint" not in line] == [
        "4:36: gateway 10.9.9.9 is in no subnet of 192.0.2.20/24",
        "4:36: gateway 10.9.9.9 is in no subnet of 192.0.2.21/24",
        "5:14: the address 192.0.2.11 is a's already",
        "6:14: there is no link eth7 on this host",
        "6:49: 10.0.0.1 has no length, and is in no subnet of eth0 (192.0.2.0/24, 2001:db8::/64)",
    ]
    assert "hint: say it: ip 10.0.0.1/24" in said


def test_a_lab_that_there_is_none_of_is_named(lab: Lab) -> None:
    """Beside the file of another lab, which is not up either."""
    lab.write(TWO)
    said = lab.host.sh(f"cd {lab.path.parent}; macvm lab down nowhere --yes 2>&1 || true")
    assert said.startswith("error: there is no lab 'nowhere', nor is two of macvm.yaml up\n")


def test_restart_and_recreate_only_where_they_are_said(lab: Lab) -> None:
    host = lab.host
    text = f"lab: again\n{DEFAULTS}{LAN}vms: {{web: {{nics: [{{network: lan}}]}}}}\n"
    lab.up("--wait", file=text)
    before, disk = pid(host, "web"), host.sh("stat -c %i /var/lib/macvm/machines/*/disk.qcow2")
    larger = text.replace("memory: 128M", "memory: 160M")
    assert "needs --restart" in lab.up(file=larger, status=7)
    assert pid(host, "web") == before
    lab.up("--restart")
    assert lab.plan() == []
    assert pid(host, "web") != before
    assert host.sh("stat -c %i /var/lib/macvm/machines/*/disk.qcow2") == disk
    assert "<memory unit='KiB'>163840</memory>" in host.sh("virsh dumpxml web")
    mac = host.show("web")["nics"][0]["mac"]
    other = larger.replace("ssh_keys: []", "ssh_keys: [], password: 'other'")
    assert "needs --recreate" in lab.up("--restart", file=other, status=7)
    assert host.sh("stat -c %i /var/lib/macvm/machines/*/disk.qcow2") == disk
    asked = host.node.run(["macvm", "lab", "up", str(lab.path), "--recreate"])
    assert (asked.returncode, asked.stderr.splitlines()[-1]) == (2, "hint: say --yes")
    lab.up("--recreate")
    assert lab.plan() == []
    assert host.show("web")["nics"][0]["mac"] == mac
    lab.down("again")


def test_one_machine_of_several(lab: Lab) -> None:
    lab.write(TWO)
    lab.up("web-2")
    assert list(leases(lab.host)) == ["web-2"]
    assert complaints(lab.up("web-3", status=3))[0][0] == "two has no web-3"
    lab.up()
    lab.host.macvm("lab", "down", "two", "web-1", "--yes")
    assert list(leases(lab.host)) == ["web-2"]
    assert lab.host.json("lab", "list")[0]["networks"] == 1
    lab.down("two")


def test_reset_and_disks_that_stay(lab: Lab) -> None:
    host = lab.host
    lab.up(file=TWO)
    before = host.sh("stat -c %i /var/lib/macvm/machines/*/disk.qcow2").split()
    host.macvm("lab", "reset", "two", "--yes")
    after = host.sh("stat -c %i /var/lib/macvm/machines/*/disk.qcow2").split()
    assert len(after) == 2
    assert not set(before) & set(after)
    kept = host.json("lab", "down", "two", "--yes", "--keep-disks")["kept"]
    assert len(kept) == 2
    host.sh(f"rm {' '.join(kept)}; rmdir /var/lib/macvm/machines/*")


def test_a_failure_undoes_one_machine_and_the_others_go_on(lab: Lab) -> None:
    lab.write(TWO.replace("count: 2", "count: 4"))
    point = "fail=create:define:after"
    failed = lab.host.node.run([sys.executable, DRIVER, point, "--", "lab", "up", str(lab.path), "--jobs", "2"])
    assert failed.returncode == 7
    (said,) = re.findall(r"^error: (web-\d): made to fail at create:define:after$", failed.stderr, re.MULTILINE)
    assert sorted({*leases(lab.host), said}) == ["web-1", "web-2", "web-3", "web-4"]
    assert said not in leases(lab.host)
    assert lab.up().endswith("two: up\n")
    assert lab.plan() == []
    lab.down("two")


def test_ctrl_c_stops_at_a_step_and_up_goes_on_from_there(lab: Lab) -> None:
    host = lab.host
    lab.write(TWO.replace("count: 2", "count: 6"))
    command = [
        sys.executable,
        str(DRIVER),
        "pause=create:define:after@3:10",
        "--",
        "lab",
        "up",
        str(lab.path),
        "--jobs",
        "2",
    ]
    with host.node.start(command) as running:
        deadline = time.monotonic() + 60
        while len(host.sh("virsh list --all --name").split()) < 3:
            assert time.monotonic() < deadline
        running.signal(signal.SIGINT)
        assert running.wait(60) == 7, running.stderr
    left = leases(host)
    assert 2 <= len(left) < 6
    assert host.sh("sqlite3 /var/lib/macvm/macvm.db 'SELECT * FROM journal'") == ""
    lab.up()
    assert {name: held for name, held in leases(host).items() if name in left} == left
    assert lab.plan() == []
    lab.down("two")


def test_of_two_ups_one_waits_and_says_for_whom(lab: Lab) -> None:
    host = lab.host
    lab.up(file=TWO)
    lab.write(TWO.replace("count: 2", "count: 3"))
    command = [sys.executable, str(DRIVER), "pause=create:define:after:4", "--", "lab", "up", str(lab.path)]
    with host.node.start(command) as first:
        deadline = time.monotonic() + 60
        while "web-3" not in host.sh("virsh list --all --name"):
            assert time.monotonic() < deadline
        second = lab.up()
        assert first.wait(60) == 0, first.stderr
    assert re.match(
        r"waiting for macvm lab up two, process \d+, since \d\d:\d\d:\d\d\ntwo: nothing to change\n", second
    )
    lab.down("two")


#: Has a lab's lock, as a command that changes it does.
HOLD = """
import time
from provisioner.context import Options, open_context
with open_context(Options(), readonly=True).lock("lab-two"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(host: KvmHost) -> Iterator[None]:
    with host.node.start([sys.executable, "-c", HOLD]) as holder:
        until(lambda: "held" in holder.stdout, 60)
        yield


def test_where_nothing_is_to_change_nothing_is_written(lab: Lab) -> None:
    lab.up(file=TWO)
    before = lab.host.sh("sqlite3 /var/lib/macvm/macvm.db .dump")
    assert lab.up() == "two: nothing to change\n"
    assert lab.host.sh("sqlite3 /var/lib/macvm/macvm.db .dump") == before
    # Whoever changes it may be about to take it away.
    with contextlib.ExitStack() as stack:
        with held(lab.host):
            waiting = stack.enter_context(lab.host.node.start(["macvm", "lab", "up", str(lab.path)]))
            until(lambda: "waiting for macvm lab up two, process " in waiting.stderr, 60)
        assert waiting.wait(60) == 0
        assert waiting.stderr.endswith("two: nothing to change\n")
    lab.down("two")


def test_what_was_seen_before_a_wait_is_looked_at_again(lab: Lab) -> None:
    host = lab.host
    lab.write(TWO)
    with contextlib.ExitStack() as stack:
        with held(host):
            waiting = stack.enter_context(host.node.start(["macvm", "lab", "up", str(lab.path)]))
            until(lambda: "waiting for" in waiting.stderr, 60)
            host.sh(f"virsh define /dev/stdin <<< '{THEIRS}'")
        assert waiting.wait(60) == 4, waiting.stderr
        [(error, _)] = complaints(waiting.stderr.partition("\n")[2])
    assert error.startswith("there is a VM web-2 already")
    host.sh("virsh undefine web-2")


def test_what_others_made_is_used_and_left(lab: Lab) -> None:
    host = lab.host
    host.macvm("network", "create", "lan", "--parent", "eth0", "--subnet", "192.0.2.0/24")
    host.create("web-9", "--no-start", "--network", "lan")
    lab.up(file=TWO)
    lab.down("two")
    assert list(leases(host)) == ["web-9"]
    host.macvm("delete", "--yes", "web-9")
    host.macvm("network", "delete", "lan")


def test_a_network_that_others_use_by_now_is_named_and_stays(lab: Lab) -> None:
    host = lab.host
    lab.up(file=TWO)
    host.create("guest", "--no-start", "--network", "lan")
    done = host.macvm("lab", "down", "two", "--yes", status=7)
    assert "lan: the network lan is in use by guest" in done.stderr
    host.macvm("delete", "--yes", "guest")
    lab.down("two")


def test_json_and_events(lab: Lab) -> None:
    lab.write(TWO)
    done = lab.host.macvm("lab", "up", lab.path, "-o", "json")
    assert valid(json.loads(done.stdout), "lab-up.json")["lab"] == "two"
    assert sorted(json.loads(done.stdout)["done"]) == ["lan", "web-1", "web-2"]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    for event in events:
        valid(event, "lab-event.json")
    assert [one["text"] for one in events if one["name"] == "web-1" and one["state"] == "step"][:2] == ["disk", "seed"]
    dry = lab.host.macvm("lab", "down", "two", "--dry-run").stdout
    assert "# the store forgets the network lan" in dry
    gone = lab.host.macvm("lab", "down", "two", "--yes", "-o", "json")
    assert sorted(valid(json.loads(gone.stdout), "lab-down.json")["done"]) == ["lan", "web-1", "web-2"]


def test_a_terminal_shows_each_machine_as_it_goes(lab: Lab) -> None:
    lab.write(TWO)
    done = lab.host.terminal(["macvm", "lab", "up", str(lab.path)], [("two: up", "")])
    assert done.returncode == 0, done.stdout
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout)
    assert re.search(r"NAME +STEP +TIME +ADDRESS", said)
    assert re.search(r"web-1 +done +[0-9.]+ s +192\.0\.2\.\d+", said)
    lab.down("two")


NIC = st.sampled_from(
    [
        "{network: lan}",
        "{network: two}",
        "{network: lan, ip: 192.0.2.3}",
        "{network: lan, ip: 192.0.2.4}",
        "{parent: eth0, mode: private}",
        "{parent: eth0, mode: vepa, ip: 192.0.2.5/24}",
        "{parent: eth0, mac: '52:54:00:aa:00:01'}",
    ]
)


@st.composite
def files(draw: st.DrawFn) -> str:
    """Labs of at most three machines, which are never started, two networks and an endpoint."""
    mode = draw(st.sampled_from(["bridge", "vepa"]))
    subnet = draw(st.sampled_from(["198.51.100.0/24", "203.0.113.0/24"]))
    networks = f"networks: {{lan: {{parent: eth0, mode: {mode}, subnets: [192.0.2.0/24]}}, two: {{parent: eth0, subnets: [{subnet}]}}}}\n"
    left = {"{network: lan, ip: 192.0.2.3}", "{network: lan, ip: 192.0.2.4}", "{parent: eth0, mode: vepa, ip: 192.0.2.5/24}",
            "{parent: eth0, mac: '52:54:00:aa:00:01'}"}  # fmt: skip
    machines = ""
    for name in draw(st.sampled_from(["", "a", "ab", "bc", "abc"])):
        nics = []
        for nic in draw(st.lists(NIC, max_size=2)):
            if (
                nic.startswith("{network: lan}")
                or nic == "{network: two}"
                or nic == "{parent: eth0, mode: private}"
                or nic in left
            ):
                nics.append(nic)
                left.discard(nic)
        memory = draw(st.sampled_from(["128M", "160M"]))
        more = draw(st.sampled_from(["", ", labels: {role: x}", ", autostart: true", ", password: y", ", disk: 2G"]))
        machines += f"  {name}: {{start: false, memory: {memory}, nics: [{', '.join(nics)}]{more}}}\n"
    probe = draw(st.sampled_from(["", "endpoints: {probe: {network: lan}}\n", "endpoints: {probe: {network: two}}\n"]))
    shim = draw(st.sampled_from(["", "shims: [eth0]\n"]))
    return (
        f"lab: random\n{DEFAULTS}{networks}vms:\n{machines}{probe}{shim}"
        if machines
        else f"lab: random\n{networks}{probe}{shim}"
    )


def reality(host: KvmHost, file: str) -> Any:
    """All that a lab is, but for what is chosen anew each time: MACs that the file does not name, and addresses that a
    network gives out."""
    named = set(re.findall(r"192\.0\.2\.[345]\b|52:54:00:aa:00:01", file))

    def told(nic: Any) -> Any:
        addresses = sorted(one["address"] if one["address"] in named else "auto" for one in nic["addresses"])
        return (
            nic["mode"],
            nic["parent"],
            nic["network"],
            addresses,
            nic["mac"] if nic["mac"] in named else "",
            nic["link"],
        )

    machines = {
        one["name"]: (one["kind"], one["state"], one["labels"], sorted(map(told, one["nics"]), key=str))
        for one in host.json("list")
    }
    sizes = host.sh(
        "for name in $(virsh list --all --name); do virsh dominfo $name | grep -E '^(Name|Max mem|CPU|Auto)'; done"
    )
    disks = host.sh(
        "for disk in $(ls -d /var/lib/macvm/machines/*/disk.qcow2 2>/dev/null); do qemu-img info $disk | grep virtual; done | sort"
    )
    networks = host.sh(
        "sqlite3 /var/lib/macvm/macvm.db 'SELECT name, facts FROM networks ORDER BY name; SELECT parent FROM shims'"
    )
    return machines, sizes, disks, networks


class Ups(RuleBasedStateMachine):
    """One lab file after the other, and what others do in between: after each `up` there is nothing to do, and in the
    end all is as that file makes it from nothing."""

    lab: Lab

    def __init__(self) -> None:
        super().__init__()
        self.file = ""

    @rule(file=files())
    def up(self, file: str) -> None:
        self.file = file
        self.lab.up("--recreate", "--restart", file=file)
        assert self.lab.plan() == []

    @precondition(lambda self: "{start" in self.file)
    @rule()
    def somebody_else_comes(self) -> None:
        name = re.findall(r"(\w): \{start", self.file)[0]
        self.lab.host.sh(f"virsh setmaxmem {name} 200M --config; virsh setmem {name} 200M --config")
        assert len(self.lab.plan()) == 1
        self.up(self.file)

    def teardown(self) -> None:
        if self.file:
            over = reality(self.lab.host, self.file)
            self.lab.down("random")
            self.lab.up(file=self.file)
            assert over == reality(self.lab.host, self.file)
            self.lab.down("random")


def test_up_over_others_is_as_up_from_nothing(lab: Lab) -> None:
    ups = type("Ups", (Ups,), {"lab": lab})
    calm = settings(max_examples=5, stateful_step_count=4, deadline=None, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(ups, settings=settings(calm, suppress_health_check=list(HealthCheck)))
