"""What lies in a state directory: macvm's own files, by the names that it gives, and whatever else is there.

No symlink is followed, and no folder looked into that is not macvm's own.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from provisioner.errors import Unable
from provisioner.host.locks import LOCK_FILE
from provisioner.host.store import DATABASE, IMAGES, MACHINES
from provisioner.model.names import UUID

ENDPOINTS = "endpoints"

_IMAGE = re.compile(r"[0-9a-f]{64}\.(qcow2|vmlinuz|initrd)")
#: Of a machine, with what a reset puts beside them for a while, and ssh beside its file.
_MACHINE = re.compile(r"(disk\.qcow2|seed\.iso|nvram\.fd|known_hosts)(\.new|\.old)?|\.seed\.iso\.(new|begun)")
#: Downloads, imports and builds that have not come to their end.
_PART = re.compile(r"\.(part|pull|unpack|build)-.+")
#: With the copies that a change of the schema leaves, and the key of labs. The store itself goes before what SQLite
#: keeps beside it.
_STORE = re.compile(re.escape(DATABASE) + r"(-wal|-shm|-journal|\.v[0-9]+)?|labs\.key|\.labs\.key\.[0-9]+")


class Contents(NamedTuple):
    """`parts` may be folders. `store` is in the order in which it is to go; `folders` the innermost first; `foreign` is
    what macvm gave no such name to."""

    machines: tuple[Path, ...] = ()
    endpoints: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    parts: tuple[Path, ...] = ()
    store: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()


def look(state_dir: Path) -> Contents:
    """Raises Unable."""
    found: dict[str, list[Path]] = {name: [] for name in Contents._fields}
    try:
        if state_dir.is_dir():
            _look_at_top(state_dir, found)
    except OSError as error:
        raise Unable(f"{error.filename} cannot be looked at: {error.strerror}", "sudo macvm …") from error
    return Contents(**{name: tuple(paths) for name, paths in found.items()})


def _look_at_top(state_dir: Path, found: dict[str, list[Path]]) -> None:
    for path, mode in _entries(state_dir):
        if stat.S_ISDIR(mode) and path.name == IMAGES:
            _look_at_images(path, found)
        elif stat.S_ISDIR(mode) and path.name in (MACHINES, ENDPOINTS):
            _look_at_owned(path, found)
        elif stat.S_ISREG(mode) and (path.name == LOCK_FILE or _STORE.fullmatch(path.name)):
            found["store"].append(path)
        else:
            found["foreign"].append(path)
    found["store"].sort(key=lambda path: (path.name == LOCK_FILE, path.name))
    # A link to it, or a mount, is somebody's who wants it there.
    if not state_dir.is_symlink() and not state_dir.is_mount():
        found["folders"].append(state_dir)


def _look_at_images(folder: Path, found: dict[str, list[Path]]) -> None:
    for path, mode in _entries(folder):
        if stat.S_ISREG(mode) and _IMAGE.fullmatch(path.name):
            found["images"].append(path)
        elif (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and _PART.fullmatch(path.name):
            found["parts"].append(path)
        else:
            found["foreign"].append(path)
    found["folders"].append(folder)


def _look_at_owned(folder: Path, found: dict[str, list[Path]]) -> None:
    """A folder for each machine, or endpoint."""
    is_machines = folder.name == MACHINES
    for inner, mode in _entries(folder):
        if not stat.S_ISDIR(mode) or (is_machines and not UUID.fullmatch(inner.name)):
            found["foreign"].append(inner)
            continue
        for path, inner_mode in _entries(inner):
            known = _MACHINE.fullmatch(path.name) if is_machines else path.name == "resolv.conf"
            found[folder.name if stat.S_ISREG(inner_mode) and known else "foreign"].append(path)
        found["folders"].append(inner)
    found["folders"].append(folder)


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.iterdir()):
        yield path, path.lstat().st_mode


def remove_part(path: Path) -> None:
    """A file, or a folder with all in it. Gone already is fine. Raises Unable."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise Unable(f"{path} cannot be removed: {error.strerror}", f"see `lsattr -d {path}`") from error


def remove_if_empty(folder: Path) -> bool:
    """Whether it is gone; one that is a mount point of its own stays."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
