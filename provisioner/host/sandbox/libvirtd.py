"""A KVM host's own libvirt: its empty state, its configuration, its daemons."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

from provisioner.host.namespaces import MS_NODEV, MS_NOSUID, mount
from provisioner.host.sandbox.failure import Failed, as_message
from provisioner.host.sandbox.files import listed, write
from provisioner.host.sandbox.mounts import cover
from provisioner.host.sandbox.node import Node
from provisioner.host.sandbox.processes import PATH, spawn

_OWN_DIRECTORIES = ("/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
_QEMU_CONF = """\
namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "logd"
"""
_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0700"
host_uuid = "{uuid}"
"""
#: The first call of every libvirt client, REMOTE_PROC_AUTH_LIST: length, program, version, procedure, call, serial,
#: status (https://libvirt.org/kbase/internals/rpc.html).
_AUTH_LIST = struct.pack(">7I", 28, 0x20008086, 1, 66, 0, 1, 0)


def own_libvirt() -> None:
    """Empty state, and a configuration of the sandbox's own: no domain, network or hook of the machine's comes in."""
    kept: dict[str, bytes] = {}
    files = [f"/etc/libvirt/nwfilter/{name}" for name in listed("/etc/libvirt/nwfilter")]
    files += ["/etc/libvirt/qemu/networks/default.xml", "/etc/libvirt/libvirt.conf"]
    # What QEMU can do takes a second to find out, and holds for this machine's QEMU wherever it runs.
    known = "/var/cache/libvirt/qemu/capabilities"
    files += [f"{known}/{name}" for name in listed(known)]
    for path in files:
        with suppress(OSError), open(path, "rb") as old:
            kept[path] = old.read()
    os.makedirs("/etc/libvirt", exist_ok=True)
    os.makedirs("/etc/macvm", exist_ok=True)
    mount("tmpfs", "/etc/libvirt", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    mount("tmpfs", "/etc/macvm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    cover("/var/lib/macvm", folders=False)
    for directory in _OWN_DIRECTORIES:
        cover(directory)
    for path, content in kept.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as new:
            new.write(content)
    write("/etc/libvirt/qemu.conf", _QEMU_CONF)
    # The kernel's random UUID: importing `uuid` for one would take milliseconds of every start.
    with open("/proc/sys/kernel/random/uuid") as file:
        write("/etc/libvirt/libvirtd.conf", _LIBVIRTD_CONF.format(uuid=file.read().strip()))
    write("/etc/libvirt/virtlogd.conf", "")


def start_libvirt(node: Node, line: socket.socket) -> None:
    """virtlogd and libvirtd; `line` hears when libvirtd answers, or why it ended."""
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind("/run/libvirtd-ready")
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with open(os.devnull, "rb") as nothing:
        for daemon in ("virtlogd", "libvirtd"):
            log = f"/var/log/libvirt/{daemon}.log"
            with open(log, "ab") as file:
                env = {"PATH": PATH, "LANG": "C.UTF-8"}
                if daemon == "libvirtd":
                    env["NOTIFY_SOCKET"] = "/run/libvirtd-ready"
                pid = spawn([daemon], (nothing.fileno(), file.fileno(), file.fileno()), env)

    def listening() -> None:
        # It notifies once its socket is there, with its drivers still to come: only an answer means that it is ready.
        node.selector.unregister(notified)
        notified.close()
        os.unlink("/run/libvirtd-ready")
        asking.connect("/run/libvirt/libvirt-sock")
        asking.send(_AUTH_LIST)
        node.on_readable(asking, answered)

    def answered() -> None:
        node.selector.unregister(asking)
        ready = asking.recv(64)
        asking.close()
        if ready:  # without one it has just died, and `ended` is next
            node.watched.pop(pid, None)
            line.send(b"ready")

    def ended(_status: int) -> None:
        with open(log, errors="replace") as file:
            said = file.read().strip().splitlines()
        line.send(as_message(Failed(f"libvirtd ended while starting: {said[-1] if said else 'its log is empty'}")))

    node.on_readable(notified, listening)
    node.watched[pid] = ended
