"""Disk images and overlays: the only user of qemu-img."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from provisioner.errors import MacvmError, NotFound, Unable, Usage
from provisioner.host.commands import ToolFailed, run
from provisioner.model.names import printable
from provisioner.model.sizes import human_size

if TYPE_CHECKING:
    from provisioner.model.checksum import Checksum

#: The largest disk that an image may claim: a hostile one of 1 MB can claim 60 TiB.
MOST_VIRTUAL = 8 << 40

_QCOW2 = b"QFI\xfb"
_CHUNK = 1 << 20


class ImageRefused(Usage):
    """The file is no image that macvm takes."""


class DiskImage(NamedTuple):
    """A base image in the local store: `path` is `<digest>.qcow2`; sizes in bytes."""

    path: Path
    digest: str
    size: int
    virtual_size: int


def stamp(path: Path) -> str:
    """What changes when a file's content does, without reading it: inode, size and modification time."""
    found = path.stat()
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    import hashlib

    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(source: Path, checksum: Checksum | None = None) -> None:
    """Raises NotFound, Unable, ImageRefused for what is no file that can be read, or has not that checksum."""
    _read_head(source)
    if checksum:
        found = digest_of(source, checksum.algorithm)
        if found != checksum.digest:
            hint = f"expected {checksum.algorithm} {checksum.digest}, found {found}: fetch it again"
            raise ImageRefused(f"{source} does not have the checksum that was given", hint)


def _read_head(source: Path) -> bytes:
    try:
        if not stat.S_ISREG(source.stat().st_mode):
            raise ImageRefused(f"{source} is no file", "name a disk image: raw or qcow2")
        return _head(source)
    except FileNotFoundError:
        raise NotFound(f"there is no file {source}", "check the path; `macvm image list` shows what is here") from None
    except OSError as error:
        raise Unable(f"{source} cannot be read: {error.strerror}", "check its rights") from None


def import_disk(source: Path, folder: Path, *, move: bool = False) -> DiskImage:
    """Takes a raw or qcow2 disk into `folder` as `<sha256>.qcow2`, read-only. `move`: the source is on the same file
    system, in a folder where nobody else writes, and is used up.

    Raises NotFound, ImageRefused for what is no disk, truncated, or would make QEMU read other files.
    """
    head = _read_head(source)
    is_qcow2 = head.startswith(_QCOW2)
    if is_qcow2:
        _check_qcow2(source, head)
    else:
        _check_raw(source, head)
    with _temporary(folder) as temporary:
        # Into the store first, checked there: nobody can change it between the check and the use.
        if is_qcow2:
            source.rename(temporary) if move else _copy(source, temporary)
            _check_qcow2(temporary, _head(temporary))
            _check_whole(temporary, source)
        else:
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, temporary], timeout=3600)
        return _into_store(temporary, folder, ".qcow2")


def import_file(source: Path, folder: Path, suffix: str) -> Path:
    """Takes a kernel or an initramfs into `folder` as `<sha256><suffix>`, read-only."""
    with _temporary(folder) as temporary:
        _copy(source, temporary)
        return _into_store(temporary, folder, suffix).path


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    # Not at the top: an import that `nic attach` would pay for.
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix=".part-", dir=folder)
    os.close(descriptor)
    try:
        yield Path(name)
    except OSError as error:
        raise MacvmError(f"the image cannot be stored in {folder}: {error.strerror}", f"df -h {folder}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)


def _into_store(temporary: Path, folder: Path, suffix: str) -> DiskImage:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    digest = digest_of(temporary)
    path = folder / f"{digest}{suffix}"
    # Readable by all, as libvirt's own images are: QEMU's user must read a base; secrets belong into seeds.
    temporary.chmod(0o444)
    temporary.rename(path)
    return DiskImage(path, digest, path.stat().st_size, virtual_size(path) or 0)


def _check_qcow2(path: Path, head: bytes) -> None:
    """Reads the header itself (QEMU's docs/interop/qcow2.txt): qemu-img would follow the names that stand in it."""
    refuse = f"{path.name} is refused as an image: "
    if len(head) < 72:
        raise ImageRefused(refuse + "its header is cut off", "fetch it again")
    version, backing = struct.unpack_from(">IQ", head, 4)
    virtual, encryption = struct.unpack_from(">QI", head, 24)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 and len(head) >= 80 else 0
    if version not in (2, 3):
        raise ImageRefused(refuse + f"it is qcow2 of the unknown version {version}", "qemu-img convert makes version 3")
    if backing:
        hint = "make it whole first, where you trust it: qemu-img convert -O qcow2"
        raise ImageRefused(refuse + "it is an overlay that names another file", hint)
    if features & 4:
        raise ImageRefused(refuse + "it keeps its data in another file", "make it whole with qemu-img convert")
    if encryption:
        raise ImageRefused(refuse + "it is encrypted", "decrypt it with qemu-img convert")
    entries, table, counts = struct.unpack_from(">IQQ", head, 36)
    if max(table + 8 * entries, counts + 8) > path.stat().st_size:
        # qemu-img check finds nothing here: what lies behind the end reads as an empty disk.
        raise ImageRefused(refuse + "it is cut off before the end of its tables", "fetch it again")
    if not 0 < virtual <= MOST_VIRTUAL:
        size = f"it claims to be a disk of {human_size(virtual)}"
        raise ImageRefused(refuse + size, f"macvm takes disks of at most {human_size(MOST_VIRTUAL)}")


def _check_whole(path: Path, source: Path) -> None:
    try:
        run(["qemu-img", "check", "-f", "qcow2", "--output=json", path], timeout=600)
    except ToolFailed:
        raise ImageRefused(f"{source} is damaged or cut off: qemu-img check finds errors", "fetch it again") from None


def _check_raw(path: Path, head: bytes) -> None:
    """A raw disk has a boot sector whose partitions lie inside the file, as does the end of a GPT."""
    size = path.stat().st_size
    if size > MOST_VIRTUAL:
        hint = f"macvm takes disks of at most {human_size(MOST_VIRTUAL)}"
        raise ImageRefused(f"{path} is refused as an image: it is a disk of {human_size(size)}", hint)
    if size < 512 or head[510:512] != b"\x55\xaa":
        raise ImageRefused(f"{path} is no disk image: neither qcow2 nor a raw disk with a boot sector", "is it packed?")
    for entry in range(446, 510, 16):
        kind = head[entry + 4]
        first, count = struct.unpack_from("<II", head, entry + 8)
        # 0xEE: a GPT's protective entry may cover more than the disk.
        if kind not in (0, 0xEE) and (first + count) * 512 > size:
            raise ImageRefused(f"{path} is cut off: a partition ends behind the end of the file", "fetch it again")
    # UEFI 5.3.2: the second header is the disk's last sector, and the first one says where that is.
    if head[512:520] == b"EFI PART" and len(head) >= 552:
        (last,) = struct.unpack_from("<Q", head, 512 + 32)
        if (last + 1) * 512 > size:
            raise ImageRefused(f"{path} is cut off before the end of its partition table", "fetch it again")


def create_overlay(base: Path, path: Path, size: int | None) -> None:
    """A qcow2 overlay of `size` bytes (None: as large as the base) that records what the guest writes."""
    argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path]
    run([*argv, str(size)] if size else argv)
    path.chmod(0o600)


def create_disk(path: Path, size: int) -> None:
    """An empty qcow2 disk."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)])
    path.chmod(0o600)


def virtual_size(path: Path) -> int | None:
    """In bytes; None where there is no qcow2 disk any more: QEMU, which its guest may have taken over, can write to it
    what it likes."""
    try:
        head = _head(path)
    except OSError:
        return None
    size = struct.unpack_from(">Q", head, 24)[0] if head.startswith(_QCOW2) and len(head) >= 32 else 0
    return size if 0 < size <= MOST_VIRTUAL else None


def grow(path: Path, size: int) -> None:
    """Makes a disk that nobody has open larger; `size` in bytes."""
    run(["qemu-img", "resize", "-q", "-f", "qcow2", path, str(size)])


def backing_files(path: Path) -> list[Path]:
    """The chain below an overlay that macvm made; not to be asked of a file from elsewhere."""
    try:
        chain = json.loads(run(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path]))
    except ToolFailed:
        return []
    backing = chain.get("backing-filename")
    return [Path(backing)] if backing else []


def remove_file(path: Path, inside: Path) -> None:
    """Deletes a file that macvm recorded as its own. Gone already is fine.

    Raises Unable for one outside `inside`, or reached through a symlink: the record may have been tampered with.
    """
    # `inside` itself may be reached through a symlink; what is below it may not.
    below = path.parent.relative_to(inside) if path.is_relative_to(inside) else None
    if below is None or path.is_symlink() or path.parent.resolve() != inside.resolve() / below:
        raise Unable(f"{printable(str(path), 200)} is not deleted: it is not inside {inside}", "look at it yourself")
    path.unlink(missing_ok=True)
