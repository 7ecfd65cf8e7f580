"""The character devices that QEMU opens macvtaps by."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from provisioner.host.sandbox.files import listed


class TapNodes:
    """Makes /dev/tapN as macvtaps come, and removes it as they go: udev's work, which nobody does in here.

    The kernel only has to say that *something* changed; what there is, is read from sysfs. So a lost message does no
    harm, and neither does a link that is renamed at once: the class directory names devices by interface index.

    The kernel itself makes the same node in devtmpfs, which is one for the whole machine, and there a macvtap of the
    machine's with the same index would find its name taken, and its VM opens ours. So what the kernel put into
    `outer`, the /dev that this one covers, on account of a macvtap in here is taken out again.
    """

    def __init__(self, outer: int) -> None:
        self._outer = outer
        self.events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.events.bind((0, 1))  # RTMGRP_LINK
        self.events.setblocking(False)
        self._made: dict[str, int] = {}

    def sync(self) -> None:
        with suppress(OSError):  # EAGAIN when all is read, ENOBUFS when some was lost
            while True:
                self.events.recv(65536)
        there: dict[str, int] = {}
        for kind in ("macvtap", "ipvtap"):
            for name in listed(f"/sys/class/{kind}"):
                # Gone again since, or being unregistered.
                with suppress(OSError), open(f"/sys/class/{kind}/{name}/dev") as file:
                    major, _, minor = file.read().partition(":")
                    there[name] = os.makedev(int(major), int(minor))
        for name, device in self._made.items():
            if there.get(name) != device:
                with suppress(FileNotFoundError):
                    os.unlink(f"/dev/{name}")
        for name, device in there.items():
            if self._made.get(name) != device:
                with suppress(FileExistsError):
                    os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o600, device)
                with suppress(FileNotFoundError):
                    if os.stat(name, dir_fd=self._outer).st_rdev == device:
                        os.unlink(name, dir_fd=self._outer)
        self._made = there
