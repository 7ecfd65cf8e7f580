"""The units of `macvm shim install` under systemd as PID 1, with Debian's own units of libvirt, over reboots."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest

from provisioner.actions.sandbox import Sandbox
from tests.sandbox.booted import Booted
from tests.sandbox.kvm_host import KvmHost

BOOT, WATCH = "macvm-shims.service", "macvm-shims-watch.service"
HOST_SIDE = """(ip route; ip -6 route; ip neigh show nud permanent; ip neigh show proxy; ip -br link show type macvlan
  ip -o link show type macvtap | grep -o '<.*>') | sort"""
#: A machine that needs no system: its disk is empty.
EMPTY = "qemu-img create -q -f qcow2 /tmp/empty.qcow2 8M && macvm image import /tmp/empty.qcow2 empty"
CREATE = "macvm create web1 --image empty --memory 32 --autostart"


@pytest.fixture
def own(fresh_box: Sandbox) -> KvmHost:
    return KvmHost(fresh_box)


def states(up: Booted) -> list[str]:
    return up.sh(f"systemctl is-active {BOOT} {WATCH} libvirtd.service || true").split()


def value(up: Booted, unit: str, key: str) -> str:
    return up.sh(f"systemctl show --value -p {key} {unit}").strip()


def test_a_host_with_no_guest_gets_no_shim_by_booting(own: KvmHost) -> None:
    with Booted(own) as up:
        up.sh("macvm shim install")
        assert states(up) == ["active", "active", "active"]
    with Booted(own) as up:
        up.until(f"systemctl is-active --quiet {BOOT} {WATCH}", "the units never ran")
        assert value(up, BOOT, "Result") == "success"
        assert "mv-" not in up.sh("ip link")
        assert json.loads(up.sh("macvm shim up --known -o json")) == []
        up.sh("macvm shim up")
        assert "mv-eth0" in up.sh("ip link"), "who asks for one gets one"


def test_shims_come_back_with_the_host_and_nobody_types_anything(own: KvmHost) -> None:
    with Booted(own) as up:
        up.sh("macvm shim install")
        killed = value(up, WATCH, "MainPID")
        up.sh(f"kill -9 {killed}")
        up.sh(EMPTY)
        up.sh(f"{CREATE} --ip 192.0.2.11/24")
        up.sh("macvm shim up eth0 --to 192.0.2.40,02:00:00:00:00:40 --to 2001:db8::40,02:00:00:00:00:40")
        wanted = up.sh(HOST_SIDE).rstrip("\n")
        assert "192.0.2.11 dev mv-eth0 proto 109" in wanted
        assert "2001:db8::40 dev mv-eth0 proto 109" in wanted
        up.until(f"systemctl is-active --quiet {WATCH}", "watch was killed, and stayed away")
        assert value(up, WATCH, "MainPID") not in ("0", killed)
        up.shut_down()
        assert value(up, WATCH, "Result") == "success"
        assert up.run("pgrep -f 'macvm shim watch'") == 1
    assert "proto 109" not in own.sh(HOST_SIDE)

    with Booted(own) as up:
        up.until(f"systemctl is-active --quiet {BOOT} {WATCH}", "the units never ran")
        assert up.sh("virsh list --name").split() == ["web1"]
        # Host state of the macvtap that libvirt made is what watch sees to: without it the host has an address there.
        up.until(f"diff <(echo {shlex.quote(wanted)}) <({HOST_SIDE})", "not all came back")
        up.sh("ip link del mv-eth0")
        up.until("ip route | grep -q '192.0.2.11 dev mv-eth0'", "watch is not at work")
        up.sh("macvm shim uninstall")
        assert states(up) == ["inactive", "inactive", "active"]
        assert value(up, "libvirtd.service", "DropInPaths") == ""
        assert "mv-eth0" in up.sh("ip link")
        assert up.sh("find /etc -name '*macvm-*'; systemctl list-unit-files --no-legend 'macvm*' || true") == ""


def test_a_shim_that_came_back_by_a_boot_goes_with_its_last_guest(own: KvmHost) -> None:
    with Booted(own) as up:
        up.sh(EMPTY)
        up.sh(f"{CREATE} --ip 192.0.2.11/24; macvm shim install")
    with Booted(own) as up:
        up.until("ip route | grep -q '192.0.2.11 dev mv-eth0'", "the shim never came back")
        up.sh("macvm delete --yes web1")
        up.until("! ip link | grep -q mv-eth0", "a shim that nobody asked for stays")


def test_libvirt_starts_whatever_becomes_of_the_links(own: KvmHost) -> None:
    with Booted(own) as up:
        up.sh("macvm shim install")
        # A store that is locked keeps `network up` waiting; a macvm that is gone cannot run.
        up.sh("mv /var/lib/macvm/macvm.db /var/lib/macvm/kept; echo no store >/var/lib/macvm/macvm.db")
        up.sh("systemctl restart libvirtd.service; virsh list")
        assert "status=0" not in value(up, "libvirtd.service", "ExecStartPre")


def test_links_wait_for_no_libvirt(own: KvmHost) -> None:
    """libvirtd's own start waits for `network up`, and at its socket systemd would have everybody wait for that. What a
    killed macvm left needs libvirt: it is for later."""
    own.sh(EMPTY)
    script = Path(__file__).with_name("failpoints.py")
    create = ["create", "web1", "--image", "empty", "--memory", "32", "--ip", "none", "--no-start"]
    killed = own.node.run([sys.executable, script, "kill=create:define:after", "--", *create])
    assert killed.returncode == 128 + signal.SIGKILL
    assert "unfinished: create web1" in own.macvm("network", "list").stderr
    own.sh("pkill -STOP -x libvirtd")
    done = own.macvm("network", "up")
    own.sh("pkill -CONT -x libvirtd")
    assert done.stderr == "nothing was missing\n"
