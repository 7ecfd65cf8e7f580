"""Locks between macvm processes: bytes of one file in the state directory.

Open-file-description locks (fcntl(2), F_OFD_SETLK): the kernel drops them with the process, however it ends, so that no
stale lock can be left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

LOCK_FILE = "macvm.lock"

# linux/fcntl.h; Python 3.11 has no names for them.
_F_OFD_GETLK, _F_OFD_SETLK, _F_OFD_SETLKW = 36, 37, 38
# struct flock: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = "hhqqi4x"


def _open(state_dir: Path, flags: int) -> int:
    return os.open(state_dir / LOCK_FILE, flags | os.O_CLOEXEC, 0o644)


def _wish(byte: int) -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)


def create(state_dir: Path) -> None:
    os.close(_open(state_dir, os.O_RDWR | os.O_CREAT))


def try_lock(state_dir: Path, byte: int) -> int | None:
    """A descriptor that holds the lock until it is closed; None where another process holds it."""
    descriptor = _open(state_dir, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.fcntl(descriptor, _F_OFD_SETLK, _wish(byte))
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return descriptor


def wait_for_lock(state_dir: Path, byte: int) -> int:
    """As `try_lock`, waiting as long as it takes."""
    descriptor = _open(state_dir, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.fcntl(descriptor, _F_OFD_SETLKW, _wish(byte))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_locked(state_dir: Path, byte: int) -> bool:
    """Asks without taking it: one that took it for a moment would hide it from somebody who tries."""
    try:
        descriptor = _open(state_dir, os.O_RDONLY)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(descriptor, _F_OFD_GETLK, _wish(byte))
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
