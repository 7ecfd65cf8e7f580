"""No libvirtd, but a daemon for each driver, as on Fedora: libvirt's client finds virtqemud by its socket.

Debian 12 has the drivers in files of their own and no programs for them: here libvirtd runs under virtqemud's name, at
its sockets and with its pid file, and loads QEMU's driver. The network driver is in there too: a daemon that is not
built as virtqemud asks no virtnetworkd.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import make_sandbox
from tests.sandbox.kvm_host import KvmHost, complaints

ROOT = Path(__file__).parents[2]

_MODULAR = r"""
kill $(cat /run/libvirtd.pid)
timeout 30 sh -c 'while pgrep -x libvirtd; do sleep 0.05; done' >/dev/null
own=/run/modular
mkdir -p $own/drivers
cp $(command -v libvirtd) $own/virtqemud
modules=$(dirname $(find /usr/lib* -name libvirt_driver_qemu.so))
ln -s $modules/libvirt_driver_{qemu,network}.so $own/drivers
{ cat /etc/libvirt/libvirtd.conf; echo "unix_sock_dir = \"$own\""; } >/etc/libvirt/virtqemud.conf
rm /etc/libvirt/libvirtd.conf
LIBVIRT_DRIVER_DIR=$own/drivers $own/virtqemud --daemon --config /etc/libvirt/virtqemud.conf --pid-file /run/virtqemud.pid
for socket in sock sock-ro; do ln -s $own/libvirt-$socket /run/libvirt/virtqemud-$socket; done
virsh -q -c qemu:///system net-start default
pgrep -l 'virtqemud|libvirtd' | cut -d' ' -f2
"""


@pytest.fixture(scope="module")
def modular() -> Iterator[KvmHost]:
    with make_sandbox() as box:
        host = KvmHost(box)
        assert host.sh(_MODULAR) == "virtqemud\n"
        host.sh("qemu-img create -q -f qcow2 /tmp/empty.qcow2 8M")
        host.macvm("image", "import", "/tmp/empty.qcow2", "empty")
        yield host


def test_a_machine_s_life(modular: KvmHost) -> None:
    nics = ["--nic", "parent=eth0,ip=192.0.2.11/24", "--nic", "libvirt=default"]
    modular.create("web1", "--image", "empty", *nics, "--no-probe")
    assert "master virbr0" in modular.sh("ip -o link show type tun")
    assert [machine["name"] for machine in modular.json("list")] == ["web1"]
    mac = modular.json("nic", "attach", "web1", "--ip", "none", "--live", "--config")["nic"]["mac"]
    assert mac in [nic["mac"] for nic in modular.show("web1")["nics"]]
    assert "192.0.2.11 dev mv-eth0" in modular.sh("ip route")
    modular.macvm("stop", "--force", "web1")
    modular.macvm("start", "web1")
    modular.macvm("delete", "--yes", "web1")
    assert modular.json("list") == []
    assert modular.sh("ip -o link show type macvtap; ip -o link show type macvlan") == ""


def test_work_that_virtqemud_s_restart_settles(modular: KvmHost) -> None:
    """As for libvirtd: macvm knows one run of the daemon from the next."""
    asked = (
        "from provisioner.host.hypervisor import Hypervisor as H; print(H('qemu:///system', readonly=True).daemon())"
    )
    pid = modular.sh("cat /run/virtqemud.pid").strip()
    assert modular.node.run([sys.executable, "-c", asked], cwd=ROOT).stdout.startswith(f"virtqemud {pid} ")


def test_a_virtqemud_that_is_gone(modular: KvmHost) -> None:
    modular.sh("kill -KILL $(cat /run/virtqemud.pid); timeout 30 sh -c 'while pgrep -x virtqemud; do sleep 0.05; done'")
    [(error, hint)] = complaints(modular.macvm("create", "web2", "--image", "empty", "--ip", "none", status=6).stderr)
    assert "not reachable" in error
    assert "virtqemud" in hint
