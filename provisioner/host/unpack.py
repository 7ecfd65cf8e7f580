"""Images that are published packed: xz, gzip and Zstandard, told apart by their first bytes."""

from __future__ import annotations

import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from provisioner.errors import MacvmError
from provisioner.host.disks import ImageRefused
from provisioner.model.sizes import human_size

_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
# xz -9 takes 65 MiB to unpack; a header may ask for 4 GiB.
_MOST_MEMORY = 256 << 20


class _Unpacker(Protocol):
    """One stream's, as lzma.LZMADecompressor is."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gunzip:
    """zlib in lzma's manner."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def unpack(source: Path, target: Path, most: int) -> bool:
    """Unpacks `source` into `target`, of at most `most` bytes; False, and nothing is written, where it is not packed.

    Raises ImageRefused for what is damaged, cut off, too large, or followed by something else.
    """
    with source.open("rb") as packed:
        magic = packed.read(6)
        packed.seek(0)
        if not magic.startswith((_XZ, _GZIP, _ZSTD)):
            return False
        with _written(target) as file:
            for chunk in _unpacked(packed, magic, source.name):
                if file.tell() + len(chunk) > most:
                    reason = f"unpacked it has more than {human_size(most)}"
                    raise ImageRefused(f"{source.name} is refused: {reason}", "is it a disk image?")
                if chunk == _ZEROS[: len(chunk)]:
                    # A hole: a disk is mostly empty.
                    file.seek(len(chunk), os.SEEK_CUR)
                else:
                    file.write(chunk)
    return True


@contextmanager
def _written(target: Path) -> Iterator[BinaryIO]:
    """A file that is in place only when the block ends well."""
    temporary = target.with_name(f"{target.name}.unpacked")
    try:
        with temporary.open("wb") as file:
            yield file
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    except OSError as error:
        folder = target.parent
        raise MacvmError(f"it cannot be unpacked into {folder}: {error.strerror}", f"df -h {folder}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _unpacked(packed: BinaryIO, magic: bytes, name: str) -> Iterator[bytes]:
    """The content, in pieces of at most `_CHUNK` bytes, of one stream after another."""
    make, errors = _kind(magic)
    unpacker, data = make(), b""
    while True:
        if unpacker.needs_input and not data:
            data = packed.read(_CHUNK)
            if not data:
                raise ImageRefused(f"{name} is refused: it is cut off", "fetch it again")
        try:
            chunk = unpacker.decompress(data, _CHUNK)
        except errors as error:
            raise ImageRefused(f"{name} is refused: it is damaged: {error}", "fetch it again") from error
        data = b""
        if chunk:
            yield chunk
        if unpacker.eof:
            data = unpacker.unused_data or packed.read(_CHUNK)
            # xz and gzip may be padded with zeros, which no stream begins with.
            while data and not (data := data.lstrip(b"\0")):
                data = packed.read(_CHUNK)
            if not data:
                return
            unpacker = make()


def _kind(magic: bytes) -> tuple[Callable[[], _Unpacker], type[Exception]]:
    if magic == _XZ:
        return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _MOST_MEMORY), lzma.LZMAError
    if magic.startswith(_GZIP):
        return _Gunzip, zlib.error
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    return zstd.ZstdDecompressor, zstd.ZstdError
