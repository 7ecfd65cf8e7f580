"""`macvm reset`: a fresh disk and instance-id, all else as it was; undone or finished wherever it fails or is killed."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Node
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import STATE, KvmHost, complaints
from tests.sandbox.test_json import valid
from tests.sandbox.test_kill import DRIVER, boundaries, macvm

pytestmark = pytest.mark.xdist_group("reset")

#: Counts its boots on the disk's own file system, and serves the number.
COUNTER = """#!/bin/sh
mount -t vfat /dev/vda1 /mnt
echo boot >> /mnt/boots
sync
wc -l < /mnt/boots > /www/boots.new
mv /www/boots.new /www/boots
"""

MAC = "52:54:00:00:00:63"

#: What a reset must leave as it was, whichever disk is there.
LOOK = rf"""
echo '# domain'; virsh dumpxml --inactive web1; virsh domstate web1
echo '# kernel'; ip route; (ip neigh; ip -6 neigh) | grep PERMANENT | sort; ip -o link | grep -c ' mt-'
echo '# store'; sqlite3 {STATE}/macvm.db 'SELECT * FROM journal; SELECT * FROM steps; SELECT mac, told FROM macs; SELECT address, mac FROM leases'
"""

STEPS = ("disk", "seed", "stop", "swap", "start")

RESET = ("reset", "web1", "--yes")


def folder_of(host: KvmHost, name: str) -> str:
    return f"{STATE}/machines/{host.show(name)['uuid']}"


READ_SEED = """
import json, sys
from provisioner.host.seeds import read_seed
from pathlib import Path
print(json.dumps({name: text.decode() for name, text in read_seed(Path(sys.argv[1])).items()}))
"""


def seed_of(host: KvmHost, name: str) -> dict[str, str]:
    seed = folder_of(host, name) + "/seed.iso"
    found: dict[str, str] = json.loads(host.sh(f"python3 - {seed} <<'END'\n{READ_SEED}\nEND\n"))
    return found


# --- what it does ---------------------------------------------------------------------------------------------------


def test_a_fresh_disk_and_instance_with_all_else_as_it_was(host: KvmHost, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(COUNTER)
    with host.unchanged():
        host.create("web1", "--ip", "192.0.2.63/24", "--ip", "2001:db8::63/64", "--user-data", script, "--disk", "1G")
        assert host.page("192.0.2.63", "boots") == "1\n"
        host.macvm("restart", "--force", "web1")
        assert host.page("192.0.2.63", "boots") == "2\n"
        before, seed, look = host.show("web1"), seed_of(host, "web1"), host.sh(LOOK)
        keys = f"{folder_of(host, 'web1')}/known_hosts"
        host.sh(f"macvm ssh web1 -- true </dev/null; echo key >{keys}", timeout=120)

        done = valid(json.loads(host.macvm(*RESET, "-o", "json").stdout), "reset.json")
        assert done == [{"name": "web1", "result": "reset", "instance": f"{before['uuid']}.2"}]
        assert host.page("192.0.2.63", "boots") == "1\n"
        assert host.show("web1") == before
        assert host.sh(LOOK) == look
        now = seed_of(host, "web1")
        assert json.loads(now["meta-data"]) == json.loads(seed["meta-data"]) | {"instance-id": done[0]["instance"]}
        assert now | {"meta-data": ""} == seed | {"meta-data": ""}
        assert host.sh(f"ls {folder_of(host, 'web1')}").split() == ["disk.qcow2", "seed.iso"]
        disk = json.loads(host.sh(f"qemu-img info -U --output=json {folder_of(host, 'web1')}/disk.qcow2"))
        assert disk["virtual-size"] == 1 << 30

        # What changes the seed's network leaves the instance; so does a VM that is off.
        host.macvm("nic", "attach", "web1", "--mac", MAC, "--ip", "192.0.2.64/24", "--config")
        host.macvm("stop", "--force", "web1")
        assert MAC in seed_of(host, "web1")["network-config"]
        assert host.macvm(*RESET, "-o", "name").stdout == "web1\n"
        assert host.show("web1")["state"] == "off"
        after = seed_of(host, "web1")
        assert json.loads(after["meta-data"])["instance-id"] == f"{before['uuid']}.3"
        assert MAC in after["network-config"]
        host.macvm("delete", "--yes", "web1")


def test_uefis_variables_are_fresh_too(host: KvmHost) -> None:
    with host.unchanged():
        host.create("web1", "--firmware", "uefi", "--no-start")
        folder = folder_of(host, "web1")
        host.sh(f"echo of the old guest >{folder}/nvram.fd")
        host.macvm(*RESET)
        assert host.sh(f"ls {folder}").split() == ["disk.qcow2", "seed.iso"]
        host.macvm("delete", "--yes", "web1")


def test_a_dry_run_shows_the_steps_and_does_nothing(host: KvmHost) -> None:
    with host.unchanged():
        host.create("web1", "--ip", "192.0.2.63/24")
        with host.unchanged():
            lines = host.macvm("reset", "web1", "--dry-run").stdout.splitlines()
        folder = folder_of(host, "web1")
        assert lines[0].startswith("qemu-img create -f qcow2 -F qcow2 -b ")
        wanted = ["virsh destroy web1", f"mv {folder}/disk.qcow2.new {folder}/disk.qcow2", "virsh start --paused web1"]
        assert [line for line in lines if line in wanted] == wanted
        host.macvm("delete", "--yes", "web1")


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_what_cannot_be_reset_is_refused_before_anything_is_touched(host: KvmHost) -> None:
    with host.unchanged():
        host.create("web1", "--no-start")
        host.create("bare", "--no-start", "--disk", "1M", "--kernel", "/boot/config-" + host.sh("ls /lib/modules | head -1").strip())  # fmt: skip
        host.sh("virsh define /dev/stdin <<< '<domain type=\"qemu\"><name>theirs</name><memory unit=\"MiB\">16</memory>"
                "<os><type arch=\"x86_64\" machine=\"pc\">hvm</type></os></domain>'")  # fmt: skip
        folder = folder_of(host, "web1")
        base = host.sh(f"ls {STATE}/images/*.qcow2").strip()

        def refused(said: str, *names: str, status: int = 5) -> None:
            with host.unchanged():
                found = complaints(host.macvm("reset", *names, status=status).stderr)
            assert said in found[0][0], found

        refused("theirs was not made by macvm", "web1", "theirs")
        refused("bare was made from no image", "bare", "web1")
        refused("no machine is named", "web1", "nobody", status=3)
        for spoil, said, mend in (
            (f"mv {base} {base}.away", "is missing", f"mv {base}.away {base}"),
            (f"cp -p {base} {base}.away; echo more >>{base}", "has changed", f"mv -f {base}.away {base}"),
            ("virsh snapshot-create web1", "has snapshots", "virsh snapshot-delete web1 --current"),
            (
                f"cp -p {folder}/seed.iso /run; echo junk >{folder}/seed.iso",
                "is damaged",
                f"mv -f /run/seed.iso {folder}",
            ),
            (f"mv {folder}/seed.iso /run", "there is no seed", f"mv /run/seed.iso {folder}"),
        ):
            host.sh(spoil)
            refused(said, "web1", status=3 if "no seed" in said else 5)
            host.sh(mend)
        host.sh(f"echo mine >{folder}/disk.qcow2.old")
        refused("disk.qcow2.old is in the way", "web1", status=4)
        host.sh(f"rm {folder}/disk.qcow2.old")
        host.macvm("image", "build", "tiny")  # a base that is back has another stamp
        host.macvm(*RESET)
        host.macvm("delete", "--yes", "web1", "bare")
        host.sh("virsh undefine theirs")


# --- killed, and failing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A guest that runs, with UEFI's variables beside its disk. Tests leave it running."""
    with make_sandbox() as box:
        node = box.host(1)
        for words in (
            ("image", "build", "tiny"),
            ("create", "web1", "--memory", "128", "--firmware", "uefi", "--ip", "192.0.2.63/24"),
        ):
            done = macvm(node, *words)
            assert done.returncode == 0, done.stderr
        yield node


class Watched:
    """The guest before, to which it is compared after."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._look, self._files = self._sh(LOOK), self._disks()

    def _sh(self, script: str) -> str:
        return self._node.run(["bash", "-c", script], check=True).stdout

    def _disks(self) -> dict[str, str]:
        lines = self._sh(f"cd {STATE}/machines/*/ && stat -c '%n %i' *").splitlines()
        return dict(line.split() for line in lines)

    def assert_fresh_or_as_before(self, *, nvram: bool = True) -> bool:
        """True for fresh. Anything between the two fails. UEFI makes its variables' file when it starts: `nvram`."""
        assert self._sh(LOOK) == self._look
        now = self._disks()
        assert now.keys() == {"disk.qcow2", "seed.iso"} | ({"nvram.fd"} if nvram else set())
        recorded = "SELECT count(*) FROM files WHERE path LIKE '%.old' OR path LIKE '%.new'"
        assert self._sh(f'sqlite3 {STATE}/macvm.db "{recorded}"') == "0\n"
        changed = {name for name in now if now[name] != self._files[name]}
        assert changed in (set(), set(now))
        return bool(changed)


@pytest.fixture
def watched(node: Node) -> Watched:
    return Watched(node)


def all_boundaries() -> list[str]:
    around = {step: [f"reset:{step}:before", f"reset:{step}:after"] for step in (*STEPS, "clean")}
    around["start"][1:1] = boundaries("start")
    return ["reset:begin:after", *(point for points in around.values() for point in points)]


def test_the_boundaries_are_all_there_are(node: Node, watched: Watched) -> None:
    record = "/run/reset-boundaries"
    assert macvm(node, *RESET, record=record).returncode == 0
    assert node.run(["cat", record]).stdout.split() == all_boundaries()
    assert watched.assert_fresh_or_as_before()


def swapped(point: str) -> bool:
    return all_boundaries().index(point) >= all_boundaries().index("reset:start:before")


@pytest.mark.parametrize("point", all_boundaries())
def test_killed_is_undone_before_the_disks_change_places_and_finished_after(
    node: Node, watched: Watched, point: str
) -> None:
    assert macvm(node, *RESET, kill=point).returncode == 128 + signal.SIGKILL
    assert "unfinished: reset web1" in macvm(node, "list").stderr
    settled = macvm(node, "gc").stderr
    assert f"{'finished' if swapped(point) else 'undid'}: reset web1" in settled
    assert watched.assert_fresh_or_as_before() == swapped(point)


@pytest.mark.parametrize("point", [f"reset:{step}:after" for step in ("begin", *STEPS)])
def test_failing_it_is_undone(node: Node, watched: Watched, point: str) -> None:
    failed = macvm(node, *RESET, fail=point)
    assert failed.returncode == 1, failed.stderr
    assert f"error: made to fail at {point}\nhint: none\n" in failed.stderr
    assert not watched.assert_fresh_or_as_before()


def test_killed_while_it_is_undone(node: Node, watched: Watched) -> None:
    """Half of the old files are back: from there it does not go on forward."""
    for point in ("reset:back:before", "reset:back:after"):
        assert macvm(node, *RESET, fail="reset:start:after", kill=point).returncode == 128 + signal.SIGKILL
        assert "undid: reset web1" in macvm(node, "gc").stderr
        assert not watched.assert_fresh_or_as_before()


@pytest.mark.parametrize(
    "moves", ["mv disk.qcow2 disk.qcow2.old", "mv disk.qcow2 disk.qcow2.old; mv disk.qcow2.new disk.qcow2",
              "for one in disk.qcow2 seed.iso; do mv $one $one.old; mv $one.new $one; done; mv nvram.fd nvram.fd.old"]
)  # fmt: skip
def test_killed_between_two_of_its_renames(node: Node, watched: Watched, moves: str) -> None:
    """Played by hand: no step ends there."""
    assert macvm(node, *RESET, kill="reset:swap:before").returncode == 128 + signal.SIGKILL
    node.run(["bash", "-ec", f"cd {STATE}/machines/*/; {moves}"], check=True)
    assert "undid: reset web1" in macvm(node, "gc").stderr
    assert not watched.assert_fresh_or_as_before()


def test_one_that_is_off_stays_off(node: Node, watched: Watched) -> None:
    assert macvm(node, "stop", "--force", "web1").returncode == 0
    for point, said in (("reset:swap:after", "undid"), ("reset:clean:before", "finished")):
        off = Watched(node)
        assert macvm(node, *RESET, kill=point).returncode == 128 + signal.SIGKILL
        assert f"{said}: reset web1" in macvm(node, "gc").stderr
        assert off.assert_fresh_or_as_before(nvram=said == "undid") == (said == "finished")
    assert macvm(node, "start", "web1").returncode == 0
    assert watched.assert_fresh_or_as_before()


def test_what_fails_at_its_very_end_is_left_to_gc(node: Node, watched: Watched) -> None:
    failed = macvm(node, *RESET, fail="reset:clean:before")
    assert failed.returncode == 7
    assert failed.stderr.endswith("hint: then: macvm gc\n")
    assert "finished: reset web1" in macvm(node, "gc").stderr
    assert watched.assert_fresh_or_as_before()


def test_one_of_several_fails(node: Node, watched: Watched) -> None:
    assert macvm(node, "create", "web2", "--memory", "128", "--no-start", "--ip", "none").returncode == 0
    done = macvm(node, "reset", "--yes", "web1", "web2", fail="reset:seed:before")
    assert done.returncode == 7
    assert "error: only web2 reset: made to fail at reset:seed:before" in done.stderr
    assert macvm(node, "delete", "--yes", "web2").returncode == 0
    assert not watched.assert_fresh_or_as_before()


def test_two_at_once_do_not_get_in_each_others_way(node: Node, watched: Watched) -> None:
    with node.start([sys.executable, DRIVER, "pause=reset:swap:before:2", "--", *RESET]) as slow:
        deadline = time.monotonic() + 20
        while "swap" not in node.run(["sqlite3", f"{STATE}/macvm.db", "SELECT step FROM steps"]).stdout:
            assert time.monotonic() < deadline
        second = macvm(node, *RESET)
        assert second.returncode == 4
        assert "error: web1 is being reset already" in second.stderr
        assert slow.wait(60) == 0, slow.stderr
    assert watched.assert_fresh_or_as_before()
