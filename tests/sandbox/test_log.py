"""What macvm tells of its work: to the host's log, through the real sockets, and to standard error; never a secret."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.kvm_host import KvmHost

PASSWORD = "open-sesame-1729"
JOURNAL, SYSLOG = "/run/systemd/journal/socket", "/dev/log"

#: Listens at a socket, and writes what comes there to a file, an empty line behind each message.
_LISTENER = """
import os, socket, sys
path, kept = sys.argv[1:]
os.makedirs(os.path.dirname(path), exist_ok=True)
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
channel.bind(path)
with open(kept, "w", buffering=1) as file:
    while True:
        file.write(channel.recv(1 << 16).decode() + "\\n\\n")
"""


@contextlib.contextmanager
def listening(host: KvmHost, path: str) -> Iterator[None]:
    with host.node.start([sys.executable, "-c", _LISTENER, path, "/run/heard"]):
        host.sh(f"timeout 30 sh -c 'until test -e {path} -a -e /run/heard; do sleep 0.05; done'")
        try:
            yield
        finally:
            host.sh(
                f"rm -f {path} /run/heard; rmdir -p --ignore-fail-on-non-empty $(dirname {path}) 2> /dev/null || true"
            )


#: Tells the listener that nothing more comes, and waits until it has written that down.
_ASK = """
import os, socket, sys, time
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"so far", next(filter(os.path.exists, sys.argv[2:])))
while not (said := open(sys.argv[1]).read()).endswith("so far\\n\\n"):
    time.sleep(0.01)
print(said.replace("so far\\n\\n", ""))
"""


def heard(host: KvmHost) -> list[str]:
    asked = host.node.run([sys.executable, "-c", _ASK, "/run/heard", JOURNAL, SYSLOG], check=True, timeout=60)
    return [one for one in asked.stdout.split("\n\n") if one.strip()]


def entries(host: KvmHost) -> list[dict[str, str]]:
    """The journal's, by their fields."""
    return [dict(line.partition("=")[::2] for line in one.strip().splitlines()) for one in heard(host)]


def test_each_change_is_one_line_of_the_journal(host: KvmHost) -> None:
    with listening(host, JOURNAL):
        host.create("web", "--ip", "192.0.2.51/24", "--password", PASSWORD)
        uuid = host.show("web")["uuid"]
        host.macvm("restart", "--force", "web")
        host.node.run(
            ["env", "SUDO_UID=1000", "SUDO_GID=1000", "SUDO_USER=alice", "macvm", "stop", "--force", "web"], check=True
        )
        host.macvm(
            "network", "create", "lan", "--parent", "eth0", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.64/30"
        )
        host.macvm("endpoint", "create", "box", "--network", "lan")
        # What only looks, or is refused before anything is begun, changes nothing.
        host.macvm("list")
        host.macvm("delete", "web", "--dry-run")
        host.create("web", status=4)
        host.macvm("endpoint", "delete", "box")
        host.macvm("network", "delete", "lan")
        host.macvm("delete", "--yes", "web")
        found = entries(host)
        raw = host.sh("cat /run/heard")
    told = [(one["MACVM_ACTION"], one.get("MACVM_MACHINE"), one["MACVM_RESULT"], one["MACVM_UID"]) for one in found]
    assert told == [
        ("create", "web", "done", "0"),
        ("stop", "web", "done", "0"),
        ("start", "web", "done", "0"),
        ("stop", "web", "done", "1000"),
        ("network create", "lan eth0", "done", "0"),
        ("endpoint-create", "box", "done", "0"),
        ("endpoint-delete", "box", "done", "0"),
        ("network delete", "lan", "done", "0"),
        ("delete", "web", "done", "0"),
    ]
    assert (found[0]["MACVM_UUID"], found[0]["SYSLOG_IDENTIFIER"], found[0]["PRIORITY"]) == (uuid, "macvm", "5")
    assert found[3]["MACVM_USER"] == "alice"
    assert found[3]["MESSAGE"] == "stop web: done, by uid 1000 (alice, through sudo)"
    assert PASSWORD not in raw
    assert "$6$" not in raw


LAB = """\
lab: two
networks: {lan: {parent: eth0, subnets: [{subnet: 192.0.2.0/24, range: 192.0.2.64/30}]}}
endpoints: {box: {network: lan}}
shims: [{parent: eth0}]
"""


def test_a_lab_tells_each_thing_that_comes_and_goes(host: KvmHost) -> None:
    host.node.run(["tee", "/run/lab.yaml"], input=LAB, check=True)
    with listening(host, JOURNAL):
        host.macvm("lab", "up", "/run/lab.yaml")
        host.macvm("lab", "down", "-y", "two")
        host.sh("rm /run/lab.yaml")
        told = [(one["MACVM_ACTION"], one["MACVM_MACHINE"]) for one in entries(host)]
    made = [("network create", "lan eth0"), ("shim up", "eth0"), ("endpoint-create", "box")]
    assert told == [*made, ("endpoint-delete", "box"), ("shim down", "eth0"), ("network delete", "lan")]


def test_what_failed_and_was_undone_is_said_with_its_reason(host: KvmHost) -> None:
    with listening(host, JOURNAL):
        with host.unchanged():
            host.sh("ip route add 192.0.2.52 dev eth0")
            host.create("web", "--ip", "192.0.2.52/24", "--password", PASSWORD, status=4)
            host.sh("ip route del 192.0.2.52 dev eth0")
        (one,) = entries(host)
    assert (one["MACVM_RESULT"], one["PRIORITY"]) == ("undone", "4")
    assert "192.0.2.52" in one["MACVM_REASON"]


def test_without_a_journal_it_is_syslog(host: KvmHost) -> None:
    with listening(host, SYSLOG):
        host.create("web", "--no-start", "--ip", "192.0.2.51/24", "--password", PASSWORD)
        host.macvm("delete", "--yes", "web")
        made, gone = heard(host)
    assert made.startswith("<29>")
    assert "macvm[" in made
    assert made.endswith("create web: done, by uid 0\0") or made.endswith("create web: done, by uid 0")
    assert "delete web: done" in gone


def test_v_tells_the_steps_and_vv_the_calls_and_neither_a_password(host: KvmHost) -> None:
    words = ("web", "--memory", "128", "--ip", "192.0.2.51/24", "--password", PASSWORD)
    quiet = host.macvm("create", *words)
    assert "step:" not in quiet.stderr
    host.macvm("delete", "--yes", "web")
    told = host.macvm("create", *words, "-v")
    steps = [line.removeprefix("step: ") for line in told.stderr.splitlines() if line.startswith("step: ")]
    assert [line.partition(" (")[0] for line in steps] == [
        "create web", "create web", *(f"create web: {one}" for one in ("disk", "seed", "define", "start", "nics", "routes")),
        "shim mv-eth0 on eth0", "routes of mv-eth0: 1 to add, 0 to remove", "create web: resume",
    ]  # fmt: skip
    uuid = host.show("web")["uuid"]
    assert f"uuid {uuid}" in steps[1]
    assert "192.0.2.51" in steps[1]
    assert "libvirt: " not in told.stderr
    said = [told, host.macvm("-vv", "delete", "--yes", "web"), host.macvm("create", *words, "-vv")]
    for line in ("libvirt: virDomainDefineXMLFlags(<…, ", "netlink: RTM_NEWROUTE ", "netlink: RTM_NEWLINK ", "=mv-eth0",
                 "run: qemu-img create ", "sysctl: net/ipv4/conf/mv-eth0/arp_filter=1"):  # fmt: skip
        assert line in said[-1].stderr, line
    assert "libvirt: virDomainUndefineFlags(" in said[1].stderr
    assert said[-1].stdout.replace(host.show("web")["uuid"], uuid)
    everything = "".join(one.stdout + one.stderr for one in said)
    assert PASSWORD not in everything
    assert "$6$" not in everything
    assert host.macvm("-vv", "-q", "list").stderr == ""
    host.macvm("delete", "--yes", "web")


def test_v_tells_the_steps_of_what_has_no_machine(host: KvmHost) -> None:
    def steps(*words: str) -> list[str]:
        lines = host.macvm("-v", *words).stderr.splitlines()
        return [line.removeprefix("step: ") for line in lines if line.startswith("step: ")]

    to = ("--to", "192.0.2.77,52:54:00:00:00:77")
    assert {"shim mv-eth0 on eth0", "routes of mv-eth0: 1 to add, 0 to remove"} <= {*steps("shim", "up", "eth0", *to)}
    assert "write /etc/systemd/system/macvm-shims.service" in steps("shim", "install")
    host.macvm("shim", "uninstall")
    assert "shim mv-eth0 goes" in steps("shim", "down")
    host.macvm("shim", "forget", "192.0.2.77")


def test_what_a_domain_keeps_secret_is_not_told(host: KvmHost) -> None:
    """libvirt is handed a screen's password with the domain."""
    screen = f"<graphics type='vnc' listen='127.0.0.1' autoport='yes' passwd='{PASSWORD[:8]}'/></devices>"
    base = (Path(__file__).parents[2] / "templates/q35.xml").read_text()
    host.node.run(["tee", "/run/screen.xml"], input=base.replace("</devices>", screen), check=True)
    try:
        told = host.create("web", "--template", "/run/screen.xml", "--no-start", "--ip", "none", "-vv")
        assert PASSWORD[:8] in host.sh("virsh dumpxml --security-info web")
        told.stderr += host.macvm("-vv", "nic", "attach", "web", "--ip", "none").stderr
        told.stderr += host.macvm("-vv", "delete", "--yes", "web").stderr
        assert "virDomainDefineXMLFlags(<" in told.stderr
        assert PASSWORD[:8] not in told.stdout + told.stderr
    finally:
        host.sh("rm /run/screen.xml")


@pytest.mark.parametrize("level", ["-v", "-vv"])
def test_what_is_told_leaves_the_output_alone(host: KvmHost, level: str) -> None:
    assert host.macvm("list", "-o", "json", level).stdout == host.macvm("list", "-o", "json").stdout
