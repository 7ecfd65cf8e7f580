"""A network namespace for each test: real kernel, real links, nothing of this machine's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.context import Context, Settings
from provisioner.host import namespaces, netlink
from tests.conftest import Require

CLONE_FS = 0x200  # linux/sched.h


def ip(*words: object) -> Any:
    """`ip -j …`, in this thread's network namespace."""
    argv = ["ip", "-j", *" ".join(map(str, words)).split()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return json.loads(done.stdout or "[]")


@pytest.fixture
def namespace(require: Require, as_root: None) -> Iterator[None]:
    """Moves this thread into a new network namespace, and back; the namespace goes with everything in it."""
    require(shutil.which("ip"), "ip is not installed (iproute2)")
    missing = [name for name in namespaces.missing_rights() if name != "CAP_MKNOD"]
    require(not missing, f"needs {', '.join(missing)}")
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    namespaces.unshare(namespaces.CLONE_NEWNET)
    try:
        assert {link.name for link in netlink.links()} <= {"lo", "sit0", "ip6tnl0", "tunl0", "gre0"}, "not in a new one"
        ip("link set lo up")
        yield
    finally:
        namespaces.setns(own, namespaces.CLONE_NEWNET)
        os.close(own)


@pytest.fixture
def lan(namespace: None, require: Require) -> None:
    """`eth0`, a veth with 192.0.2.2/24 and 2001:db8::2/64, up and wired to `far`; its MTU is 1500."""
    ip("link add eth0 type veth peer name far")
    ip("addr add 192.0.2.2/24 dev eth0")
    ip("addr add 2001:db8::2/64 dev eth0 nodad")
    for name in ("eth0", "far"):
        ip("link set", name, "up")
    argv = ["ip", "link", "add", "probe", "link", "far", "type", "macvlan", "mode", "bridge"]
    probe = subprocess.run(argv, capture_output=True, check=False)
    require(probe.returncode == 0, f"the kernel has no macvlan: {probe.stderr.decode().strip()}")
    ip("link del probe")


@pytest.fixture
def run(namespace: None) -> Iterator[None]:
    """An empty /run of this thread's own, seen by what it starts: names of namespaces are made there, and go with it."""
    own, here = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), os.open(".", os.O_PATH)
    namespaces.unshare(namespaces.CLONE_NEWNS)
    try:
        namespaces.mount("", "/", flags=namespaces.MS_PRIVATE | namespaces.MS_REC)
        namespaces.mount("tmpfs", "/run", "tmpfs")
        yield
    finally:
        # A thread that was joined may not be quite gone: with whom we share a working directory we cannot leave.
        namespaces.unshare(CLONE_FS)
        namespaces.setns(own, namespaces.CLONE_NEWNS)
        os.fchdir(here)  # the kernel put us into its root
        os.close(own)
        os.close(here)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A context of an empty state directory, whose libvirt is never asked."""
    uri = "qemu+unix:///system?socket=/nonexistent"
    found = Context(Settings(uri, tmp_path, "", "", "auto", ""), readonly=True)
    yield found
    found.close()
