"""Network namespaces: named ones, laid out as `ip netns` lays them out, and those of other processes.

A namespace is handed about as a descriptor: it lives as long as somebody holds one, whatever becomes of its name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from provisioner.errors import MacvmError, NotFound, Taken, Unable
from provisioner.host.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    mount,
    setns,
    unshare,
)
from provisioner.model.names import check_name, printable

#: Where `ip netns` keeps its names.
FOLDER = Path("/run/netns")
#: An attribute of it, where macvm made it: tmpfs takes no other of root's.
_MARK = "trusted.macvm"

# linux/mount.h, linux/nsfs.h
_MS_RDONLY, _MS_SLAVE, _MS_SHARED = 0x1, 0x80000, 0x100000
_MNT_DETACH = 2
_NS_GET_NSTYPE = 0xB703

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceFailed(MacvmError):
    """The kernel refused to make or enter a network namespace."""


@contextmanager
def _refusals(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"the kernel refused to {doing}: {error.strerror}"
        if error.errno in (errno.EPERM, errno.EACCES):
            raise Unable(reason, "run as root: sudo macvm …") from error
        raise NamespaceFailed(reason, "does `ip netns add` work?") from error


def create(name: str) -> Path:
    """A new, empty network namespace under a name that `ip netns exec NAME` takes too. Its `lo` is down.

    Whole or not at all; what a kill leaves of it `remove` takes away. Raises Taken, Usage for an impossible name.
    """
    path = FOLDER / check_name(name, "a namespace's name")
    with _refusals(f"make the network namespace {name}"):
        _share_folder()
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
        except FileExistsError:
            raise Taken(f"there is a network namespace {name} already", f"ip netns delete {name}") from None
        try:
            _in_thread(lambda: _mount_new(path))
        except BaseException:
            remove(name)
            raise
    return path


def _mount_new(path: Path) -> None:
    unshare(CLONE_NEWNET)
    # /proc/self is the process, whose main thread stays where it is.
    mount("/proc/thread-self/ns/net", str(path), flags=MS_BIND)


def _share_folder() -> None:
    """A mount made in the folder is then seen in the mount namespaces of running services, and so is its removal.

    Without it each would keep its copy, and with that the namespace and its links. Only a mount can be shared: the
    folder becomes one, bound onto itself, where it is none.
    """
    with suppress(FileExistsError):
        FOLDER.mkdir(mode=0o755, parents=True)
        with suppress(OSError):
            os.setxattr(FOLDER, _MARK, b"made")
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # `ip netns add` takes this lock too: two at once would bind the folder twice, one over the other's names.
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            mount("", str(FOLDER), flags=_MS_SHARED | MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            mount(str(FOLDER), str(FOLDER), flags=MS_BIND | MS_REC)
            mount("", str(FOLDER), flags=_MS_SHARED | MS_REC)
    finally:
        os.close(folder)


def made_folder() -> bool:
    """Whether macvm made the folder of names."""
    try:
        return bool(os.getxattr(FOLDER, _MARK))
    except OSError:
        return False


def remove_folder() -> None:
    """Undoes what `create` made of it; with a name in it, it stays. Raises OSError."""
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.listdir(folder):
            return
        while _unmount(FOLDER):
            pass
        FOLDER.rmdir()
    finally:
        os.close(folder)


def remove(name: str) -> None:
    """Takes a name away, and with it the namespace, unless a process or descriptor is in it. Gone already is fine.

    The kernel removes the links in it some time after: who needs their MACs again removes them first.
    """
    path = FOLDER / check_name(name, "a namespace's name")
    with _refusals(f"remove the network namespace {name}"):
        # More than one mount lies there where two programs made the folder shared at once.
        while _unmount(path):
            pass
        path.unlink(missing_ok=True)


def _unmount(path: Path | str) -> bool:
    """Whether there was anything to unmount."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return False
    raise OSError(number, os.strerror(number), str(path))


def open_namespace(where: str) -> int:
    """A descriptor of the network namespace of a process (digits), of a name of `ip netns`, or at a path.

    To be closed by the caller. Raises NotFound, Unable without the right to look.
    """
    if where.isascii() and where.isdigit():
        path, what = f"/proc/{where}/ns/net", f"process {where}"
        hint = "ps shows what runs; a container's: podman inspect -f '{{.State.Pid}}' NAME"
    else:
        path, what = (where if "/" in where else str(FOLDER / where)), f"network namespace {printable(where, 80)}"
        there = ", ".join(names()) or "none"
        hint = f"names here: {there}; a container without one is named by the PID of a process in it"
    try:
        # A path may be anything's: a FIFO without a writer must not keep us waiting.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise Unable(f"{what} may not be looked at", "run as root: sudo macvm …") from error
    except (OSError, ValueError) as error:
        raise NotFound(f"there is no {what}", hint) from error
    if not _is_namespace(fd):
        os.close(fd)
        raise NotFound(f"{printable(path, 80)} is no network namespace", hint)
    return fd


def _is_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def names() -> list[str]:
    """The names that `ip netns list` shows."""
    try:
        return sorted(os.listdir(FOLDER))
    except OSError:
        return []


def own() -> int:
    """A descriptor of the calling thread's network namespace, to be closed by the caller."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def identity(fd: int) -> tuple[int, int]:
    """Two descriptors are of one namespace where these are equal (namespaces(7)). Another takes the number later."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def run_inside(fd: int, function: Callable[[], _T]) -> _T:
    """What a function returns, or raises, when it runs in the network namespace of a descriptor.

    It runs in a thread of its own, for a namespace is a thread's: the caller stays where it is. Sockets, netlink and
    /proc/sys are of the namespace; /sys and /proc/net (not /proc/thread-self/net) are still the caller's.
    """

    def there() -> _T:
        with _refusals("enter a network namespace"):
            setns(fd, CLONE_NEWNET)
        return function()

    return _in_thread(there)


def _in_thread(function: Callable[[], _T]) -> _T:
    results: list[_T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            failures.append(error)

    thread = threading.Thread(target=body, name="in-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def enter(fd: int, argv: Sequence[str], resolv_conf: Path | None = None) -> NoReturn:
    """Replaces this process by a program in a network namespace, which sees its /sys and, where given, its DNS servers.

    Raises CannotRun where the program is not found (127) or cannot be executed (126), Unable without the rights. A
    process that gets one of these after the search for the program may be half in the namespace: it is to end.
    """
    program = _find_program(argv[0])
    with _refusals("enter a network namespace"):
        setns(fd, CLONE_NEWNET)
        unshare(CLONE_NEWNS)
        # What is mounted and unmounted below is not to reach the machine; what the machine mounts is still seen.
        mount("", "/", flags=_MS_SLAVE | MS_REC)
        _own_sys()
        if resolv_conf:
            try:
                # Where it is a symbolic link, as with systemd-resolved, this covers what it points to.
                mount(str(resolv_conf), "/etc/resolv.conf", flags=MS_BIND)
            except FileNotFoundError as error:
                reason = "the namespace cannot have its own DNS servers: there is no /etc/resolv.conf to cover"
                raise Unable(reason, "touch /etc/resolv.conf") from error
    # Python ignores these, and a program inherits that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, list(argv))
    except OSError as error:
        raise _cannot_run(f"{argv[0]}: cannot be executed: {error.strerror}", 126) from error


def _own_sys() -> None:
    """A sysfs of the namespace entered, as read-only as the one there was: containers have it so."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if os.statvfs("/sys").f_flag & os.ST_RDONLY:
        flags |= _MS_RDONLY
    with suppress(OSError):  # where it may not be unmounted, the new one lies over it
        _unmount("/sys")
    mount("sysfs", "/sys", "sysfs", flags)


def _find_program(word: str) -> str:
    import shutil

    found = shutil.which(word)
    if found:
        return found
    folders = [""] if "/" in word else os.environ.get("PATH", os.defpath).split(os.pathsep)
    if any(os.path.exists(os.path.join(folder, word)) for folder in folders):
        raise _cannot_run(f"{printable(word)}: cannot be executed", 126)
    raise _cannot_run(f"{printable(word)}: command not found", 127)


def _cannot_run(message: str, status: int) -> MacvmError:
    from provisioner.host.sandbox.client import CannotRun

    hint = "check its rights, and the first line of a script" if status == 126 else "PATH is your own"
    return CannotRun(message, status, hint)
