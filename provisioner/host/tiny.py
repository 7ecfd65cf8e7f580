"""Builds the tiny image: Debian's kernel, its virtual drivers and busybox, ready in seconds and without network.

It understands the same NoCloud seed as CirrOS and cloud-init. What runs inside is in `images/tiny/`. The same inputs
give the same bytes: no clock, no user id and no random number gets into the files.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.errors import MacvmError, Problems, Unable
from provisioner.host.commands import PACKAGES, missing_tool, run
from provisioner.resources import resource

#: For a direct boot of `TinyImage.kernel`. The last words only save time, which counts under emulation.
CMDLINE = (
    "console=tty0 console=ttyS0 quiet panic=1 nokaslr mitigations=off no_timer_check cryptomgr.notests "
    "noreplace-smp lsm=capability rodata=off"
)

#: What a guest's virtual hardware can ask for. Modules that they depend on come along.
MODULES = (
    *("virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_rng", "virtio_console"),
    *("e1000", "e1000e", "8139cp", "8139too"),
    *("ahci", "ata_piix", "ata_generic", "sd_mod", "sr_mod"),
    *("isofs", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "button", "evdev"),
)

_TOOLS = ("busybox", "syslinux", "mformat", "mcopy", "qemu-img")
_SYSLINUX_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
_SECTOR = 512
_FIRST_SECTOR = 2048
_LOADED_AT = 0x100000  # where loaders put a bzImage that is not relocatable
_SIGNATURE = b"~Module signature appended~\n"


@dataclass(frozen=True)
class TinyImage:
    """What `build` made: kernel and initial RAM file system for a direct boot; a qcow2 disk that boots by itself."""

    kernel: Path
    initrd: Path
    disk: Path


@dataclass(frozen=True)
class Entry:
    """One file of an archive: `mode` has the type bits too; `device` is (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(target_dir: Path) -> TinyImage:
    """Builds the image into `target_dir`, which is made when missing; takes some seconds.

    Raises Unable, or Problems with all of them, when a kernel or a tool is not installed.
    """
    version, vmlinuz = _check(Path("/boot"), Path("/lib/modules"))
    target_dir.mkdir(parents=True, exist_ok=True)
    image = TinyImage(target_dir / "tiny-kernel", target_dir / "tiny-initrd", target_dir / "tiny.qcow2")
    with tempfile.TemporaryDirectory(dir=target_dir, prefix=".tiny-") as scratch:
        made = TinyImage(Path(scratch, "kernel"), Path(scratch, "initrd"), Path(scratch, "disk"))
        made.kernel.write_bytes(fast_kernel(vmlinuz.read_bytes()))
        made.initrd.write_bytes(cpio(initrd_entries(Path("/lib/modules", version))))
        _make_disk(made, Path(scratch))
        for source, target in zip(_paths(made), _paths(image), strict=True):
            source.replace(target)
    return image


def _paths(image: TinyImage) -> tuple[Path, Path, Path]:
    return image.kernel, image.initrd, image.disk


def _check(boot: Path, modules: Path) -> tuple[str, Path]:
    """Version and file of the kernel to take, once everything else is known to be there too."""
    problems: list[MacvmError] = [missing_tool(tool) for tool in _TOOLS if not shutil.which(tool)]
    busybox = shutil.which("busybox")
    if busybox and is_dynamic(Path(busybox).read_bytes()):
        problems.append(Unable("busybox is not the static one: it cannot run without a C library", _hint("busybox")))
    if not _SYSLINUX_MBR.exists():
        problems.append(Unable(f"{_SYSLINUX_MBR} is not installed on this host", "apt install syslinux-common"))
    found = newest_kernel(boot, modules)
    if found is None:
        problems.append(
            Unable(f"no kernel in {boot} that has its modules in {modules}", "apt install linux-image-amd64")
        )
    if len(problems) == 1:
        raise problems[0]
    if problems or found is None:
        raise Problems(problems)
    return found


def _hint(tool: str) -> str:
    return f"apt install {PACKAGES[tool]}"


def newest_kernel(boot: Path, modules: Path) -> tuple[str, Path] | None:
    """Version and file of the newest readable `vmlinuz-VERSION` with a `VERSION/modules.dep`, or None."""
    kernels = [
        (file.name.removeprefix("vmlinuz-"), file)
        for file in boot.glob("vmlinuz-*")
        if os.access(file, os.R_OK) and (modules / file.name.removeprefix("vmlinuz-") / "modules.dep").is_file()
    ]
    return max(kernels, key=lambda kernel: _version_key(kernel[0]), default=None)


def _version_key(version: str) -> list[tuple[int, str]]:
    """Numbers count as such; a candidate (6.12~rc1) comes before what it is a candidate for."""
    parts = re.findall(r"\d+|~|[^\d.+~-]+", version)
    return [(int(part), "") if part.isdigit() else (-2 if part in ("~", "rc") else -1, part) for part in parts]


def is_dynamic(program: bytes) -> bool:
    """Whether a 64-bit ELF program asks for a loader (PT_INTERP = 3)."""
    if program[:5] != b"\x7fELF\x02":
        return True
    return any(segment.kind == 3 for segment in segments(program))


@dataclass(frozen=True)
class Segment:
    """A segment of a 64-bit ELF file: kind 1 is loaded, 3 names a loader, 4 holds notes. `header` is its own place."""

    header: int
    kind: int
    offset: int
    physical: int
    in_file: int


def segments(program: bytes) -> Iterator[Segment]:
    """The segments of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    for header in range(table, table + count * size, size):
        kind, _, offset, _, physical, in_file = struct.unpack_from("<IIQQQQ", program, header)
        yield Segment(header, kind, offset, physical, in_file)


# --- the kernel


def fast_kernel(packed: bytes) -> bytes:
    """The same kernel as a bzImage with nothing to unpack, or as it came where its packing is unknown.

    An emulated CPU takes more than 3 s to unpack Debian's xz. Here the setup code is kept, and what a loader puts at
    1 MB (Documentation/x86/boot.rst) is replaced by: a stub, a descriptor table, page tables that map the first 4 GB
    onto themselves, and the unpacked kernel, which the stub copies to where it is linked and enters in 64-bit mode.
    """
    unpacked = unpack_kernel(packed)
    if unpacked is None:
        return packed
    loaded = [segment for segment in segments(unpacked) if segment.kind == 1]
    base = min(segment.physical for segment in loaded)
    flat = bytearray(max(segment.physical + segment.in_file for segment in loaded) - base)
    for segment in loaded:
        place = segment.physical - base
        flat[place : place + segment.in_file] = unpacked[segment.offset : segment.offset + segment.in_file]
    content = bytes(flat).rstrip(b"\0")  # the kernel zeroes its own .bss
    content += b"\0" * (-len(content) % 16)
    (entry,) = struct.unpack_from("<Q", unpacked, 24)
    table, pages, source = _LOADED_AT + 0x100, _LOADED_AT + 0x1000, _LOADED_AT + 0x8000
    if base <= source:
        return packed  # the backward copy would run over what it copies
    protected = _stub(source, base, len(content), table, pages, entry).ljust(0x100, b"\0")
    protected += struct.pack("<HIxx", 31, table + 8) + struct.pack(
        "<QQQQ", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF
    )
    protected = protected.ljust(0x1000, b"\0") + _identity_map(pages)
    protected = protected.ljust(0x8000, b"\0") + content
    setup = bytearray(packed[: _setup_size(packed)])
    struct.pack_into("<I", setup, 0x1F4, len(protected) // 16)  # syssize
    struct.pack_into("<I", setup, 0x214, _LOADED_AT)  # code32_start
    setup[0x234] = 0  # relocatable_kernel
    struct.pack_into("<H", setup, 0x236, 0)  # xloadflags: no 64-bit and no EFI entry any more
    struct.pack_into("<II", setup, 0x248, 0, 0)  # payload_offset, payload_length
    return bytes(setup) + protected


def _stub(source: int, target: int, length: int, table: int, pages: int, entry: int) -> bytes:
    """What runs first in 32-bit mode: no paging, flat segments, esi = boot_params, which the kernel wants in rsi."""

    def word(number: int) -> bytes:
        return struct.pack("<I", number)

    code = b"\xfa\xfd" + b"\x89\xf5"  # cli; std; mov ebp, esi
    code += b"\xbe" + word(source + length - 4)  # mov esi, last word of the source
    code += b"\xbf" + word(target + length - 4)  # mov edi, last word of the target: backwards, since they overlap
    code += b"\xb9" + word(length // 4) + b"\xf3\xa5\xfc"  # mov ecx, words; rep movsd; cld
    code += b"\xb8" + word(pages) + b"\x0f\x22\xd8"  # mov eax, pages; mov cr3, eax
    code += b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0"  # cr4 |= PAE
    code += b"\xb9" + word(0xC0000080) + b"\x0f\x32\x0d" + word(0x100) + b"\x0f\x30"  # EFER |= long mode
    code += b"\x0f\x01\x15" + word(table)  # lgdt [table]
    code += b"\x0f\x20\xc0\x0d" + word(0x80000001) + b"\x0f\x22\xc0"  # cr0 |= paging, protected mode
    code += b"\xea" + word(_LOADED_AT + len(code) + 7) + b"\x10\0"  # jmp 0x10:the next byte, in 64-bit mode
    return code + b"\x89\xee\xb8" + word(entry) + b"\xff\xe0"  # mov esi, ebp; mov eax, entry; jmp rax


def _identity_map(pages: int) -> bytes:
    """Six page tables at the address `pages`: one of level 4, one of level 3, four of 512 pages of 2 MB."""
    top = struct.pack("<Q", pages + 0x1000 | 3).ljust(4096, b"\0")
    middle = struct.pack("<4Q", *(pages + 0x2000 + number * 4096 | 3 for number in range(4))).ljust(4096, b"\0")
    return top + middle + struct.pack("<2048Q", *(number << 21 | 0x83 for number in range(2048)))


def _setup_size(packed: bytes) -> int:
    return ((packed[0x1F1] or 4) + 1) * _SECTOR


def unpack_kernel(packed: bytes) -> bytes | None:
    """The ELF file within a bzImage (Documentation/x86/boot.rst: payload_offset), or None in an unknown packing."""
    if len(packed) < 0x260 or packed[0x202:0x206] != b"HdrS":
        return None
    start = _setup_size(packed)
    offset, length = struct.unpack_from("<II", packed, 0x248)
    payload = packed[start + offset : start + offset + length]
    try:
        if payload.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            unpacked = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            unpacked = gzip.decompress(payload[:-4])
        elif payload.startswith(b"BZh"):
            unpacked = bz2.BZ2Decompressor().decompress(payload)
        elif payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
            unpacked = run(["zstd", "-d", "-q", "-c"], stdin=payload[:-4])
        else:
            return None
    except (OSError, EOFError, lzma.LZMAError, MacvmError):
        return None
    return unpacked if unpacked[:5] == b"\x7fELF\x02" else None


# --- the initial RAM file system


def cpio(entries: Iterable[Entry]) -> bytes:
    """A `newc` archive as the kernel unpacks it, owned by root, with all times 0.

    Not compressed: under emulation, reading it is cheaper than unpacking it.
    """
    out = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4) + entry.data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def initrd_entries(modules: Path) -> list[Entry]:
    """Everything in the guest's root, sorted by name, parents before children."""
    recipe = resource("images", "tiny", "root")
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    files = {"bin/busybox": Entry("bin/busybox", stat.S_IFREG | 0o4755, busybox.read_bytes())}
    for applet in run([busybox, "--list-full"]).decode().split():
        files.setdefault(applet, Entry(applet, stat.S_IFLNK | 0o777, b"/bin/busybox"))
    for file in recipe.rglob("*"):
        if file.is_file():
            name, data = str(file.relative_to(recipe)), file.read_bytes()
            # A wheel does not keep the executable bit.
            mode = 0o600 if name == "etc/shadow" else 0o755 if data.startswith(b"#!") else 0o644
            files[name] = Entry(name, stat.S_IFREG | mode, data)
    for entry in module_entries(modules, MODULES):
        files[entry.name] = entry
    files["dev/console"] = Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    folders |= {"proc", "sys", "run", "tmp", "root", "mnt", "var/log", "var/run", "home/cirros"}
    folders |= {str(parent) for name in folders for parent in Path(name).parents} - {"."}
    for folder in folders:
        files[folder] = Entry(folder, stat.S_IFDIR | (0o1777 if folder == "tmp" else 0o755))
    return [files[name] for name in sorted(files)]


def module_entries(modules: Path, wanted: Iterable[str]) -> list[Entry]:
    """The modules, what they need, and an index of just these. A module built into the kernel is left out.

    Raises Unable when a module is neither there nor built in.
    """
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    paths = {module_name(path): path for path in needs}
    builtin_list = modules / "modules.builtin"
    builtin = {module_name(path) for path in builtin_list.read_text().split()} if builtin_list.exists() else set()
    taken: set[str] = set()
    for module in wanted:
        name = module_name(module)
        if name in paths:
            taken |= {paths[name], *needs[paths[name]]}
        elif name not in builtin:
            raise Unable(f"the kernel {modules.name} has no module {module}", "apt install linux-image-amd64")
    names = {module_name(path) for path in taken}
    plain = {path: re.sub(r"\.(xz|gz|zst)$", "", path) for path in needs}
    index = "".join(f"{plain[path]}: {' '.join(plain[need] for need in needs[path])}\n" for path in sorted(taken))
    aliases = [
        line
        for line in (modules / "modules.alias").read_text().splitlines()
        if line.startswith("alias ") and module_name(line.split()[-1]) in names
    ]
    top = f"lib/modules/{modules.name}"
    texts = {"modules.dep": index, "modules.alias": "\n".join(aliases) + "\n"}
    return [
        *(Entry(f"{top}/{plain[path]}", stat.S_IFREG | 0o644, _module(modules / path)) for path in sorted(taken)),
        *(Entry(f"{top}/{name}", stat.S_IFREG | 0o644, text.encode()) for name, text in texts.items()),
    ]


def module_name(path: str) -> str:
    """`virtio_rng` for kernel/drivers/char/hw_random/virtio-rng.ko.xz: the kernel takes `-` and `_` as one."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def _module(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    elif path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = run(["zstd", "-d", "-q", "-c"], stdin=data)
    return unsigned(data)


def unsigned(module: bytes) -> bytes:
    """A module without its signature, which an emulated CPU would take long to verify (linux/module_signature.h)."""
    if not module.endswith(_SIGNATURE):
        return module
    length = int.from_bytes(module[-len(_SIGNATURE) - 4 : -len(_SIGNATURE)], "big")
    return module[: -len(_SIGNATURE) - 12 - length]


# --- the disk


def _make_disk(image: TinyImage, scratch: Path) -> None:
    """A qcow2 disk with an MBR and one FAT partition, made without root and without loop devices."""
    raw, config = scratch / "raw", scratch / "syslinux.cfg"
    config.write_text(resource("images", "tiny", "syslinux.cfg").read_text().replace("@CMDLINE@", CMDLINE))
    # Room for what is inside and at least 1 MB for the file system's own tables.
    used = image.kernel.stat().st_size + image.initrd.stat().st_size
    sectors = ((used >> 20) + 2) * 2048
    with raw.open("wb") as file:
        file.write(master_boot_record(_SYSLINUX_MBR.read_bytes(), sectors))
        file.truncate((_FIRST_SECTOR + sectors) * _SECTOR)
    partition = f"{raw}@@{_FIRST_SECTOR * _SECTOR}"
    # mtools takes its times from SOURCE_DATE_EPOCH, in the local time zone.
    fixed = ["env", "SOURCE_DATE_EPOCH=315532800", "TZ=UTC"]
    geometry = ["-h", "64", "-s", "32", "-H", str(_FIRST_SECTOR), "-T", str(sectors)]
    run([*fixed, "mformat", "-i", partition, "-N", "6d61636d", "-v", "TINY", "-c", "4", *geometry, "::"])
    run([*fixed, "syslinux", "--install", "--offset", str(_FIRST_SECTOR * _SECTOR), raw])
    run([*fixed, "mcopy", "-i", partition, config, image.kernel, image.initrd, "::"])
    # Not compressed: syslinux reads across clusters, so each would be unpacked twice at every boot, for 0.5 s.
    run(["qemu-img", "convert", "-O", "qcow2", raw, image.disk])


def master_boot_record(code: bytes, sectors: int) -> bytes:
    """Boot code and one active FAT16 partition (type 0x0E, addressed by sector number)."""
    beyond = b"\xfe\xff\xff"  # cylinder, head and sector of what lies past their range
    partition = b"\x80" + beyond + b"\x0e" + beyond + struct.pack("<II", _FIRST_SECTOR, sectors)
    return code[:440].ljust(440, b"\0") + b"macv\0\0" + partition.ljust(64, b"\0") + b"\x55\xaa"
