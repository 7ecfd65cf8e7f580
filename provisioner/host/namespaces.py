"""The kernel calls that namespaces are made of: `os.unshare` and `os.setns` came with Python 3.12, mount never.

The standard library alone, and little of it: the first process of every sandbox imports this and nothing heavier.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

#: Bit numbers of include/uapi/linux/capability.h.
CAPABILITIES = {"CAP_KILL": 5, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """unshare(2). CLONE_NEWPID moves not the caller but its next children. Raises OSError."""
    _call(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2). Raises OSError."""
    _call(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError that names the target."""
    words = [word.encode() if word else None for word in (source, target, kind)]
    _call(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), target)


@contextmanager
def children_in_new_pid_namespace() -> Iterator[None]:
    """The first program started in the block is PID 1 of a new PID namespace; the caller stays in its own.

    With the children's namespace set back afterwards, no go-between has to live on as the parent of PID 1.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        unshare(CLONE_NEWPID)
        try:
            yield
        finally:
            setns(own, CLONE_NEWPID)
    finally:
        os.close(own)


def fork_in_new_pid_namespace() -> int:
    """`os.fork`, with the child as PID 1 of a new PID namespace."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    unshare(CLONE_NEWPID)
    pid = os.fork()
    if pid:  # the child may not go back to a parent's namespace
        setns(own, CLONE_NEWPID)
    os.close(own)
    return pid


def missing_rights() -> list[str]:
    """What this process lacks to make namespaces with devices in them, in words; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return ["root"]
    with open("/proc/self/uid_map") as file:
        if file.read().split() != ["0", "0", "4294967295"]:
            # In a user namespace root may mount and make links, but never a device node that opens.
            return ["root of the machine itself, not of a user namespace"]
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
