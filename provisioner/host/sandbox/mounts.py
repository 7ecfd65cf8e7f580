"""The directories that a node has to itself: mounts over the machine's, which nobody outside sees."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from provisioner.host.namespaces import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, mount
from provisioner.host.sandbox.files import write
from provisioner.host.sandbox.layout import LAN, SOCKETS, addresses, host_name

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kvm", "net/tun", "vhost-net")


def _own_dev() -> None:
    """A /dev of the node's own. The tmpfs comes first: nothing is ever made in the machine's /dev, nor its ptmx."""
    there: dict[str, os.stat_result] = {}
    for name in _DEVICES:
        with suppress(FileNotFoundError):
            there[name] = os.stat(f"/dev/{name}")
    mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755")
    for folder, mode in (("net", 0o755), ("pts", 0o755), ("shm", 0o1777)):
        os.mkdir(f"/dev/{folder}")
        os.chmod(f"/dev/{folder}", mode)
    for name, like in there.items():
        os.mknod(f"/dev/{name}", like.st_mode, like.st_rdev)
        os.chown(f"/dev/{name}", like.st_uid, like.st_gid)
        os.chmod(f"/dev/{name}", stat.S_IMODE(like.st_mode))
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV)
    os.symlink("pts/ptmx", "/dev/ptmx")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def own_views() -> None:
    """/dev, /proc and /sys as this node's namespaces see them. The new sysfs also hides the machine's cgroups."""
    _own_dev()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def own_etc(name: str, hosts: int) -> None:
    """An overlay: /etc/macvm may not exist on the machine, and nothing written in here may stay there."""
    upper, work = f"/run/etc-{name}/upper", f"/run/etc-{name}/work"
    os.makedirs(upper)
    os.makedirs(work)
    mount("overlay", "/etc", "overlay", 0, f"lowerdir=/etc,upperdir={upper},workdir={work}")
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for node in (LAN, *map(host_name, range(1, hosts + 1))):
        lines += [f"{address} {node}" for address in addresses(node)]
    # No name server is on this LAN: without one in resolv.conf a look-up is refused at once, not given up after 10 s.
    for file, text in (("hosts", "\n".join(lines) + "\n"), ("resolv.conf", ""), ("hostname", name + "\n")):
        with suppress(FileNotFoundError):
            os.unlink(f"/etc/{file}")
        write(f"/etc/{file}", text)


def own_run() -> None:
    sockets = os.open(SOCKETS, os.O_PATH | os.O_DIRECTORY)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir(SOCKETS, 0o700)
    mount(f"/proc/self/fd/{sockets}", SOCKETS, flags=MS_BIND)
    os.close(sockets)
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)


def cover(directory: str, *, folders: bool = True) -> None:
    """An empty tmpfs over a directory; with `folders` those in it are made again, owners and modes too."""
    if not os.path.isdir(directory):
        _mirror(os.path.dirname(directory))
        os.mkdir(directory, 0o755)
    own = os.stat(directory)
    with os.scandir(directory) as entries:
        below = [(entry.name, entry.stat()) for entry in entries if folders and entry.is_dir(follow_symlinks=False)]
    mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={stat.S_IMODE(own.st_mode):o}")
    for name, like in below:
        path = f"{directory}/{name}"
        os.mkdir(path)
        os.chown(path, like.st_uid, like.st_gid)
        os.chmod(path, stat.S_IMODE(like.st_mode))


def _mirror(directory: str) -> None:
    """A tmpfs over a directory with all that was in it bound back, so that a missing mount point can be made in it.

    Making it in the directory itself would leave it on the machine, and removing it there would unmount what is on it.
    """
    if directory in _mirrored:
        return
    covered = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    with os.scandir(directory) as entries:
        below = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name, mode in below:
        source, target = f"/proc/self/fd/{covered}/{name}", f"{directory}/{name}"
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            write(target, "")
        mount(source, target, flags=MS_BIND | MS_REC)
    os.close(covered)
    _mirrored.add(directory)


_mirrored: set[str] = set()
