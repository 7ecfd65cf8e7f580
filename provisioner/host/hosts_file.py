"""Changes /etc/hosts as a whole: whoever reads it meanwhile sees the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from provisioner.errors import Unable

PATH = Path("/etc/hosts")

#: A file that is mounted by itself, as container engines do it, cannot be replaced, or its folder not be written.
_IN_PLACE = (errno.EBUSY, errno.EXDEV, errno.EROFS)


class Edited(NamedTuple):
    """A file's text before and after. Bytes that are no UTF-8 are surrogates in it."""

    old: str
    new: str


def read(path: Path = PATH) -> str:
    """ "" where there is none. Raises Unable."""
    try:
        # No universal newlines: they would come back as others.
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Unable(f"{path} cannot be read: {error.strerror}", "sudo macvm …") from error


def edit(change: Callable[[str], str], path: Path = PATH) -> Edited:
    """Applies a change, one macvm after the other; mode, owner and extended attributes stay. Raises Unable."""
    target = path.resolve()
    try:
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            old = read(target)
            new = change(old)
            if new != old:
                _write(target, new.encode(errors="surrogateescape"))
        finally:
            os.close(folder)
    except OSError as error:
        hint = "run as root: sudo macvm hosts --write" if os.geteuid() else f"see `findmnt -T {path}`, `lsattr {path}`"
        raise Unable(f"{path} cannot be written: {error.strerror}", hint) from error
    return Edited(old, new)


def _write(path: Path, data: bytes) -> None:
    try:
        _replace(path, data)
    except OSError as error:
        if error.errno not in _IN_PLACE or not path.exists():
            raise
        with open(path, "r+b") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())


def _replace(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-macvm-")
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            _take_after(file.fileno(), path)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_after(descriptor: int, path: Path) -> None:
    try:
        was = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, 0o644)
        return
    os.fchown(descriptor, was.st_uid, was.st_gid)
    os.fchmod(descriptor, was.st_mode & 0o7777)
    # SELinux's label is one of them; a file system without any is fine.
    with contextlib.suppress(OSError):
        for attribute in os.listxattr(path):
            os.setxattr(descriptor, attribute, os.getxattr(path, attribute))
