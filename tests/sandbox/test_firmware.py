"""BIOS and UEFI: one disk image that boots by both, from overlays; a template's own firmware; a host without OVMF."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.host.tiny import CMDLINE, newest_kernel
from tests.conftest import Require
from tests.sandbox.kvm_host import KvmHost, complaints

_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
_MB = 1 << 20
_TEMPLATE = """<domain type='qemu'><os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><serial type='pty'/></devices></domain>"""


@pytest.fixture(scope="module")
def both(host: KvmHost, require: Require, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tiny image with an EFI system partition behind its own, which holds the same system."""
    require(_STUB.exists(), f"needs {_STUB} (apt install systemd-boot-efi)")
    folder = tmp_path_factory.mktemp("firmware")
    files = {Path(path).suffix: path for path in host.sh("ls /var/lib/macvm/images/*").split()}
    host.sh(f"qemu-img convert -O raw {files['.qcow2']} {folder}/raw; cp {files['.initrd']} {folder}/initrd")
    add_efi_partition(folder)
    host.macvm("image", "import", folder / "raw", "both")
    host.sh(f"rm -r {folder}")
    yield "both"
    host.macvm("image", "delete", "--yes", "both")


def add_efi_partition(folder: Path) -> None:
    """Appends a FAT partition with kernel, command line and initial RAM file system in one EFI program."""
    raw, program, cmdline = folder / "raw", folder / "BOOTX64.EFI", folder / "cmdline"
    found = newest_kernel(Path("/boot"), Path("/lib/modules"))
    assert found
    cmdline.write_text(CMDLINE + "\0")
    words: list[str | Path] = ["objcopy"]
    parts = ((".cmdline", cmdline, 0x30000), (".linux", found[1], 0x2000000), (".initrd", folder / "initrd", 0x3000000))
    for section, file, place in parts:
        words += ["--add-section", f"{section}={file}", "--change-section-vma", f"{section}={place:#x}"]
    subprocess.run([*words, _STUB, program], check=True)
    first = -(-raw.stat().st_size // _MB) * _MB
    size = (program.stat().st_size // _MB + 2) * _MB
    with raw.open("r+b") as file:
        file.truncate(first + size)
        file.seek(446 + 16)
        beyond = b"\xfe\xff\xff"
        file.write(b"\0" + beyond + b"\xef" + beyond + struct.pack("<II", first // 512, size // 512))
    partition = ["-i", f"{raw}@@{first}"]
    geometry = ["-h", "64", "-s", "32", "-H", str(first // 512), "-T", str(size // 512)]
    subprocess.run(["mformat", *partition, *geometry, "::"], check=True)
    subprocess.run(["mmd", *partition, "::/EFI", "::/EFI/BOOT"], check=True)
    subprocess.run(["mcopy", *partition, program, "::/EFI/BOOT/BOOTX64.EFI"], check=True)


def test_one_disk_boots_by_bios_and_by_uefi(host: KvmHost, both: str) -> None:
    with host.unchanged():
        host.macvm("create", "new", "--image", both, "--firmware", "uefi", "--memory", "256", "--ip", "192.0.2.61/24")
        host.create("old", "--image", both, "--firmware", "bios", "--ip", "192.0.2.62/24")
        assert [host.show(name)["firmware"] for name in ("new", "old")] == ["uefi", "bios"]
        assert "uefi" in host.macvm("show", "new").stdout
        assert host.page("192.0.2.61", seconds=120).startswith("new\n")
        assert host.page("192.0.2.62", seconds=120).startswith("old\n")
        log = "/var/log/libvirt/qemu/{}-serial.log"
        assert "BdsDxe: starting Boot" in host.sh(f"tr -d '\\0' <{log.format('new')}")
        assert "BdsDxe" not in host.sh(f"tr -d '\\0' <{log.format('old')}")
        # The variables are its own, hidden from others, and outlast its power.
        nvram = f"/var/lib/macvm/machines/{host.show('new')['uuid']}/nvram.fd"
        made = host.sh(f"stat -c '%a %i' {nvram}")
        assert made.startswith("600 ")
        host.macvm("stop", "--force", "new")
        assert host.show("new")["firmware"] == "uefi"
        host.macvm("start", "new")
        assert host.sh(f"stat -c '%a %i' {nvram}") == made
        assert "secure='yes'" not in host.sh("virsh dumpxml new")
        host.macvm("delete", "--yes", "old", "new")


def test_a_templates_own_firmware_wins_and_that_is_said(host: KvmHost, tmp_path: Path) -> None:
    template = tmp_path / "efi.xml"
    template.write_text(_TEMPLATE)
    with host.unchanged():
        said = host.macvm("create", "own", "--template", template, "--firmware", "bios", "--dry-run").stdout
    assert f"# note: {template} brings its own firmware, which stays: --firmware bios does nothing\n" in said
    assert '<os firmware="efi">' in said
    agreed = host.macvm("create", "own", "--template", template, "--firmware", "uefi", "--dry-run").stdout
    assert "brings its own firmware" not in agreed
    # The catalogue knows what an image boots by.
    assert "# note: tiny boots by BIOS alone, and own has UEFI\n" in agreed


def test_a_host_without_ovmf_says_so_before_anything_is_made(host: KvmHost, tmp_path: Path) -> None:
    template = tmp_path / "efi.xml"
    template.write_text(_TEMPLATE)
    # An empty descriptor of the same name hides a package's (QEMU's docs/interop/firmware.json).
    hidden = "/etc/qemu/firmware"
    host.sh(f"mkdir -p {hidden}; for one in /usr/share/qemu/firmware/*; do : >{hidden}/${{one##*/}}; done")
    try:
        with host.unchanged():
            for words in (["--firmware", "uefi"], ["--template", template]):
                said = host.create("none", *words, "--ip", "192.0.2.61/24", "--vcpus", 0, status=2)
                assert ("this host has no UEFI firmware for q35 machines", "apt install ovmf") in complaints(
                    said.stderr
                )
            for words in (["none", "--firmware", "uefi"], ["none", "--firmware", "uefi", "--dry-run"]):
                host.create(*words, status=5)
    finally:
        host.sh(f"rm -r {hidden}")
