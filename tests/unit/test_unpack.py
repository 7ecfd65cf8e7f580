"""Packed images: unpacked byte by byte as they were, or refused with a reason and nothing left."""

from __future__ import annotations

import gzip
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.host import unpack as unpacking
from provisioner.host.disks import ImageRefused
from provisioner.host.unpack import unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST = 64 << 20
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": partial(lzma.compress, preset=0),
    "gz": gzip.compress,
    "zst": zstd.compress,
}

_random = random.Random(5)
#: Some that packs and some that does not, with holes, over several chunks of what is read at once.
CONTENT = _random.randbytes(1 << 18) + bytes(3 << 20) + b"macvm" * 100_000 + _random.randbytes(1 << 17) + bytes(1234567)

kinds = pytest.mark.parametrize("kind", PACKERS)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return tmp_path / "disk.packed"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "disk.raw"


def refused(packed: Path, target: Path, most: int = MOST) -> str:
    with pytest.raises(ImageRefused) as error:
        unpack(packed, target, most)
    assert sorted(packed.parent.iterdir()) == [packed]
    assert error.value.hint
    return error.value.message


@kinds
def test_what_was_packed_comes_out_and_its_holes_take_no_room(kind: str, packed: Path, target: Path) -> None:
    packed.write_bytes(PACKERS[kind](CONTENT))
    assert unpack(packed, target, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert target.stat().st_blocks * 512 < len(CONTENT) - (1 << 20)
    assert sorted(packed.parent.iterdir()) == [packed, target]


@kinds
def test_several_streams_are_one_file(kind: str, packed: Path, target: Path) -> None:
    pack = PACKERS[kind]
    padding = b"" if kind == "zst" else bytes(8)
    packed.write_bytes(pack(CONTENT) + padding + pack(b"") + pack(b"the rest") + padding)
    assert unpack(packed, target, MOST)
    assert target.read_bytes() == CONTENT + b"the rest"


@pytest.mark.parametrize("content", [b"", b"QFI\xfb" + bytes(600), b"\x1f", b"\xfd7zXZ"])
def test_what_is_not_packed_is_left_alone(content: bytes, packed: Path, target: Path) -> None:
    packed.write_bytes(content)
    assert not unpack(packed, target, MOST)
    assert sorted(packed.parent.iterdir()) == [packed]


@kinds
def test_what_was_there_before_stays_where_it_is_refused(kind: str, packed: Path, target: Path) -> None:
    target.write_text("before")
    packed.write_bytes(PACKERS[kind](CONTENT)[:-9])
    with pytest.raises(ImageRefused):
        unpack(packed, target, MOST)
    assert target.read_text() == "before"


@kinds
def test_a_bomb_is_refused_as_soon_as_the_limit_is_passed(
    kind: str, packed: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed.write_bytes(PACKERS[kind](bytes(32 << 20)))
    assert packed.stat().st_size < 1 << 19
    seen = 0
    kinds_of = unpacking._kind

    def counted(magic: bytes) -> object:
        make, error = kinds_of(magic)

        class Counting:
            def __init__(self) -> None:
                self.inner = make()

            def __getattr__(self, name: str) -> object:
                return getattr(self.inner, name)

            def decompress(self, data: bytes, most: int) -> bytes:
                nonlocal seen
                seen += len(chunk := self.inner.decompress(data, most))
                return chunk

        return Counting, error

    monkeypatch.setattr(unpacking, "_kind", counted)
    assert "more than 4.0 MiB" in refused(packed, target, 4 << 20)
    assert 4 << 20 < seen <= 6 << 20


@kinds
def test_one_byte_above_the_limit_is_refused(kind: str, packed: Path, target: Path) -> None:
    packed.write_bytes(PACKERS[kind](CONTENT))
    assert "more than" in refused(packed, target, len(CONTENT) - 1)


def test_a_disk_that_cannot_take_it_is_said(packed: Path, target: Path, as_root: None) -> None:
    packed.write_bytes(gzip.compress(CONTENT))
    program = "import sys; from pathlib import Path; from provisioner.host.unpack import unpack; from provisioner.errors import MacvmError\n"
    program += (
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]), 1 << 30)\nexcept MacvmError as error: print(error.message)"
    )
    small = target.parent / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=512k small {small} && "$@" && ls {small}'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", program, str(packed), str(small / "raw")]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert said == f"it cannot be unpacked into {small}: No space left on device\n"


def test_a_header_that_wants_too_much_memory_is_refused(packed: Path, target: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    packed.write_bytes(lzma.compress(b"small", filters=filters))
    assert "emory" in refused(packed, target)
    wide = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=wide)
    packed.write_bytes(compressor.compress(CONTENT) + compressor.flush())
    assert "emory" in refused(packed, target)


@kinds
def test_garbage_behind_the_end_is_refused(kind: str, packed: Path, target: Path) -> None:
    packed.write_bytes(PACKERS[kind](CONTENT) + b"<html>")
    assert refused(packed, target)


@kinds
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_cut_anywhere_is_refused(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = CONTENT[: 1 << 16]
    whole = PACKERS[kind](content) + PACKERS[kind](content)
    first = len(whole) // 2
    place = data.draw(st.one_of(st.integers(6, len(whole) - 1), st.integers(first - 20, first + 20)))
    folder = tmp_path_factory.mktemp("cut")
    (folder / "packed").write_bytes(whole[:place])
    if place == first:
        assert unpack(folder / "packed", folder / "raw", MOST)
    else:
        assert "cut off" in refused(folder / "packed", folder / "raw")


@kinds
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_changed_byte_never_gives_other_content(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = CONTENT[: 1 << 14]
    pack = PACKERS[kind]
    if kind == "zst":
        compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
        whole = bytearray(compressor.compress(content) + compressor.flush())
    else:
        whole = bytearray(pack(content))
    place = data.draw(st.integers(6, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("changed")
    (folder / "packed").write_bytes(whole)
    try:
        assert unpack(folder / "packed", folder / "raw", MOST)
    except ImageRefused:
        assert not (folder / "raw").exists()
    else:
        assert (folder / "raw").read_bytes() == content
