"""The tiny image's parts that need neither root nor QEMU."""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.errors import Problems, Unable
from provisioner.host import tiny
from provisioner.resources import resource

Require = Callable[[object, str], None]

SIGNATURE = b"signed" + bytes(8) + (6).to_bytes(4, "big") + b"~Module signature appended~\n"


def elf(segments: list[tuple[int, int, bytes]], entry: int = 0) -> bytes:
    """A 64-bit ELF file of (kind, physical address, content)."""
    out = struct.pack(
        "<4sBBBx8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 62, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    place = 64 + 56 * len(segments)
    for kind, physical, content in segments:
        out += struct.pack("<IIQQQQQQ", kind, 0, place, physical, physical, len(content), len(content), 0)
        place += len(content)
    return out + b"".join(content for _, _, content in segments)


def big_image(payload: bytes) -> bytes:
    """A bzImage of one setup sector besides the boot sector, with `payload` 16 bytes into the rest."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    setup[0x234] = 1
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def test_archive_has_every_field_and_is_aligned() -> None:
    archive = tiny.cpio([tiny.Entry("a", stat.S_IFREG | 0o644, b"xyz"), tiny.Entry("d", stat.S_IFDIR | 0o755)])
    assert archive.startswith(
        b"070701" + b"00000001" + b"000081A4" + b"00000000" * 2 + b"00000001" + b"00000000" + b"00000003"
    )
    assert archive[110:112] == b"a\0"
    assert archive[112:115] == b"xyz"
    assert archive[116:122] == b"070701"
    assert b"TRAILER!!!" in archive
    assert len(archive) % 4 == 0


def test_archive_opens_with_cpio(require: Require, tmp_path: Path) -> None:
    require(shutil.which("busybox"), "needs busybox (apt install busybox-static)")
    archive = tiny.cpio(
        [
            tiny.Entry("bin", stat.S_IFDIR | 0o755),
            tiny.Entry("bin/sh", stat.S_IFLNK | 0o777, b"/bin/busybox"),
            tiny.Entry("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        ]
    )
    subprocess.run(["busybox", "cpio", "-i"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/sh").readlink() == Path("/bin/busybox")
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["6.1.0-9-amd64", "6.1.0-56-amd64"], "6.1.0-56-amd64"),
        (["6.1.0-56-amd64", "6.12.3-amd64"], "6.12.3-amd64"),
        (["6.12~rc1-amd64", "6.12-amd64"], "6.12-amd64"),
        ([], None),
    ],
)
def test_newest_kernel(tmp_path: Path, versions: list[str], newest: str | None) -> None:
    for version in [*versions, "9.9-without-modules"]:
        (tmp_path / f"vmlinuz-{version}").touch()
        if version in versions:
            (tmp_path / version).mkdir()
            (tmp_path / version / "modules.dep").touch()
    found = tiny.newest_kernel(tmp_path, tmp_path)
    assert (found and found[0]) == newest


def test_signature_is_cut_off_and_an_unsigned_module_stays() -> None:
    assert tiny.unsigned(b"module" + SIGNATURE) == b"module"
    assert tiny.unsigned(b"module") == b"module"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "6.1-test"
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel/low.ko.xz").write_bytes(lzma.compress(b"low" + SIGNATURE))
    (folder / "kernel/high-one.ko").write_bytes(b"high")
    (folder / "kernel/other.ko").write_bytes(b"other")
    (folder / "modules.dep").write_text(
        "kernel/low.ko.xz:\nkernel/high-one.ko: kernel/low.ko.xz\nkernel/other.ko: kernel/low.ko.xz\n"
    )
    (folder / "modules.alias").write_text("# c\nalias pci:v1* high_one\nalias pci:v2* other\n")
    (folder / "modules.builtin").write_text("kernel/inside.ko\n")
    return folder


def test_modules_come_unpacked_with_what_they_need_and_an_index_of_just_these(modules: Path) -> None:
    entries = {entry.name: entry.data for entry in tiny.module_entries(modules, ["high_one", "inside"])}
    assert entries == {
        "lib/modules/6.1-test/kernel/low.ko": b"low",
        "lib/modules/6.1-test/kernel/high-one.ko": b"high",
        "lib/modules/6.1-test/modules.dep": b"kernel/high-one.ko: kernel/low.ko\nkernel/low.ko: \n",
        "lib/modules/6.1-test/modules.alias": b"alias pci:v1* high_one\n",
    }


def test_a_module_that_is_nowhere_is_named(modules: Path) -> None:
    with pytest.raises(Unable, match="no module absent"):
        tiny.module_entries(modules, ["absent"])


def test_static_and_dynamic_programs() -> None:
    assert not tiny.is_dynamic(elf([(1, 0, b"code")]))
    assert tiny.is_dynamic(elf([(1, 0, b"code"), (3, 0, b"/lib64/ld.so")]))
    assert tiny.is_dynamic(b"#!/bin/sh\n")


@pytest.mark.parametrize("pack", [lzma.compress, lambda data: lzma.compress(data, lzma.FORMAT_ALONE)])
def test_fast_kernel_holds_the_segments_where_they_are_linked(pack: Callable[[bytes], bytes]) -> None:
    unpacked = elf([(1, 0x1000000, b"text"), (1, 0x1000010, b"data" + bytes(50)), (4, 0, b"note")], entry=0x1000000)
    packed = big_image(pack(unpacked) + bytes(4))
    fast = tiny.fast_kernel(packed)
    assert fast[:0x1F1] == packed[:0x1F1]
    assert fast[0x234] == 0
    protected = fast[1024:]
    assert struct.unpack_from("<I", fast, 0x1F4)[0] * 16 == len(protected)
    assert protected[0x8000:] == b"text".ljust(16, b"\0") + b"data".ljust(16, b"\0")
    assert protected[:2] == b"\xfa\xfd"
    # Last words of source and target: 1 MB + 0x8000 and 16 MB, plus 32 bytes less one word.
    assert struct.unpack_from("<xI", protected, 4)[0] == 0x10801C
    assert struct.unpack_from("<xI", protected, 9)[0] == 0x100001C


def test_a_kernel_of_unknown_packing_stays_as_it_is() -> None:
    for packed in (big_image(b"what is this"), b"not a kernel", big_image(lzma.compress(b"not ELF"))):
        assert tiny.fast_kernel(packed) == packed


def test_master_boot_record_has_one_active_partition() -> None:
    record = tiny.master_boot_record(b"\x33\xc0" + bytes(510), 4096)
    assert len(record) == 512
    assert record.endswith(b"\x55\xaa")
    assert record[446] == 0x80
    assert struct.unpack_from("<II", record, 454) == (2048, 4096)
    assert record[462:510] == bytes(48)


def test_everything_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    monkeypatch.setattr(tiny, "_SYSLINUX_MBR", tmp_path / "mbr.bin")
    with pytest.raises(Problems) as raised:
        tiny._check(tmp_path, tmp_path)
    hints = {problem.hint for problem in raised.value.problems}
    packages = {"busybox-static", "syslinux", "syslinux-common", "mtools", "qemu-utils", "linux-image-amd64"}
    assert hints == {f"apt install {package}" for package in packages}


@pytest.fixture
def nic_facts(require: Require) -> Callable[[str, str], list[str]]:
    require(shutil.which("busybox"), "needs busybox (apt install busybox-static)")
    program = resource("images", "tiny", "root", "lib", "tiny", "network-config.awk")

    def facts(config: str, mac: str) -> list[str]:
        words = ["busybox", "awk", "-v", f"mac={mac}", "-f", str(program)]
        return subprocess.run(words, input=config, text=True, capture_output=True, check=True).stdout.splitlines()

    return facts


OURS = """\
version: 2
ethernets:
  nic0:
    match:
      macaddress: "52:54:00:12:34:56"
    set-name: eth0
    dhcp4: false
    dhcp6: false
    mtu: 1400
    addresses:
      - "192.0.2.11/24"
      - "2001:db8::11/64"
    routes:
      - to: "0.0.0.0/0"
        via: "192.0.2.1"
      - to: "::/0"
        via: "2001:db8::1"
    nameservers:
      addresses: ["192.0.2.1", "2001:db8::53"]
  nic1:
    match:
      macaddress: "52:54:00:12:34:57"
    set-name: eth1
    dhcp4: true
    dhcp6: false
  nic2:
    match:
      macaddress: "52:54:00:12:34:58"
    set-name: eth2
    dhcp4: false
"""

BY_HAND = """\
# written by hand
network:
    version: 2
    renderer: networkd
    ethernets:
        lan:
            addresses: [192.0.2.7/24,  '2001:db8::7/64']   # both
            gateway4: 192.0.2.1
            gateway6: 2001:db8::1
            nameservers:
                search: [example.org]
                addresses:
                - 192.0.2.53
                - 2001:db8::53
            routes:
            - via: 192.0.2.9
              to: default
              metric: 100
            match: {}
            match:
                macaddress: 52:54:00:AB:CD:EF
    bridges:
        br0:
            macaddress: "52:54:00:00:00:99"
            addresses: [203.0.113.1/24]
"""


def test_network_config_as_macvm_writes_it(nic_facts: Callable[[str, str], list[str]]) -> None:
    assert nic_facts(OURS, "52:54:00:12:34:56") == [
        "listed",
        "nic nic0",
        "name eth0",
        "mtu 1400",
        "address 192.0.2.11/24",
        "address 2001:db8::11/64",
        "route 0.0.0.0/0 192.0.2.1",
        "route ::/0 2001:db8::1",
        "dns 192.0.2.1",
        "dns 2001:db8::53",
    ]
    assert nic_facts(OURS, "52:54:00:12:34:57") == ["listed", "nic nic1", "name eth1", "dhcp4"]
    assert nic_facts(OURS, "52:54:00:12:34:58") == ["listed", "nic nic2", "name eth2"]
    assert nic_facts(OURS, "52:54:00:12:34:59") == []


def test_network_config_as_people_write_it(nic_facts: Callable[[str, str], list[str]]) -> None:
    assert nic_facts(BY_HAND, "52:54:00:ab:cd:ef") == [
        "listed",
        "nic lan",
        "address 192.0.2.7/24",
        "address 2001:db8::7/64",
        "route 0.0.0.0/0 192.0.2.1",
        "route ::/0 2001:db8::1",
        "dns 192.0.2.53",
        "dns 2001:db8::53",
        "route default 192.0.2.9",
    ]
    assert nic_facts(BY_HAND.replace("\n", "\r\n"), "52:54:00:ab:cd:ef") == nic_facts(BY_HAND, "52:54:00:ab:cd:ef")
    assert nic_facts(BY_HAND, "52:54:00:00:00:99") == []


def test_every_script_of_the_recipe_parses(require: Require) -> None:
    require(shutil.which("busybox"), "needs busybox (apt install busybox-static)")
    root = resource("images", "tiny", "root")
    scripts = [file for file in root.rglob("*") if file.is_file() and file.read_bytes().startswith(b"#!")]
    assert len(scripts) >= 6
    for script in [*scripts, root / "lib/tiny/common"]:
        subprocess.run(["busybox", "ash", "-n", str(script)], check=True)
