"""In what a thing that there is differs from the one that is wanted, in words: pure."""

from __future__ import annotations

from provisioner.actions.labs.nic_plan import Promises, compare
from provisioner.actions.labs.real import RealEndpoint, RealMachine, RealNic
from provisioner.actions.labs.wanted import WantedEndpoint, WantedMachine
from provisioner.actions.request import CreateRequest
from provisioner.model.found import OFF
from provisioner.model.network import Network
from provisioner.model.sizes import DEFAULT_MEMORY, human_size


def network_differs(wanted: Network, there: Network) -> list[str]:
    found = []
    if wanted.parent != there.parent:
        found.append(f"parent {there.parent} → {wanted.parent}")
    if wanted.mode is not there.mode:
        found.append(f"mode {there.mode.value} → {wanted.mode.value}")
    # Where the file names no subnet, the parent's own were taken.
    if wanted.subnets and set(wanted.subnets) != set(there.subnets):
        found.append("other subnets, gateways or ranges")
    if dict(wanted.reserved) != dict(there.reserved):
        found.append("other reserved addresses")
    if wanted.dns != there.dns:
        found.append("other name servers")
    if wanted.mtu != there.mtu:
        found.append(f"MTU {there.mtu or 'of the parent'} → {wanted.mtu or 'of the parent'}")
    if wanted.shim is not there.shim:
        found.append("with a shim" if wanted.shim else "without a shim")
    return found


def stays(wanted: Network, there: Network) -> bool:
    """Whether what is on a network can stay on it as it changes."""
    same_subnets = {one.subnet for one in wanted.subnets} == {one.subnet for one in there.subnets}
    return wanted.parent == there.parent and (same_subnets or not wanted.subnets)


def disk_differs(request: CreateRequest, there: RealMachine) -> tuple[list[str], list[str]]:
    """Why the disk is to be smaller, which only a fresh one is, and why larger."""
    if request.disk_size is None and there.disk_size == there.base_size:
        return [], []  # as it was made
    wanted = max(request.disk_size or 0, there.least_disk)
    if not wanted or not there.disk_size or wanted == there.disk_size:
        return [], []
    said = [f"disk {human_size(there.disk_size)} → {human_size(wanted)}"]
    return (said, []) if wanted < there.disk_size else ([], said)


def is_so(part: str, request: CreateRequest, there: RealMachine) -> bool:
    """Whether a machine has what its file says by now, though it was not made from that word."""
    marks = there.now.marks
    if part == "image":
        return marks is not None and request.image == marks.image and not request.checksum
    if part == "boot":
        return _boots_as(request, there)
    if part == "vnc":
        return request.vnc is not None and tuple(str(one or "") for one in request.vnc) == there.saved.vnc
    return part == "firmware" and request.firmware == there.now.firmware


def _boots_as(request: CreateRequest, there: RealMachine) -> bool:
    if request.boot is None:
        return there.saved.boot is None or request.template is not None
    return tuple(str(one or "") for one in request.boot) == there.saved.boot


def sizes_differ(machine: WantedMachine, there: RealMachine) -> list[str]:
    request, found = machine.request, list[str]()
    memory = request.memory or max(DEFAULT_MEMORY, there.least_memory)
    for one in (there.now, there.saved):
        if one.memory // 1024 != memory // 1024:
            found.append(f"memory {human_size(one.memory)} → {human_size(memory)}")
        if one.vcpus != request.vcpus:
            found.append(f"vcpus {one.vcpus} → {request.vcpus}")
        if one.virt_type != machine.virt_type:
            found.append(f"virt_type {one.virt_type} → {machine.virt_type}")
    if not _boots_as(request, there):
        found.append("kernel, initrd or cmdline is another")
    return list(dict.fromkeys(found))


def power_of(request: CreateRequest, there: RealMachine) -> str:
    if request.start and there.now.state in (*OFF, "paused"):
        return "on"
    return "off" if not request.start and there.runs else ""


def endpoint_differs(wish: WantedEndpoint, there: RealEndpoint, promises: Promises) -> list[str]:
    endpoint, nic, request = there.endpoint, there.endpoint.nic, wish.request
    found = [] if there.is_there else ["its namespace or its link is gone"]
    if endpoint.mode is not wish.mode:
        found.append(f"mode {endpoint.mode.value} → {wish.mode.value}")
    # Of a NIC that is like it, whose MAC is what the store knows it by.
    like = RealNic(nic.mac, "direct", nic.parent, "", wish.nic.mode, wish.nic.mode, "up", True, True, nic)
    free = promises._replace(macs=frozenset())
    compared = compare(wish.nic, like, True, free)
    if compared is None:
        found.append(f"MAC {nic.mac} → {wish.nic.mac}")
    elif compared[0]:
        found.append(compared[1])
    if endpoint.sources != request.sources:
        found.append("other sources")
    if endpoint.own is bool(request.netns):
        found.append("another namespace")
    return found
