"""What labs are compared with, each as commands that bring so many machines up and take them down again.

The guests have firmware, and a disk whose boot sector halts: what anything bigger does while it boots would be most of
what is measured where there is no KVM.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.bench.sides import output

MACVM = str(Path(sys.executable).with_name("macvm"))

_MACHINES = Path("/var/lib/macvm/machines")
_POOL = Path("/var/lib/libvirt/images")
_LIMIT = _POOL / "limit"
_PRISTINE = _POOL / "pristine"

_LAB = """\
lab: bench
defaults: {{image: halts, memory: 64M, virt_type: qemu, start: {start}}}
networks:
  bench: {{parent: eth0, mode: bridge, shim: true, subnets: [{{subnet: 10.77.0.0/16, range: 10.77.1.0-10.77.255.254}}]}}
vms:
  vm: {{count: {count}, nics: [{{network: bench}}]}}
"""

# The same machines from the same base, with a seed of two short files as macvm's have. Addresses and a shim they do not
# get.
_INSTALL = f"""
for number in $(seq $1); do
  disk={_POOL}/beside-$number.qcow2
  qemu-img create -q -f qcow2 -F qcow2 -b $3 $disk
  virt-install --connect qemu:///system --name beside-$number --memory 64 --vcpus 1 --virt-type qemu --machine q35 \
    --import --disk path=$disk,format=qcow2,bus=virtio \
    --network type=direct,source=eth0,source.mode=bridge,model=virtio \
    --cloud-init user-data=$2/user-data,meta-data=$2/meta-data \
    --osinfo detect=off,require=off --graphics none --noautoconsole --quiet
done
"""
_REMOVE = """
for number in $(seq $1); do
  virsh destroy beside-$number
  virsh undefine beside-$number --remove-all-storage
done
"""

#: `cli`, and `hlt` for ever.
_BOOT_SECTOR = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"

#: Seconds within which guests have booted, and want hardly any of the processors.
_CALM_WITHIN = 300.0


class Course(NamedTuple):
    """Commands that bring machines up and take them down."""

    name: str
    up: tuple[str, ...]
    down: tuple[str, ...]


def lab_file(folder: Path, count: int, *, start: bool) -> Path:
    path = folder / f"{count}{'' if start else '-off'}.yaml"
    path.write_text(_LAB.format(count=count, start="true" if start else "false"))
    return path


def lab_up(path: Path, *options: str) -> list[str]:
    return [MACVM, "lab", "up", str(path), "--yes", "--quiet", *options]


LAB_DOWN = [MACVM, "lab", "down", "bench", "--yes", "--quiet"]


def prepare() -> None:
    """The image that all sides make their disks over, and an address of the host's in the lab's subnet for its shim."""
    _POOL.mkdir(parents=True, exist_ok=True)
    sector = _POOL / "halts.img"
    sector.write_bytes(_BOOT_SECTOR.ljust(1 << 20, b"\0"))
    output([MACVM, "image", "import", str(sector), "halts"])
    output(["ip", "address", "replace", "10.77.0.1/16", "dev", "eth0"])


def of_macvm(path: Path) -> Course:
    return Course("macvm lab", tuple(lab_up(path)), tuple(LAB_DOWN))


def of_virt_install(folder: Path, count: int) -> Course:
    (folder / "user-data").write_text("#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA me]\n")
    (folder / "meta-data").write_text("instance-id: beside\nlocal-hostname: beside\n")
    shell = ("sh", "-e", "-c")
    up = (*shell, _INSTALL, "sh", str(count), str(folder), _base())
    return Course(f"{count} x virt-install, virsh", up, (*shell, _REMOVE, "sh", str(count)))


def _base() -> str:
    images = json.loads(output([MACVM, "image", "list", "-o", "json"]))
    (digest,) = (image["digest"] for image in images if image["name"] == "halts")
    return f"/var/lib/macvm/images/{digest}.qcow2"


def of_limit(threads: int) -> Course:
    """Over `take_limit`."""
    program, over = (sys.executable, "-m", "tests.bench.limit"), (str(_LIMIT), str(threads))
    return Course(f"libvirt's API, threads: {threads}", (*program, "up", *over), (*program, "down", *over))


def take_limit(folder: Path, count: int) -> None:
    """The XMLs of a lab, and its disks and seeds, kept for `of_limit`. The lab is taken down again."""
    output(lab_up(lab_file(folder, count, start=False)))
    shutil.rmtree(_PRISTINE, ignore_errors=True)
    output(["cp", "-a", str(_MACHINES), str(_PRISTINE)])
    for name in output(["virsh", "list", "--all", "--name"]).split():
        xml = output(["virsh", "dumpxml", "--inactive", name])
        (_PRISTINE / f"{name}.xml").write_text(xml.replace(str(_MACHINES), str(_LIMIT)))
    output(LAB_DOWN)


def renew_limit() -> None:
    """As they were taken: guests write on their disks."""
    shutil.rmtree(_LIMIT, ignore_errors=True)
    output(["cp", "-a", str(_PRISTINE), str(_LIMIT)])


def settle() -> None:
    """Waits until the guests have booted: a second in which all of them together want less than a fifth of one."""
    give_up = time.monotonic() + _CALM_WITHIN
    before = _spent_by_guests()
    while time.monotonic() < give_up:
        time.sleep(1)
        now = _spent_by_guests()
        if now - before < 0.2:
            return
        before = now
    raise TimeoutError(f"guests want the processors even after {_CALM_WITHIN:.0f} s")


def _spent_by_guests() -> float:
    """Seconds of all QEMU processes."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found = re.fullmatch(r"\d+ \((.*)\) (.*)", path.read_text().strip(), flags=re.DOTALL)
        except OSError:
            continue  # it has ended
        if found and found[1].startswith("qemu-system"):
            fields = found[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime: proc(5) has them as 14 and 15
    return ticks / os.sysconf("SC_CLK_TCK")
