"""Named network namespaces as `ip netns` has them, those of processes, and programs in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisioner.errors import NotFound, Taken, Unable, Usage
from provisioner.host import links, namespaces, netlink, netns
from tests.netns.conftest import ip

pytestmark = pytest.mark.usefixtures("run")


@contextmanager
def opened(where: str) -> Iterator[int]:
    fd = netns.open_namespace(where)
    try:
        yield fd
    finally:
        os.close(fd)


def here() -> tuple[int, int]:
    fd = netns.own()
    try:
        return netns.identity(fd)
    finally:
        os.close(fd)


def mounts_below(folder: str) -> list[str]:
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(folder)]


def names() -> list[str]:
    return [entry["name"] for entry in ip("netns list")]


def test_a_name_is_one_for_ip_netns_too() -> None:
    path = netns.create("web-1")
    assert path == Path("/run/netns/web-1")
    assert names() == netns.names() == ["web-1"]
    inside = ip("netns exec web-1 ip -j link")
    assert [link["ifname"] for link in inside if link["link_type"] == "loopback"] == ["lo"]
    assert not {"eth0", "far"} & {link["ifname"] for link in inside}
    with opened("web-1") as fd:
        assert netns.identity(fd) != here()
        with opened("/run/netns/web-1") as again:
            assert netns.identity(again) == netns.identity(fd)
    netns.remove("web-1")
    assert names() == netns.names() == []
    assert not path.exists()


def test_names_of_ip_netns_and_macvms_live_side_by_side() -> None:
    ip("netns add theirs")
    netns.create("ours")
    ip("netns add later")
    assert sorted(names()) == ["later", "ours", "theirs"]
    with opened("theirs") as fd:
        assert netns.identity(fd) != here()
    ip("netns delete ours")
    netns.remove("ours")
    netns.remove("theirs")
    assert names() == ["later"]


def test_the_folder_is_shared_once() -> None:
    netns.create("one")
    assert len(mounts_below("/run/netns")) == 2, "the folder itself, and the namespace"
    netns.create("two")
    shared = [line for line in mounts_below("/run/netns") if line.split()[4] == "/run/netns"]
    assert len(shared) == 1
    assert " shared:" in shared[0]
    assert len(mounts_below("/run/netns")) == 3


def test_a_removal_is_seen_in_the_mount_namespaces_of_others() -> None:
    netns.create("early")  # the folder is shared from now on
    other = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", "echo; read _; cat /proc/self/mountinfo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout
    other.stdout.readline()
    netns.create("late")
    netns.remove("early")
    seen, _ = other.communicate("\n")
    points = [line.split()[4] for line in seen.splitlines()]
    assert "/run/netns/late" in points
    assert "/run/netns/early" not in points


def test_a_name_that_is_taken() -> None:
    netns.create("web")
    with opened("web") as fd:
        was = netns.identity(fd)
    with pytest.raises(Taken, match="web already") as caught:
        netns.create("web")
    assert caught.value.hint == "ip netns delete web"
    with opened("web") as fd:
        assert netns.identity(fd) == was


@pytest.mark.parametrize("name", ["../web", "a/b", "..", "", "-rf", "a b", "UP"])
def test_an_impossible_name_touches_nothing(name: str) -> None:
    for act in (netns.create, netns.remove):
        with pytest.raises(Usage):
            act(name)
    assert not Path("/run/netns").exists()


def test_nothing_is_left_of_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    netns.create("first")

    def broken(flags: int) -> None:
        raise OSError(28, "No space left on device")  # ENOSPC: the limit of namespaces (user_namespaces(7))

    monkeypatch.setattr(netns, "unshare", broken)
    with pytest.raises(netns.NamespaceFailed, match="web: No space left"):
        netns.create("web")
    assert names() == ["first"]
    assert os.listdir("/run/netns") == ["first"]


def test_what_a_kill_left_is_removed() -> None:
    netns.create("first")
    half = Path("/run/netns/half")
    half.touch(0)
    with pytest.raises(NotFound, match="is no network namespace"), opened("half"):
        pass
    netns.remove("half")
    assert not half.exists()
    netns.remove("half")
    netns.remove("never")


def test_removing_while_a_process_is_inside_takes_the_name() -> None:
    netns.create("busy")
    sleeper = subprocess.Popen(
        ["ip", "netns", "exec", "busy", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
    )
    try:
        assert sleeper.stdout
        sleeper.stdout.readline()
        netns.remove("busy")
        assert names() == []
        with opened(str(sleeper.pid)) as fd:
            assert netns.identity(fd) != here()
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_the_namespace_of_a_process() -> None:
    sleeper = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert sleeper.stdout
        sleeper.stdout.readline()
        with opened(str(sleeper.pid)) as fd, opened(f"/proc/{sleeper.pid}/ns/net") as again:
            assert netns.identity(fd) == netns.identity(again) != here()
    finally:
        sleeper.kill()
        sleeper.communicate()
    with pytest.raises(NotFound, match=f"there is no process {sleeper.pid}") as caught:
        netns.open_namespace(str(sleeper.pid))
    assert "{{.State.Pid}}" in caught.value.hint


def test_what_is_no_namespace(tmp_path: Path) -> None:
    netns.create("web")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for where in ("/etc/passwd", "/proc/self/ns/mnt", str(fifo), "/run/netns", "", ".."):
        with pytest.raises(NotFound, match="is no network namespace"):
            netns.open_namespace(where)
    for where in ("nosuch", "/nosuch", "we\0b", "web/x", "9" * 30):
        with pytest.raises(NotFound, match="there is no"):
            netns.open_namespace(where)
    with pytest.raises(NotFound) as caught:
        netns.open_namespace("wep")
    assert "web" in caught.value.hint


def test_a_function_runs_inside_and_the_caller_stays() -> None:
    netns.create("web")
    before = here()
    with opened("web") as fd:
        assert netns.run_inside(fd, here) == netns.identity(fd) != before
        ip("link add eth0 type veth peer name far")
        assert netns.run_inside(fd, lambda: netlink.find_link("eth0")) is None
        key = "net/ipv4/conf/all/arp_filter"
        links.sysctl(key, "0")
        netns.run_inside(fd, lambda: links.sysctl(key, "1"))
        assert links.read_sysctl(key) == "0"
        assert netns.run_inside(fd, lambda: links.read_sysctl(key)) == "1"

        def fails() -> None:
            netlink.get_link("nosuch")

        with pytest.raises(NotFound, match="nosuch"):
            netns.run_inside(fd, fails)
        assert here() == before
    assert not [one for one in threading.enumerate() if one.name == "in-namespace"]


def test_a_descriptor_of_something_else_is_not_entered() -> None:
    with open("/proc/self/ns/mnt") as file, pytest.raises(netns.NamespaceFailed, match="enter a network namespace"):
        netns.run_inside(file.fileno(), here)


Enter = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def enter(run: None) -> Enter:
    """`netns.enter` in a process of its own, which says what error it got and ends with its status."""
    code = (
        "import os, sys; from pathlib import Path; from provisioner.host import netns; from provisioner.errors import MacvmError\n"
        "fd = netns.open_namespace(sys.argv[1]); before = os.readlink('/proc/self/ns/net')\n"
        "try: netns.enter(fd, sys.argv[3:], Path(sys.argv[2]) if sys.argv[2] else None)\n"
        "except MacvmError as error:\n"
        " print(error.message, os.readlink('/proc/self/ns/net') == before, file=sys.stderr); sys.exit(error.status)\n"
    )

    def entering(name: str, *argv: str, resolv_conf: Path | str = "") -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", code, name, str(resolv_conf), *argv]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    return entering


def test_a_program_sees_the_namespace_and_its_sys(enter: Enter, tmp_path: Path) -> None:
    netns.create("web")
    namespaces.mount("", "/", flags=0x100000 | namespaces.MS_REC)  # MS_SHARED, as systemd has it, within this test
    before = mounts_below("/")
    with opened("web") as fd:
        own = netns.identity(fd)
        netns.run_inside(fd, lambda: ip("link add inside type veth peer name other"))
    ran = enter("web", "sh", "-c", "stat -Lc %i /proc/self/ns/net; ls /sys/class/net; cat /etc/resolv.conf")
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.split()
    assert int(words[0]) == own[1]
    assert {"inside", "other", "lo"} <= set(words)
    dns = tmp_path / "resolv.conf"
    dns.write_text("nameserver 192.0.2.53\n")
    was = Path("/etc/resolv.conf").read_bytes()
    ran = enter("web", "cat", "/etc/resolv.conf", resolv_conf=dns)
    assert ran.stdout == "nameserver 192.0.2.53\n"
    assert Path("/etc/resolv.conf").read_bytes() == was
    assert mounts_below("/") == before, "nothing of it reaches outside"


def test_a_programs_own_status_and_signals(enter: Enter) -> None:
    netns.create("web")
    assert enter("web", "sh", "-c", "exit 41").returncode == 41
    assert enter("web", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    ignored = enter("web", "grep", "SigIgn", "/proc/self/status").stdout.split()[1]
    assert not int(ignored, 16) & (1 << (signal.SIGPIPE - 1)), "a broken pipe ends it"


def test_a_program_that_cannot_run_is_said_before_anything_is_entered(enter: Enter, tmp_path: Path) -> None:
    netns.create("web")
    ran = enter("web", "no-such-program")
    assert (ran.returncode, ran.stderr) == (127, "'no-such-program': command not found True\n")
    plain = tmp_path / "plain"
    plain.write_text("echo hello\n")
    ran = enter("web", str(plain))
    assert ran.returncode == 126
    assert "cannot be executed" in ran.stderr
    assert ran.stderr.endswith("True\n")
    plain.chmod(0o755)
    ran = enter("web", str(plain))
    assert ran.returncode == 126, "no first line"
    assert "Exec format error" in ran.stderr


def test_dns_servers_without_a_file_to_cover(enter: Enter, tmp_path: Path) -> None:
    netns.create("web")
    dns = tmp_path / "resolv.conf"
    dns.touch()
    namespaces.mount("tmpfs", "/etc", "tmpfs")  # in this test's own mount namespace
    ran = enter("web", "true", resolv_conf=dns)
    assert ran.returncode == Unable.status
    assert "no /etc/resolv.conf" in ran.stderr
