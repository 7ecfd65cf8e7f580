"""Images as real qemu-img makes them, and as someone hostile or unlucky does; what may be deleted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner.errors import MacvmError, NotFound, Unable
from provisioner.host import disks
from provisioner.host.disks import ImageRefused
from provisioner.model.checksum import Checksum
from tests.conftest import Require

pytestmark = pytest.mark.usefixtures("qemu_img")


@pytest.fixture(scope="session")
def qemu_img(require: Require) -> None:
    require(shutil.which("qemu-img"), "qemu-img is not installed (qemu-utils)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


def qemu(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def raw_disk(path: Path, size: int = 4 << 20, first: int = 2048, count: int = 2048) -> Path:
    """A disk with one partition, in sectors, and content that can be told again."""
    data = bytearray(os.urandom(1 << 16) * (size >> 16))
    data[446:512] = bytes(66)
    data[450] = 0x83
    struct.pack_into("<II", data, 454, first, count)
    data[510:512] = b"\x55\xaa"
    path.write_bytes(data)
    return path


def gpt_disk(path: Path, size: int = 4 << 20) -> Path:
    """A disk of 4 MiB with a GPT, of which `size` bytes are there."""
    data = bytearray(raw_disk(path, first=1, count=0xFFFFFFFF).read_bytes())
    data[450] = 0xEE
    # UEFI 5.3.2: where this header lies, and where the one at the disk's end.
    struct.pack_into("<8sIIIIQQ", data, 512, b"EFI PART", 0x10000, 92, 0, 0, 1, (4 << 11) - 1)
    path.write_bytes(data[:size])
    return path


def qcow2_disk(path: Path, *options: str) -> Path:
    raw = raw_disk(path.with_suffix(".raw"))
    qemu("convert", "-f", "raw", "-O", "qcow2", *options, raw, path)
    return path


def content(path: Path) -> bytes:
    raw = path.parent / "read-back"
    qemu("convert", "-f", "qcow2", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


MAKERS: dict[str, Callable[[Path], Path]] = {
    "raw": raw_disk,
    "raw-gpt": gpt_disk,
    "qcow2": qcow2_disk,
    "qcow2-compressed": lambda path: qcow2_disk(path, "-c"),
    "qcow2-version-2": lambda path: qcow2_disk(path, "-o", "compat=0.10"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_disk_is_stored_whole_read_only_and_by_its_digest(kind: str, tmp_path: Path, folder: Path) -> None:
    source = MAKERS[kind](tmp_path / "disk")
    wanted = source.read_bytes() if kind.startswith("raw") else content(source)
    stored = disks.import_disk(source, folder)
    assert content(stored.path) == wanted
    assert list(folder.iterdir()) == [stored.path]
    assert stored.path.name == f"{sha256(stored.path)}.qcow2"
    assert stored.digest == sha256(stored.path)
    assert stat.S_IMODE(stored.path.stat().st_mode) == 0o444
    assert (stored.size, stored.virtual_size) == (stored.path.stat().st_size, 4 << 20)
    assert disks.import_disk(source, folder).path.parent == folder, "a second time does no harm"


def _truncated_qcow2(path: Path) -> Path:
    os.truncate(qcow2_disk(path), path.stat().st_size // 2)
    return path


def _backed(path: Path, backing: str) -> Path:
    qemu("create", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path, "4M")
    return path


def _external(path: Path) -> Path:
    qemu("create", "-f", "qcow2", "-o", f"data_file={path}.data,data_file_raw=on", path, "4M")
    return path


def _encrypted(path: Path) -> Path:
    secret = ["--object", "secret,id=s,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=s"]
    qemu("create", *secret, "-f", "qcow2", path, "4M")
    return path


def _huge(path: Path) -> Path:
    qemu("create", "-f", "qcow2", path, "60T")
    return path


def _header(path: Path, offset: int, layout: str, value: int) -> Path:
    data = bytearray(qcow2_disk(path).read_bytes())
    struct.pack_into(layout, data, offset, value)
    path.write_bytes(data)
    return path


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], type[MacvmError], str]] = {
    "missing": (lambda path: path, NotFound, "there is no file"),
    "folder": (lambda path: path.mkdir() or path, ImageRefused, "is no file"),  # type: ignore[func-returns-value]
    "device": (lambda path: Path("/dev/null"), ImageRefused, "is no file"),
    "empty": (lambda path: _written(path, b""), ImageRefused, "no disk image"),
    "text": (lambda path: _written(path, b"#!/bin/sh\n" * 500), ImageRefused, "no disk image"),
    "gzip": (lambda path: _written(path, b"\x1f\x8b" + b"zip" * 999), ImageRefused, "no disk image"),
    "raw-cut": (lambda path: raw_disk(path, 1 << 20, 2048, 2048), ImageRefused, "is cut off"),
    "raw-one-sector-short": (lambda path: raw_disk(path, 2 << 20, 2048, 2049), ImageRefused, "is cut off"),
    "gpt-cut": (lambda path: gpt_disk(path, 1 << 20), ImageRefused, "is cut off"),
    "gpt-one-sector-short": (lambda path: gpt_disk(path, (4 << 20) - 512), ImageRefused, "is cut off"),
    "qcow2-cut": (_truncated_qcow2, ImageRefused, "damaged or cut off"),
    "qcow2-header-only": (lambda path: _written(path, b"QFI\xfb\0\0\0\3"), ImageRefused, "header is cut off"),
    "qcow2-version-9": (lambda path: _header(path, 4, ">I", 9), ImageRefused, "unknown version 9"),
    "qcow2-no-size": (lambda path: _header(path, 24, ">Q", 0), ImageRefused, "claims to be a disk of"),
    "qcow2-table-elsewhere": (lambda path: _header(path, 40, ">Q", 1 << 40), ImageRefused, "cut off"),
    "backing-shadow": (lambda path: _backed(path, "/etc/shadow"), ImageRefused, "names another file"),
    "backing-json": (
        lambda path: _backed(path, 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}'),
        ImageRefused,
        "names another file",
    ),
    "backing-network": (lambda path: _backed(path, "nbd://192.0.2.1/x"), ImageRefused, "names another file"),
    "data-file": (_external, ImageRefused, "keeps its data in another file"),
    "encrypted": (_encrypted, ImageRefused, "is encrypted"),
    # Made with a key of LUKS, either would take seconds: the key is stretched.
    "encrypted-luks": (lambda path: _header(path, 32, ">I", 2), ImageRefused, "is encrypted"),
    "luks": (lambda path: _written(path, b"LUKS\xba\xbe\0\1" + bytes(4 << 20)), ImageRefused, "no disk image"),
    "60-terabytes": (_huge, ImageRefused, "claims to be a disk of 60 TiB"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_and_leaves_nothing(kind: str, tmp_path: Path, folder: Path) -> None:
    make, error, why = REFUSED[kind]
    source = make(tmp_path / "disk")
    with pytest.raises(error, match=why) as refused:
        disks.import_disk(source, folder)
    assert refused.value.hint
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_wrong_checksum_is_refused_with_both(algorithm: str, tmp_path: Path) -> None:
    source = raw_disk(tmp_path / "disk")
    right = Checksum(algorithm, hashlib.new(algorithm, source.read_bytes()).hexdigest())
    disks.check_file(source, right)
    wrong = right._replace(digest="0" * len(right.digest))
    with pytest.raises(ImageRefused, match="does not have the checksum") as refused:
        disks.check_file(source, wrong)
    assert wrong.digest in refused.value.hint
    assert right.digest in refused.value.hint


def test_a_disk_may_be_moved_into_the_store(folder: Path) -> None:
    source = qcow2_disk(folder / "fetched")
    source.with_suffix(".raw").unlink()
    wanted = sha256(source)
    stored = disks.import_disk(source, folder, move=True)
    assert stored.digest == wanted
    assert list(folder.iterdir()) == [stored.path]


def test_a_raw_disk_that_is_too_large_is_refused(tmp_path: Path, folder: Path) -> None:
    source = raw_disk(tmp_path / "disk")
    os.truncate(source, disks.MOST_VIRTUAL + 512)
    with pytest.raises(ImageRefused, match=r"it is a disk of 8\.0 TiB"):
        disks.import_disk(source, folder)
    assert list(folder.iterdir()) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, (1 << 20) - 1))
def test_a_qcow2_cut_by_a_cluster_or_more_is_refused(tmp_path: Path, folder: Path, at: int) -> None:
    source = tmp_path / "whole.qcow2"
    if not source.exists():
        qcow2_disk(source)
    whole = source.read_bytes()
    cut = _written(tmp_path / "cut.qcow2", whole[: at * (len(whole) - (1 << 16)) >> 20])
    with pytest.raises(ImageRefused):
        disks.import_disk(cut, folder)
    assert list(folder.iterdir()) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000), st.booleans())
def test_any_bytes_are_an_image_or_refused(tmp_path: Path, folder: Path, data: bytes, as_qcow2: bool) -> None:
    source = _written(tmp_path / "disk", (b"QFI\xfb" if as_qcow2 else b"") + data)
    with pytest.raises(MacvmError) as refused:
        disks.import_disk(source, folder)
    assert refused.value.hint
    assert list(folder.iterdir()) == []


def test_an_overlay_leaves_its_base_alone(tmp_path: Path, folder: Path) -> None:
    base = disks.import_disk(raw_disk(tmp_path / "disk"), folder)
    before, stamp = base.path.read_bytes(), disks.stamp(base.path)
    overlay = tmp_path / "overlay.qcow2"
    disks.create_overlay(base.path, overlay, 8 << 20)
    assert stat.S_IMODE(overlay.stat().st_mode) == 0o600
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 1M", overlay], check=True, capture_output=True)
    assert content(overlay)[: 1 << 20] == b"\x5a" * (1 << 20)
    assert len(content(overlay)) == 8 << 20
    assert (base.path.read_bytes(), disks.stamp(base.path)) == (before, stamp)
    assert disks.backing_files(overlay) == [base.path]
    described = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", overlay]))
    assert described["backing-filename-format"] == "qcow2"


def test_a_stamp_changes_with_the_content(tmp_path: Path) -> None:
    path = _written(tmp_path / "file", b"a")
    before = disks.stamp(path)
    os.utime(path, ns=(0, 0))
    assert disks.stamp(path) != before


# deleting


def test_a_file_inside_is_removed_and_gone_is_fine(folder: Path) -> None:
    path = _written(folder / "disk", b"")
    disks.remove_file(path, folder)
    assert not path.exists()
    disks.remove_file(path, folder)


def test_a_state_directory_behind_a_symlink_is_still_ones_own(tmp_path: Path, folder: Path) -> None:
    path = _written(folder / "disk", b"")
    (tmp_path / "state").symlink_to(folder)
    disks.remove_file(tmp_path / "state" / "disk", tmp_path / "state")
    assert not path.exists()


def test_nothing_outside_and_nothing_through_a_symlink_is_removed(tmp_path: Path, folder: Path) -> None:
    outside = _written(tmp_path / "precious", b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    inner = _written(elsewhere / "precious", b"")
    (folder / "link").symlink_to(outside)
    (folder / "away").symlink_to(elsewhere)
    for path in (
        outside,
        folder / ".." / "precious",
        folder / "link",
        folder / "away" / "precious",
        Path("/etc/hostname"),
        tmp_path / "images-of-others" / "x",
    ):
        with pytest.raises(Unable, match="is not deleted"):
            disks.remove_file(path, folder)
    assert outside.exists()
    assert inner.exists()
    assert (folder / "link").is_symlink()
