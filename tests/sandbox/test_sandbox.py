"""The sandbox itself: what is in it, what passes through it, and that it leaves nothing behind.

What it must leave alone is checked on a KVM host of another sandbox, which stands for the machine: nobody else changes
links, mounts or processes there meanwhile. Its mounts are made shared first, as systemd makes a machine's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Node, Sandbox
from provisioner.errors import NotFound, TimeUp
from provisioner.host.sandbox import wiring
from provisioner.host.sandbox.client import CannotRun
from provisioner.host.sandbox.failure import Failed
from tests.sandbox.kvm_host import NOBODY

MACVM = str(Path(sys.executable).parent / "macvm")

#: Starts in no time and without an image: firmware with nothing to boot.
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <interface type='direct'>
      <source dev='eth0' mode='bridge'/>
      <model type='virtio'/>
    </interface>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def sandbox_run(
    *words: str, input: str = "", cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`macvm sandbox run WORDS…` on the real machine."""
    command = [MACVM, "sandbox", "run", *words]
    return subprocess.run(
        command, input=input, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def until(true: Callable[[], bool], seconds: float = 2.0) -> bool:
    """Whether it becomes true in that time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def has_tap(host: Node, index: int) -> bool:
    return host.run(["test", "-c", f"/dev/tap{index}"]).returncode == 0


CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def domain(box: Sandbox) -> Iterator[str]:
    """A running domain on `box` with a macvtap."""
    box.host().run(["virsh", "create", "/dev/stdin"], input=DOMAIN.format(name="probe"), check=True)
    yield "probe"
    box.host().run(["virsh", "destroy", "probe"])


@pytest.fixture
def machine(fresh_box: Sandbox) -> Node:
    """A KVM host that plays the machine on which sandboxes are started."""
    node = fresh_box.host()
    node.run(["mount", "--make-rshared", "/"], check=True)
    # A /tmp of its own, in which others' files do not come and go; the checkout stays where it is, be it in there.
    script = f"""set -e
    mkdir /run/checkout; mount --bind {CHECKOUT} /run/checkout; mount -t tmpfs tmpfs /tmp
    [ -d {CHECKOUT} ] || {{ mkdir -p {CHECKOUT}; mount --bind /run/checkout {CHECKOUT}; }}
    umount /run/checkout; rmdir /run/checkout"""
    node.run(["sh", "-c", script], check=True, cwd="/")
    return node


def state(machine: Node) -> dict[str, str]:
    """All that a sandbox could leave on a machine."""
    looks = {
        "links": ["ip", "-o", "link"],
        "dev": ["ls", "-lR", "/dev"],
        "mounts": ["cat", "/proc/1/mountinfo"],
        # procfs has a different inode number for the looker each time: count by kind, without those who look.
        "namespaces": ["sh", "-c", "ls -l /proc/[0-9]*/ns 2>/dev/null | grep -o '[a-z_]*:\\[[0-9]*\\]' | sort -u"],
        "processes": ["sh", "-c", "ps -e -o pid=,comm= | grep -vE ' (ps|grep|sh)$'"],
        "files": ["sh", "-c", "ls -a /tmp /run /run/lock /etc /etc/libvirt /var/lib /var/lib/* /var/log /var/cache"],
        "cgroups": ["cat", "/proc/1/cgroup"],
    }
    return {name: machine.run(words, cwd="/").stdout for name, words in looks.items()}


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_host_has_its_addresses_and_routes(box: Sandbox) -> None:
    shown = json.loads(box.host().run(["ip", "-j", "address", "show", "dev", "eth0"], check=True).stdout)
    has = {(a["local"], a["prefixlen"]) for a in shown[0]["addr_info"] if a["scope"] == "global"}
    assert has == {("192.0.2.2", 24), ("2001:db8::2", 64)}
    assert "tentative" not in str(shown)
    routes = [
        json.loads(box.host().run(["ip", "-j", family, "route", "show", "default"], check=True).stdout)
        for family in ("-4", "-6")
    ]
    assert [(route[0]["gateway"], route[0]["dev"]) for route in routes] == [
        ("192.0.2.1", "eth0"),
        ("2001:db8::1", "eth0"),
    ]


@pytest.mark.parametrize("target", ["192.0.2.1", "2001:db8::1", "lan"])
def test_host_reaches_the_lan_peer(box: Sandbox, target: str) -> None:
    assert box.host().run(["ping", "-c1", "-W2", target]).returncode == 0


@pytest.mark.parametrize("target", ["192.0.2.2", "2001:db8::2", "host1"])
def test_lan_peer_reaches_the_host(box: Sandbox, target: str) -> None:
    assert box.lan.run(["ping", "-c1", "-W2", target]).returncode == 0


def test_libvirtd_is_its_own_and_empty(box: Sandbox) -> None:
    host = box.host()
    assert host.run(["virsh", "uri"], check=True).stdout.strip() == "qemu:///system"
    assert host.run(["virsh", "list", "--all", "--name"], check=True).stdout.strip() == ""
    assert host.run(["virsh", "hostname"], check=True).stdout.strip() == "host1"


def test_libvirtd_is_ready_when_the_command_starts() -> None:
    done = sandbox_run("--", "test", "-S", "/run/libvirt/libvirt-sock")
    assert done.returncode == 0, done.stderr


def test_macvm_inside_is_the_one_that_started_it() -> None:
    bare = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/root",
        "MACVM_STATE_DIR": "/elsewhere",
        "LIBVIRT_DEFAULT_URI": "test:///x",
    }
    done = sandbox_run("--", "sh", "-c", "for tool in macvm ip virsh; do command -v $tool; done; env", env=bare)
    found = done.stdout.splitlines()
    assert found[0] == MACVM
    assert len([line for line in found if re.fullmatch(r"/\S+/(ip|virsh)", line)]) == 2
    assert "MACVM_" not in done.stdout
    assert "LIBVIRT_" not in done.stdout


def test_state_and_configuration_are_empty_and_its_own(machine: Node) -> None:
    for folder in ("/etc/macvm", "/var/lib/macvm"):
        machine.run(["touch", f"{folder}/of-the-machine"], check=True)
        inside = machine.run(["macvm", "sandbox", "run", "--", "ls", "-A", folder], check=True)
        assert inside.stdout == ""
    machine.run(
        ["macvm", "sandbox", "run", "--", "sh", "-c", "touch /etc/x /etc/libvirt/x /var/lib/macvm/x"], check=True
    )
    assert machine.run(["sh", "-c", "ls -d /etc/x /etc/libvirt/x /var/lib/macvm/x"]).stdout == ""


def test_the_rest_of_the_file_system_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("42")
    done = sandbox_run("--", "sh", "-c", "pwd; cat mine; echo 43 > written", cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path), "42"]
    assert (tmp_path / "written").read_text() == "43\n"


def test_machines_cgroups_are_out_of_sight(box: Sandbox) -> None:
    assert box.host().run(["ls", "-A", "/sys/fs/cgroup"], check=True).stdout == ""


@pytest.mark.parametrize("node", ["host1", "lan"])
def test_terminals_are_its_own(box: Sandbox, node: str) -> None:
    where = box.lan if node == "lan" else box.host()
    assert where.run(["sh", "-c", "readlink /dev/ptmx; ls /dev/pts"], check=True).stdout.split() == ["pts/ptmx", "ptmx"]
    assert os.stat("/dev/ptmx").st_rdev == os.makedev(5, 2)


# --- macvtap and QEMU ------------------------------------------------------------------------------------------------


def test_a_domain_gets_its_tap_and_runs_without_root(box: Sandbox, domain: str) -> None:
    host = box.host()
    taps = host.run(["sh", "-c", "ls /dev/tap*"]).stdout.split()
    assert len(taps) == 1
    index = host.run(["sh", "-c", "cat /sys/class/net/macvtap*/ifindex"], check=True).stdout.strip()
    assert taps == [f"/dev/tap{index}"]
    users = host.run(["ps", "-C", "qemu-system-x86_64", "-o", "user:20="], check=True).stdout.split()
    assert users == ["libvirt-qemu"]
    host.run(["virsh", "destroy", domain], check=True)
    assert until(lambda: host.run(["sh", "-c", "ls /dev/tap*"]).returncode != 0)


def test_destroy_finds_the_process_reaped(box: Sandbox, domain: str) -> None:
    before = time.monotonic()
    box.host().run(["virsh", "destroy", domain], check=True)
    assert time.monotonic() - before < 1.0


def test_orphans_are_reaped_at_once(box: Sandbox) -> None:
    host = box.host()
    host.run(["sh", "-c", "(sleep 0.05 &) ; (sleep 0.05 &)"], check=True)
    assert until(lambda: "sleep" not in host.run(["ps", "-e", "-o", "stat=,comm="]).stdout, 1.0)


def test_a_tap_node_comes_with_a_renamed_link_and_goes_with_it(box: Sandbox) -> None:
    host = box.host()
    lines = "link add link eth0 name first index 77 type macvtap mode bridge\nlink set dev first name second\n"
    host.run(["ip", "-batch", "-"], input=lines, check=True)
    wanted = host.run(["cat", "/sys/class/net/second/tap77/dev"], check=True).stdout.strip()
    assert until(lambda: has_tap(host, 77), 0.5)
    shown = host.run(["stat", "-c", "%Hr:%Lr", "/dev/tap77"], check=True).stdout.strip()
    assert shown == wanted
    host.run(["ip", "link", "delete", "dev", "second"], check=True)
    assert until(lambda: not has_tap(host, 77), 0.5)


def test_many_taps_come_and_go(box: Sandbox) -> None:
    host = box.host()
    add = "".join(f"link add link eth0 name many{n} type macvtap mode bridge\n" for n in range(40))
    host.run(["ip", "-batch", "-"], input=add, check=True)
    count = ["sh", "-c", "ls /dev/tap* | wc -l"]
    assert until(lambda: host.run(count).stdout.strip() == "40")
    host.run(["ip", "-batch", "-"], input="".join(f"link delete dev many{n}\n" for n in range(40)), check=True)
    assert until(lambda: host.run(count).stdout.strip() == "0")


def test_two_sandboxes_with_one_interface_index_have_a_tap_each(box: Sandbox, fresh_box: Sandbox) -> None:
    add = ["ip", "link", "add", "link", "eth0", "name", "twin", "index", "4242", "type", "macvtap", "mode", "bridge"]
    seen = []
    for host in (box.host(), fresh_box.host()):
        host.run(add, check=True)
        assert until(partial(has_tap, host, 4242), 0.5)
        seen.append(host.run(["stat", "-c", "%Hr:%Lr", "/dev/tap4242"], check=True).stdout)
    assert seen[0] != seen[1]
    assert not Path("/dev/tap4242").exists()  # the kernel had made it there
    box.host().run(["ip", "link", "delete", "dev", "twin"], check=True)
    assert until(lambda: not has_tap(box.host(), 4242), 0.5)
    assert has_tap(fresh_box.host(), 4242)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_status(command: list[str], status: int) -> None:
    assert sandbox_run("--", *command).returncode == status


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_a_command_that_does_not_run_is_named(command: str, status: int) -> None:
    done = sandbox_run("--", command)
    assert done.returncode == status
    assert done.stderr.startswith(f"error: {command}: ")
    assert "Traceback" not in done.stderr


def test_standard_streams_pass_through() -> None:
    done = sandbox_run("--", "sh", "-c", "cat; echo problem >&2", input="x" * 300_000)
    assert done.stdout == "x" * 300_000
    assert done.stderr == "problem\n"


def test_options_of_the_command_are_the_commands() -> None:
    assert sandbox_run("echo", "-v", "--hosts", "--help").stdout == "-v --hosts --help\n"


def test_a_signal_reaches_the_command() -> None:
    # Python and not a shell: dash may lose a signal that comes while it forks.
    script = (
        "import signal, sys, time\n"
        "def end(*_):\n    print('caught')\n    sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([MACVM, "sandbox", "run", "--", "python3", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(5) == 9


def test_a_broken_pipe_ends_the_command_as_usual() -> None:
    assert sandbox_run("--", "sh", "-c", "(yes; echo $? >&2) | head -1").stderr.strip() == "141"


def test_a_terminal_has_job_control() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            MACVM, [MACVM, "sandbox", "run", "--", "sh", "-c", "tty; stty size; read word; echo got:$word; exec cat"]
        )
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    said = b""

    def read_until(wanted: bytes) -> None:
        nonlocal said
        deadline = time.monotonic() + 10
        while wanted not in said:
            assert time.monotonic() < deadline, said
            said += os.read(terminal, 4096)

    read_until(b"33 99")
    assert b"/dev/pts/" in said
    os.write(terminal, b"hello\n")
    read_until(b"got:hello")
    os.write(terminal, b"again\n")
    read_until(b"again\r\nagain\r\n")  # echoed by the terminal, written by cat
    os.write(terminal, b"\x03")  # Ctrl+C
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130


def test_a_command_dies_with_its_caller(box: Sandbox) -> None:
    def alive() -> bool:
        return box.lan.run(["pgrep", "-f", "sleep 98765"]).returncode == 0

    with box.lan.start(["sh", "-c", "sleep 98765; true"]):
        assert until(alive)
    assert until(lambda: not alive())


def test_output_of_a_background_command_is_there_while_it_runs(box: Sandbox) -> None:
    with box.lan.start(["sh", "-c", "echo one; sleep 60"]) as process:
        assert until(lambda: process.stdout == "one\n")
        with pytest.raises(TimeUp):
            process.wait(0.05)
        process.signal(signal.SIGTERM)
        assert process.wait(2) == 143


def test_errors_of_the_interface(box: Sandbox) -> None:
    with pytest.raises(NotFound, match="no host9"):
        box.host(9).run(["true"])
    with pytest.raises(CannotRun, match="no-such-command"):
        box.host().run(["no-such-command"])
    with pytest.raises(TimeUp):
        box.host().run(["sleep", "5"], timeout=0.05)


# --- the LAN, the other hosts, the switch ----------------------------------------------------------------------------


def test_lan_from_inside(box: Sandbox) -> None:
    done = box.host().run(["macvm", "sandbox", "lan", "--", "sh", "-c", "hostname; cat; exit 4"], input="in")
    assert (done.returncode, done.stdout) == (4, "lan\nin")


def test_hosts_reach_one_another_and_are_apart(two_hosts: Sandbox) -> None:
    first, second = two_hosts.host(1), two_hosts.host(2)
    for address in second.addresses:
        assert first.run(["ping", "-c1", "-W2", address]).returncode == 0
    first.run(["virsh", "define", "/dev/stdin"], input=DOMAIN.format(name="mine"), check=True)
    assert "mine" not in second.run(["virsh", "list", "--all", "--name"], check=True).stdout
    first.run(["virsh", "undefine", "mine"], check=True)
    identities = {h.run(["virsh", "capabilities"], check=True).stdout.split("<uuid>")[1][:36] for h in (first, second)}
    assert len(identities) == 2


def test_another_host_from_inside(two_hosts: Sandbox) -> None:
    asked = two_hosts.host(1).run(["macvm", "sandbox", "host", "2", "--", "hostname"], check=True)
    assert asked.stdout.strip() == "host2"
    absent = two_hosts.host(1).run(["macvm", "sandbox", "host", "3", "--", "hostname"])
    assert absent.returncode == 125
    assert absent.stderr.splitlines() == [
        "error: no host3 runs in this sandbox",
        "hint: there are: host1, host2, lan, switch",
    ]


def hairpin_ports(nodes: Sandbox) -> dict[str, bool]:
    shown = json.loads(nodes.switch.run(["bridge", "-d", "-j", "link"], check=True).stdout)
    return {port["ifname"]: port["hairpin"] for port in shown}


def test_hairpin_is_switched(two_hosts: Sandbox) -> None:
    def switched(on: bool) -> dict[str, bool]:
        return dict.fromkeys(("host1", "host1-spare0", "host2", "host2-spare0"), on) | {"lan": False}

    assert hairpin_ports(two_hosts) == switched(False)
    two_hosts.host(1).run(["macvm", "sandbox", "hairpin", "on"], check=True)
    assert hairpin_ports(two_hosts) == switched(True)
    two_hosts.host(1).run(["macvm", "sandbox", "hairpin", "off"], check=True)
    assert hairpin_ports(two_hosts) == switched(False)


def test_hairpin_decides_whether_two_vepa_neighbours_meet(fresh_box: Sandbox) -> None:
    host = fresh_box.host()
    for name, address in (("left", "192.0.2.11/24"), ("right", "192.0.2.12/24")):
        host.run(["ip", "netns", "add", name], check=True)
        host.run(
            ["ip", "link", "add", "link", "eth0", "name", name, "netns", name, "type", "macvlan", "mode", "vepa"],
            check=True,
        )
        host.run(["ip", "-n", name, "address", "add", address, "dev", name], check=True)
        host.run(["ip", "-n", name, "link", "set", "dev", name, "up"], check=True)
    ask = ["ip", "netns", "exec", "left", "ping", "-c1", "-W1", "192.0.2.12"]
    assert host.run(ask).returncode != 0
    fresh_box.hairpin(True)
    # Asked again: the first question may still stand in the neighbour table, about to fail.
    assert until(lambda: host.run(ask).returncode == 0, 5)


def test_hairpin_from_the_start() -> None:
    with Sandbox(hairpin=True) as made:
        assert hairpin_ports(made)["host1"] is True


def test_dhcp_gives_leases_only_when_on(box: Sandbox) -> None:
    host = box.host()
    host.run(["ip", "link", "add", "link", "eth0", "name", "client", "type", "macvlan", "mode", "bridge"], check=True)
    host.run(["ip", "link", "set", "dev", "client", "up"], check=True)
    ask = ["busybox", "udhcpc", "-i", "client", "-n", "-q", "-f", "-t", "2", "-T", "1", "-s", "/bin/true"]
    try:
        assert host.run(ask).returncode != 0
        host.run(["macvm", "sandbox", "dhcp", "on"], check=True)
        host.run(["macvm", "sandbox", "dhcp", "on"], check=True)
        got = host.run(ask)
        assert re.search(r"lease of 192\.0\.2\.1\d\d obtained from 192\.0\.2\.1,", got.stderr), got.stderr
        host.run(["macvm", "sandbox", "dhcp", "off"], check=True)
        host.run(["macvm", "sandbox", "dhcp", "off"], check=True)
        assert host.run(ask).returncode != 0
    finally:
        host.run(["ip", "link", "delete", "dev", "client"])


def test_a_power_cut_ends_one_host_alone() -> None:
    with Sandbox(hosts=2) as made:
        made.host(2).power_cut()
        assert until(lambda: "host2" not in hairpin_ports(made))
        with pytest.raises(NotFound):
            made.host(2).run(["true"])
        assert made.host(1).run(["virsh", "list"]).returncode == 0


@pytest.mark.parametrize(
    ("words", "status"),
    [(["lan", "--", "true"], 5), (["host", "1", "--", "true"], 5), (["hairpin", "on"], 5), (["dhcp", "on"], 5)],
)
def test_outside_of_a_sandbox(words: list[str], status: int) -> None:
    done = subprocess.run([MACVM, "sandbox", *words], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.splitlines() == ["error: this is not inside a sandbox", "hint: macvm sandbox shell"]


# --- what it leaves --------------------------------------------------------------------------------------------------

BUSY = "virsh create /dev/stdin >/dev/null && ip netns add spare && echo up && exec sleep 1000"


def test_a_run_changes_nothing_on_the_machine(machine: Node) -> None:
    before = state(machine)
    script = (
        "virsh create /dev/stdin && ip netns add spare && macvm sandbox dhcp on && mount -t tmpfs tmpfs /mnt && ls /dev"
    )
    done = machine.run(
        ["macvm", "sandbox", "run", "--", "sh", "-c", script], input=DOMAIN.format(name="inner"), check=True
    )
    assert "tap" in done.stdout
    assert until(lambda: state(machine) == before), difference(before, state(machine))


def test_the_real_machines_links_devices_and_mounts_are_unchanged() -> None:
    def look() -> list[str]:
        words = [["ip", "-o", "link", "show", "type", kind] for kind in ("bridge", "veth", "macvtap", "macvlan")]
        shown = [subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in words]
        devices = [f"{path.name} {path.lstat().st_rdev} {path.lstat().st_mode}" for path in Path("/dev").iterdir()]
        ours = [name for name in devices if not name.startswith("tap")]  # other tests' taps flicker there
        return [*shown, *sorted(ours), Path("/proc/self/mountinfo").read_text(), os.readlink("/proc/self/ns/net")]

    before = look()
    with Sandbox(hosts=2) as made:
        made.host(2).run(["virsh", "create", "/dev/stdin"], input=DOMAIN.format(name="inner"), check=True)
        assert look() == before
    assert look() == before


def test_while_it_runs_the_machine_is_unchanged_but_for_its_processes(machine: Node) -> None:
    before = state(machine)
    with machine.start(
        ["macvm", "sandbox", "run", "--", "sh", "-c", BUSY], input=DOMAIN.format(name="inner")
    ) as process:
        assert until(lambda: process.stdout == "up\n", 10), process.stderr
        during = state(machine)
    assert during["processes"] != before["processes"]
    for part in ("links", "dev", "mounts", "files", "cgroups"):
        assert during[part] == before[part], part


@pytest.mark.parametrize("victim", ["first process", "macvm"])
def test_sigkill_leaves_nothing(machine: Node, victim: str) -> None:
    before = state(machine)
    with machine.start(
        ["macvm", "sandbox", "run", "--", "sh", "-c", BUSY], input=DOMAIN.format(name="inner")
    ) as process:
        assert until(lambda: process.stdout == "up\n", 10), process.stderr
        which = "--parent" if victim == "first process" else "--session"
        machine.run(["pkill", "-KILL", which, str(process.pid)], check=True)
        assert process.wait(5) == 137
    assert until(lambda: state(machine) == before), difference(before, state(machine))


def test_sigkill_while_starting_leaves_nothing(machine: Node) -> None:
    before = state(machine)
    for step in range(12):
        with machine.start(["macvm", "sandbox", "run", "--", "sleep", "1000"]) as process:
            time.sleep(0.02 * step)
            process.signal(signal.SIGKILL)
    assert until(lambda: state(machine) == before), difference(before, state(machine))


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    return "\n".join(
        f"{part}: {sorted(set(before[part].splitlines()) ^ set(after[part].splitlines()))}"
        for part in before
        if before[part] != after[part]
    )


def test_sandboxes_at_once_do_not_disturb_each_other() -> None:
    with Sandbox(hosts=2) as left, Sandbox(hosts=2) as right:
        left.host(1).run(["ip", "address", "add", "192.0.2.55/24", "dev", "eth0"], check=True)
        assert right.host(2).run(["ping", "-c1", "-W1", "192.0.2.55"]).returncode != 0
        assert left.host(2).run(["ping", "-c1", "-W1", "192.0.2.55"]).returncode == 0
        left.close()
        assert right.host(1).run(["virsh", "list"]).returncode == 0
        assert right.host(1).run(["ping", "-c1", "-W1", "192.0.2.3"]).returncode == 0


# --- where it cannot run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        (NOBODY, "root"),
        (["unshare", "--user", "--map-root-user"], "not of a user namespace"),
        (["setpriv", "--bounding-set=-mknod,-sys_admin"], "CAP_SYS_ADMIN, CAP_MKNOD"),
    ],
)
def test_without_rights(lacking: list[str], named: str) -> None:
    done = subprocess.run(
        [*lacking, MACVM, "sandbox", "run", "--", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 5, done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert hint.startswith("hint: ")


def test_without_libvirtd(machine: Node) -> None:
    machine.run(
        ["sh", "-c", "mkdir /tmp/bin && cp -a /usr/sbin/ip /bin/true /tmp/bin && mount --bind /tmp/bin /usr/sbin"],
        check=True,
    )
    done = machine.run(["macvm", "sandbox", "run", "--", "true"])
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "error: libvirtd is not installed on this host",
        "hint: apt install libvirt-daemon-system",
    ]


def test_libvirtd_that_dies_at_start(machine: Node) -> None:
    script = "printf '#!/bin/sh\\necho first\\necho out of memory >&2\\nexit 1\\n' > /tmp/no && chmod +x /tmp/no"
    machine.run(["sh", "-c", f"{script} && mount --bind /tmp/no /usr/sbin/libvirtd"], check=True)
    done = machine.run(["macvm", "sandbox", "run", "--", "true"])
    assert done.returncode == 125
    assert done.stderr.splitlines()[0].endswith("host1: libvirtd ended while starting: out of memory")


def test_kernel_without_macvtap(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str, stdin: str = "") -> None:
        raise Failed("ip: Error: Unknown device type.")

    monkeypatch.setattr(os.path, "isdir", lambda path: path != "/sys/class/macvtap")
    monkeypatch.setattr(wiring, "tool", refuse)
    with pytest.raises(Failed, match="no macvtap") as failed:
        wiring.need_macvtap()
    assert failed.value.number == errno.EOPNOTSUPP
