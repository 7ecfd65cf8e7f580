"""What is compared: macvm's commands, and others that do the same. They run inside a sandbox's host."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.turns import Side

MACVM = str(Path(sys.executable).with_name("macvm"))
_IMAGES = Path("/var/lib/macvm/images")
_DISK = Path("/var/lib/libvirt/images/beside.qcow2")

CREATE = [MACVM, "create", "web1", "--mode", "bridge", "--ip", "192.0.2.11/24", "--image", "tiny"]
CREATE += ["--memory", "512", "--virt-type", "qemu", "--quiet"]

# The same kind of machine from the same base. virt-install gives it 14 spare root ports, as macvm does; a seed, an
# address and a shim it does not get.
_VIRT_INSTALL = f"""
qemu-img create -q -f qcow2 -F qcow2 -b {_IMAGES}/*.qcow2 {_DISK}
exec virt-install --connect qemu:///system --name beside --memory 512 --vcpus 1 --virt-type qemu --machine q35 \
  --import --disk path={_DISK},format=qcow2,bus=virtio \
  --network type=direct,source=eth0,source.mode=bridge,model=virtio \
  --osinfo detect=off,require=off --graphics none --noautoconsole --quiet
"""

# What no program in this language can do without: the interpreter, click, libvirt's module, and one XML a domain.
_BARE_LIST = """
import click, libvirt
for domain in libvirt.openReadOnly("qemu:///system").listAllDomains():
    domain.XMLDesc()
"""

_NIC = '<interface type="direct"><source dev="eth0" mode="bridge"/><model type="virtio"/></interface>'
_DOMAIN = """
<domain type="qemu">
  <name>small{number}</name>
  <memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <devices>
    {nics}
  </devices>
</domain>
"""


def output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def prepare_create() -> None:
    """The image that both sides make their disks over."""
    _DISK.parent.mkdir(parents=True, exist_ok=True)
    output([MACVM, "image", "build", "tiny"])


def remove_created() -> None:
    output([MACVM, "delete", "web1", "--yes"])


def _remove_installed() -> None:
    output(["virsh", "destroy", "beside"])
    output(["virsh", "undefine", "beside"])
    _DISK.unlink()


def define_machines(count: int, nics: int) -> None:
    """Small machines without a disk, not started; those of an earlier call go."""
    names = output(["virsh", "list", "--all", "--name"]).split()
    output(["virsh", "; ".join(f"undefine {name}" for name in names if name.startswith("small")) or "version"])
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number in range(count):
            path = Path(folder, f"{number}.xml")
            path.write_text(_DOMAIN.format(number=number, nics=nics * _NIC))
            commands.append(f"define {path}")
        output(["virsh", "; ".join(commands) or "version"])


help_ = Side("macvm --help", [MACVM, "--help"])
bare_python = Side("python -c pass", [sys.executable, "-c", "pass"])
create = Side("macvm create", CREATE, remove_created)
virt_install = Side("qemu-img, virt-install --import", ["sh", "-e", "-c", _VIRT_INSTALL], _remove_installed)
list_ = Side("macvm list", [MACVM, "list"])
virsh_list = Side("virsh list --all", ["virsh", "list", "--all"])
bare_list = Side("python, click, libvirt, an XML each", [sys.executable, "-c", _BARE_LIST])

_MAC = "52:54:00:0b:e0:01"
attach = Side(
    "macvm nic attach, static",
    [MACVM, "nic", "attach", "web1", "--mac", _MAC, "--ip", "192.0.2.12/24"],
    lambda: output([MACVM, "nic", "detach", "web1", _MAC]),
)
virsh_attach = Side(
    "virsh attach-interface, live and saved",
    [
        *["virsh", "attach-interface", "web1", "direct", "eth0", "--model", "virtio", "--live", "--config", "--mac"],
        _MAC,
    ],
    lambda: output([*["virsh", "detach-interface", "web1", "direct", "--live", "--config", "--mac"], _MAC]),
)
# The same again: modules that every such program has, and the NIC to the guest and to the definition, with no look at
# what is there, no journal, no seed, and nothing of the host's side.
_BARE_ATTACH = f"""
import click, libvirt, lxml.etree
nic = '<interface type="direct"><mac address="{_MAC}"/><source dev="eth0" mode="bridge"/><model type="virtio"/></interface>'
domain = libvirt.open("qemu:///system").lookupByName("web1")
domain.attachDeviceFlags(nic, libvirt.VIR_DOMAIN_AFFECT_LIVE)
domain.attachDeviceFlags(nic, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
"""
bare_attach = Side("python, click, libvirt, lxml, NIC", [sys.executable, "-c", _BARE_ATTACH], virsh_attach.afterwards)
nic_list = Side("macvm nic list --all", [MACVM, "nic", "list", "--all"])
