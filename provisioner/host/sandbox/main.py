"""The sandbox's first process, and the life of each node that it forks."""

from __future__ import annotations

import json
import os
import select
import socket
from typing import Any, NoReturn

from provisioner.host.namespaces import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    fork_in_new_pid_namespace,
    mount,
    unshare,
)
from provisioner.host.sandbox.failure import Failed, as_message
from provisioner.host.sandbox.layout import LAN, SOCKETS, SWITCH, host_name
from provisioner.host.sandbox.libvirtd import own_libvirt, start_libvirt
from provisioner.host.sandbox.mounts import own_etc, own_run, own_views
from provisioner.host.sandbox.node import Node
from provisioner.host.sandbox.taps import TapNodes
from provisioner.host.sandbox.wiring import need_macvtap, plug, wire

#: Longest wait for one step of a host's start; on a fast machine the whole start takes a fraction of a second.
PATIENCE = 60.0


def _be_node(name: str, hosts: int, line: socket.socket) -> NoReturn:
    """The life of the LAN peer or of a KVM host, as PID 1 of its own namespaces."""
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
    node = Node(name)
    node.listen()
    line.send(b"namespaces")
    socket.sethostname(name)
    own_etc(name, hosts)
    if name != LAN:
        own_libvirt()
    own_run()
    outer_dev = os.open("/dev", os.O_PATH | os.O_DIRECTORY)
    own_views()
    if name == LAN:
        line.recv(16)
        plug(name)
        line.send(b"ready")
        node.loop()
    taps = TapNodes(outer_dev)
    node.on_readable(taps.events, taps.sync)
    # libvirtd takes the longest of all and needs no LAN: it starts while the cables are still being laid.
    start_libvirt(node, line)
    line.recv(16)
    plug(name)
    need_macvtap()
    node.loop()


def _fork_node(name: str, hosts: int) -> tuple[int, socket.socket]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork_in_new_pid_namespace()
    if pid == 0:
        try:
            ours.close()
            _be_node(name, hosts, its)
        except (OSError, Failed) as error:
            its.send(as_message(error))
        finally:
            os._exit(1)
    its.close()
    return pid, ours


def _hear(line: socket.socket, name: str, lifeline: int) -> None:
    """Wait for a node's next word. Ends everything when the owner goes meanwhile; raises Failed on a failed start."""
    both: list[Any] = [line, lifeline]
    readable, _, _ = select.select(both, [], [], PATIENCE)
    if lifeline in readable:
        os._exit(1)
    said = line.recv(65536) if readable else b""
    if said.startswith(b"{"):
        failure = json.loads(said)
        raise Failed(f"{name}: {failure['error']}", failure["errno"] or 0)
    if not said:
        raise Failed(f"{name} {'ended while starting' if readable else f'did not start within {PATIENCE:g} s'}")


def _start(hosts: int, hairpin: bool, lifeline: int) -> Node:
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
    mount("", "/", flags=MS_REC | MS_PRIVATE)  # before anything else: no mount of ours may ever reach the machine
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir(SOCKETS, 0o700)
    socket.sethostname(SWITCH)
    nodes = {name: _fork_node(name, hosts) for name in (*map(host_name, range(1, hosts + 1)), LAN)}
    switch = Node(SWITCH)
    switch.listen()
    for name, (_, line) in nodes.items():
        _hear(line, name, lifeline)
    wire({name: pid for name, (pid, _) in nodes.items()}, hairpin)
    for _, line in nodes.values():
        line.send(b"wired")
    own_views()
    for name, (_, line) in nodes.items():
        _hear(line, name, lifeline)
        line.close()
    return switch


def main(settings: dict[str, Any]) -> NoReturn:
    """PID 1 of the sandbox.

    `settings`: hosts, hairpin, and two descriptors: `lifeline`, whose other end only the owner holds, so that it reads
    as ended when the owner has died in whatever way, and `report`, for one line of JSON once the start is over.
    """
    lifeline, report = settings["lifeline"], settings["report"]
    os.set_inheritable(lifeline, False)
    os.set_inheritable(report, False)
    os.umask(0o022)
    try:
        switch = _start(settings["hosts"], settings["hairpin"], lifeline)
    except (OSError, Failed) as error:
        os.write(report, as_message(error))
        os._exit(1)
    os.write(report, b"{}")
    os.close(report)
    switch.on_readable(lifeline, lambda: os._exit(0))
    switch.loop()
