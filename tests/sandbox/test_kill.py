"""macvm killed, failing, interrupted or held up at every step boundary: nothing is left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Node, Sandbox
from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import assert_same, state_of

DRIVER = Path(__file__).with_name("failpoints.py")
CREATE = ("create", "web1", "--ip", "192.0.2.11/24", "--ip", "2001:db8::11/64", "--autostart")
DELETE = ("delete", "web1", "--yes")

STEPS = {
    "create": ("disk", "seed", "define", "start", "nics", "routes", "resume", "autostart"),
    "delete": ("domain", "files", "leases", "routes"),
    "start": ("start", "nics", "routes", "resume"),
}


def boundaries(action: str) -> list[str]:
    around = [f"{action}:{step}:{side}" for step in STEPS[action] for side in ("before", "after")]
    return [f"{action}:begin:after", *around]


def macvm(host: Node, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    words = [f"{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return host.run([sys.executable, DRIVER, *words, "--", *arguments], timeout=120)


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with make_sandbox() as box:
        host = box.host(1)
        built = macvm(host, "image", "build", "tiny")
        assert built.returncode == 0, built.stderr
        yield host


@pytest.fixture
def clean(host: Node) -> Iterator[dict[str, list[str]]]:
    """The host's state before, which must be its state after."""
    before = state_of(host)
    yield before
    assert_same(before, state_of(host))


def settle(host: Node) -> str:
    """What `gc` says until nothing is left: a define that may be in flight needs a second look, a minute later."""
    first = macvm(host, "gc")
    assert first.returncode == 0, first.stderr
    if "uncertain" not in first.stderr:
        return first.stderr
    second = macvm(host, "gc", ahead="61")
    assert second.returncode == 0, second.stderr
    return first.stderr + second.stderr


def test_the_boundaries_are_all_there_are(host: Node, clean: dict[str, list[str]]) -> None:
    record = "/run/boundaries"
    assert macvm(host, *CREATE, record=record).returncode == 0
    assert macvm(host, "stop", "--force", "web1").returncode == 0
    assert macvm(host, "start", "web1", record=record).returncode == 0
    assert macvm(host, *DELETE, record=record).returncode == 0
    seen = host.run(["cat", record]).stdout.split()
    assert seen == [*boundaries("create"), *boundaries("start"), *boundaries("delete")]


@pytest.mark.parametrize("point", boundaries("create"))
def test_create_killed(host: Node, clean: dict[str, list[str]], point: str) -> None:
    killed = macvm(host, *CREATE, kill=point)
    assert killed.returncode == 128 + signal.SIGKILL
    left = state_of(host)
    looked = macvm(host, "list")
    assert looked.returncode == 0
    assert re.search(r"unfinished: create web1, \d+ s ago\nhint: ", looked.stderr)
    # Else a command that only looks undid something. Links and neighbours change by themselves while a guest boots.
    assert {kind: state_of(host)[kind] for kind in ("files", "domains", "rows", "routes")}.items() <= left.items()
    assert "undid: create web1" in settle(host)


@pytest.mark.parametrize("point", boundaries("create"))
def test_create_fails(host: Node, clean: dict[str, list[str]], point: str) -> None:
    failed = macvm(host, *CREATE, fail=point)
    assert failed.returncode == 1
    assert failed.stderr.endswith(f"error: made to fail at {point}\nhint: none\n")


@pytest.mark.parametrize("point", boundaries("delete"))
def test_delete_killed(host: Node, clean: dict[str, list[str]], point: str) -> None:
    assert macvm(host, *CREATE).returncode == 0
    assert macvm(host, *DELETE, kill=point).returncode == 128 + signal.SIGKILL
    assert "finished: delete web1" in settle(host)


@pytest.mark.parametrize("point", boundaries("start"))
def test_start_killed_is_finished_by_the_next_change(host: Node, clean: dict[str, list[str]], point: str) -> None:
    assert macvm(host, *CREATE, "--no-start").returncode == 0
    assert macvm(host, "start", "web1", kill=point).returncode == 128 + signal.SIGKILL
    # Any command that changes something settles it first.
    again = macvm(host, "start", "web1")
    assert again.returncode == 0, again.stderr
    assert "finished: start web1" in again.stderr
    assert host.run(["virsh", "domstate", "web1"]).stdout.strip() == "running"
    assert "192.0.2.11 dev mv-eth0" in host.run(["ip", "route"]).stdout
    assert macvm(host, *DELETE).returncode == 0


def test_the_next_create_clears_the_way(host: Node, clean: dict[str, list[str]]) -> None:
    assert macvm(host, *CREATE, kill="create:routes:after").returncode == 128 + signal.SIGKILL
    again = macvm(host, *CREATE)
    assert again.returncode == 0, again.stderr
    assert "undid: create web1" in again.stderr
    assert macvm(host, *DELETE).returncode == 0


def test_looking_beside_a_slow_create_undoes_nothing(host: Node, clean: dict[str, list[str]]) -> None:
    with host.start([sys.executable, DRIVER, "pause=create:define:after:3", "--", *CREATE]) as slow:
        deadline = time.monotonic() + 20
        while "web1" not in host.run(["virsh", "list", "--all", "--name"]).stdout:
            assert time.monotonic() < deadline
        for _ in range(5):
            looked = macvm(host, "list")
            assert "unfinished" not in looked.stderr
            assert "nothing was left unfinished" in macvm(host, "gc").stderr
        assert slow.wait(30) == 0, slow.stderr
    assert macvm(host, *DELETE).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(host: Node, clean: dict[str, list[str]], number: signal.Signals) -> None:
    with host.start([sys.executable, DRIVER, "pause=create:start:after:20", "--", *CREATE]) as slow:
        deadline = time.monotonic() + 20
        while "web1" not in host.run(["virsh", "list", "--name"]).stdout:
            assert time.monotonic() < deadline
        slow.signal(number)
        assert slow.wait(20) == 130, slow.stderr


def test_a_define_that_takes_effect_late(host: Node, clean: dict[str, list[str]]) -> None:
    """What libvirt may do with a dead client's call: played by hand, so that it surely comes after the look."""
    xml = "/run/late.xml"
    assert macvm(host, *CREATE, "--no-start").returncode == 0
    host.run(["sh", "-c", f"virsh dumpxml --inactive web1 >{xml}"], check=True)
    assert macvm(host, *DELETE).returncode == 0
    assert macvm(host, *CREATE, kill="create:define:before").returncode == 128 + signal.SIGKILL
    first = macvm(host, "gc")
    assert "uncertain: create web1" in first.stderr
    second = macvm(host, "gc", ahead="30")
    assert "uncertain: create web1" in second.stderr, "settled before its time"
    taken = macvm(host, *CREATE)
    assert taken.returncode == 4, "the name, UUID and address are held until it is settled"
    uuid = _journalled_uuid(host)
    host.run(["sed", "-i", f"s|<uuid>.*</uuid>|<uuid>{uuid}</uuid>|", xml], check=True)
    host.run(["virsh", "define", xml], check=True)
    assert "undid: create web1" in macvm(host, "gc").stderr


def _journalled_uuid(host: Node) -> str:
    code = "import sqlite3; db = sqlite3.connect('/var/lib/macvm/macvm.db'); "
    code += "print(*db.execute('SELECT uuid FROM journal').fetchone())"
    return host.run([sys.executable, "-c", code], check=True).stdout.strip()


def test_a_restarted_daemon_settles_it_at_once(clean_box: tuple[Sandbox, Node]) -> None:
    _, host = clean_box
    assert macvm(host, *CREATE, kill="create:define:before").returncode == 128 + signal.SIGKILL
    assert "uncertain" in macvm(host, "gc").stderr
    host.run(["sh", "-c", "kill $(cat /run/libvirtd.pid); sleep 1; libvirtd --daemon --pid-file /run/libvirtd.pid"])
    assert "undid: create web1" in macvm(host, "gc").stderr


@pytest.fixture
def clean_box() -> Iterator[tuple[Sandbox, Node]]:
    with make_sandbox() as box:
        host = box.host(1)
        assert macvm(host, "image", "build", "tiny").returncode == 0
        yield box, host


def test_killed_with_a_define_in_flight(host: Node, clean: dict[str, list[str]]) -> None:
    """libvirtd is stopped, the client sends its define and dies; the daemon goes on and carries it out."""
    with host.start([sys.executable, DRIVER, "stop-libvirtd=create:define:before", "--", *CREATE]) as client:
        time.sleep(2)
        client.signal(signal.SIGKILL)
        assert client.wait(10) == 128 + signal.SIGKILL
    host.run(["sh", "-c", "kill -CONT $(cat /run/libvirtd.pid)"], check=True)
    assert "undid: create web1" in settle(host)


def test_a_hung_daemon_is_reported(host: Node, clean: dict[str, list[str]]) -> None:
    """Neither create nor its undoing can reach libvirt: the rest is left for gc, and said."""
    failed = macvm(host, *CREATE, stop_libvirtd="create:define:before")
    host.run(["sh", "-c", "kill -CONT $(cat /run/libvirtd.pid)"], check=True)
    assert failed.returncode == 7
    assert "libvirt stopped answering" in failed.stderr
    assert "hint: then: macvm gc" in failed.stderr
    assert "undid: create web1" in settle(host)


def test_a_daemon_that_has_ended_is_reported(host: Node, clean: dict[str, list[str]]) -> None:
    """Before it is asked, and before its client hears of it: no word of the client's own."""
    failed = macvm(host, *CREATE, kill_libvirtd="create:define:before")
    host.run(["libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid"], check=True)
    assert failed.returncode == 7
    assert "libvirt stopped answering" in failed.stderr
    assert "client socket is closed" not in failed.stderr
    assert "Broken pipe" not in failed.stderr
    assert "undid: create web1" in settle(host)


def test_what_fails_as_the_daemon_ends_is_undone_with_the_next(host: Node, clean: dict[str, list[str]]) -> None:
    """A define is not sent twice."""
    failed = macvm(host, *CREATE, restart_libvirtd="create:define:before")
    assert failed.returncode == 6, failed.stderr
    assert "libvirt stopped answering" in failed.stderr


def test_a_daemon_that_hung_for_a_while_may_still_do_it(host: Node, clean: dict[str, list[str]]) -> None:
    """It is the same one that answers again: nothing is taken for undone that it may have in its queue."""
    with host.start([sys.executable, DRIVER, "stop-libvirtd=create:define:before", "--", *CREATE]) as client:
        time.sleep(9)  # keepalive has ended the define by then
        host.run(["sh", "-c", "kill -CONT $(cat /run/libvirtd.pid)"], check=True)
        assert client.wait(30) == 7, client.stderr
    assert "undid: create web1" in settle(host)
