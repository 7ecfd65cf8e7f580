"""Seeds as ISO volumes: the only user of the ISO writer."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioner.errors import MacvmError, NotFound, Unable

#: By which guests find the seed.
_LABEL = "cidata"

#: A seed's length is a multiple of this: QEMU knows the length that a file had when it was opened.
_ROOM = 1 << 20

#: 1980-01-01: every date on the volume, so that the same texts give the same bytes.
_EPOCH = 315532800.0


def write_seed(path: Path, files: Mapping[str, bytes], owner: tuple[int, int]) -> None:
    """An ISO 9660 volume with Joliet and Rock Ridge names; only `owner` (user, group) may read it: it holds secrets."""
    image = _iso(files)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(image)
        file.truncate(-(-len(image) // _ROOM) * _ROOM)
        os.fchown(file.fileno(), *owner)


def warm_up() -> None:
    """Imports the ISO writer beside whatever the caller does next, best while libvirt or qemu-img is busy."""
    threading.Thread(target=_import, name="import-pycdlib", daemon=True).start()


class _Clock:
    """`time` as the ISO writer sees it: it takes no date from its callers, and reads the local time zone."""

    localtime = staticmethod(time.gmtime)

    @staticmethod
    def time() -> float:
        return _EPOCH

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _import() -> Any:
    import pycdlib
    from pycdlib import dates, headervd
    from pycdlib import pycdlib as writer

    for module in (dates, headervd, writer):
        vars(module)["time"] = _Clock()
    return pycdlib


def replace_seed(path: Path, files: Mapping[str, bytes], owner: tuple[int, int]) -> None:
    """Puts a new seed in the place of an old one; a guest that runs finds it when it boots again by itself.

    For that it is the same file: QEMU has it open, and `virsh change-media` does nothing where the path is the same.
    The new one lies beside it until it is written, and is what counts meanwhile: killed in between, the next change
    goes on.
    """
    begun, new = path.with_name(f".{path.name}.begun"), _waiting(path)
    begun.unlink(missing_ok=True)
    write_seed(begun, files, owner)
    begun.rename(new)
    if path.is_symlink() or not path.exists() or path.stat().st_size != new.stat().st_size:
        new.rename(path)
        return
    with path.open("r+b") as old:
        old.write(new.read_bytes())
        os.fsync(old.fileno())
    new.unlink()


def _waiting(path: Path) -> Path:
    """Where a new seed is that is complete, and may not be in its place yet."""
    return path.with_name(f".{path.name}.new")


def left_beside(path: Path) -> list[Path]:
    """What a macvm that was killed may have left of a new seed."""
    return [one for one in (path.with_name(f".{path.name}.begun"), _waiting(path)) if one.exists()]


class SeedReader:
    """Reads a seed, and imports what writes it, beside whatever the caller does next: best while libvirt is busy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, bytes] | MacvmError | None = None
        self._thread = threading.Thread(target=self._run, name="read-seed", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._files = read_seed(self._path)
        except MacvmError as error:
            self._files = error

    def files(self) -> dict[str, bytes]:
        """As `read_seed`, which is asked again where the thread came to nothing."""
        self._thread.join()
        if isinstance(self._files, MacvmError):
            raise self._files
        return read_seed(self._path) if self._files is None else self._files


def read_seed(path: Path) -> dict[str, bytes]:
    """The files of a seed that macvm wrote. Raises NotFound, Unable for a damaged one."""
    from pycdlib.pycdlibexception import PyCdlibException

    if not path.is_file():
        raise NotFound(f"there is no seed {path}", "it was removed behind macvm's back")
    try:
        return _read(_waiting(path) if _waiting(path).exists() else path)
    except (PyCdlibException, struct.error, IndexError, ValueError) as error:
        # QEMU's user can write to it, and the reader trusts every number in it.
        raise Unable(f"the seed {path} is damaged: {error}", "a machine that is created anew has a new one") from error


def _read(path: Path) -> dict[str, bytes]:
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    found: dict[str, bytes] = {}
    try:
        for folder, _, names in iso.walk(joliet_path="/"):
            for name in names:
                content = io.BytesIO()
                joined = f"{folder.rstrip('/')}/{name}"
                iso.get_file_from_iso_fp(content, joliet_path=joined)
                found[joined.lstrip("/")] = content.getvalue()
    finally:
        iso.close()
    return found


def _iso(files: Mapping[str, bytes]) -> bytes:
    iso = _import().PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=_LABEL)
    folders: dict[str, str] = {"": ""}
    for number, (name, content) in enumerate(sorted(files.items())):
        folder, _, leaf = name.rpartition("/")
        short = _iso_folder(iso, folder, folders)
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"{short}/F{number:04}.;1",
            rr_name=leaf,
            joliet_path=f"/{name}",
        )
    result = io.BytesIO()
    iso.write_fp(result)
    iso.close()
    return result.getvalue()


def _iso_folder(iso: object, folder: str, folders: dict[str, str]) -> str:
    """The ISO path of a folder, whose level-1 names are numbered; made with those above it when missing."""
    if folder not in folders:
        above, _, leaf = folder.rpartition("/")
        short = f"{_iso_folder(iso, above, folders)}/D{len(folders):04}"
        iso.add_directory(short, rr_name=leaf, joliet_path=f"/{folder}")  # type: ignore[attr-defined]
        folders[folder] = short
    return folders[folder]
