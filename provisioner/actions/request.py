"""What `create` and `endpoint create` are asked for."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.model.endpoint import IpvlanMode, MacvlanMode
from provisioner.model.machine import DirectBoot, Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, check_name
from provisioner.model.nic import Addressing, Interface, check_usable


class NicRequest(NamedTuple):
    """A NIC; what is left empty the plan chooses, or its network decides."""

    mode: MacvtapMode | None = None
    parent: str = ""
    libvirt_network: str = ""
    mac: Mac | None = None
    mtu: int | None = None
    addressing: Addressing = Addressing(dhcp=True)
    network: str = ""


class CreateRequest(NamedTuple):
    """One machine. `image` is NAME[:VERSION], FILE or URL, "" for the default one; `checksum` that of the last two, and
    `insecure` lets a URL go without. `memory` and `disk_size` in bytes, None for what the image wants; `ssh_keys` None
    for the invoking user's own; `user_data` has several texts where they are of different kinds; `wish` is what
    `labs.digests` makes of a lab's words."""

    name: str
    nics: tuple[NicRequest, ...]
    image: str = ""
    checksum: str = ""
    insecure: bool = False
    memory: int | None = None
    vcpus: int = 1
    disk_size: int | None = None
    ssh_keys: tuple[str, ...] | None = None
    user_data: tuple[bytes, ...] = ()
    password: str = ""
    template: Path | None = None
    virt_type: str = ""
    firmware: str | None = None
    boot: DirectBoot | None = None
    vnc: Vnc | None = None
    start: bool = True
    shim: bool = True
    take_parent: bool = False
    probe: str = "fast"
    autostart: bool = False
    lab: str = ""
    wish: str = ""
    labels: tuple[tuple[str, str], ...] = ()


class EndpointRequest(NamedTuple):
    """What `endpoint create` is asked for; what is left empty the plan chooses, or the network decides. `netns` names a
    namespace that exists: a process, a name or a path."""

    name: str
    mode: MacvlanMode | None = None
    ipvlan: IpvlanMode | None = None
    parent: str = ""
    network: str = ""
    addressing: Addressing = Addressing()
    mac: Mac | None = None
    mtu: int | None = None
    sources: tuple[Mac, ...] = ()
    netns: str = ""
    shim: bool = True
    take_parent: bool = False
    probe: str = "fast"


def is_elsewhere(wanted: str) -> bool:
    """Whether the image that is asked for is a FILE or URL: the name of one has neither a slash nor, before its
    version, a dot."""
    return "/" in wanted or "." in wanted.partition(":")[0]


def numbered(request: CreateRequest, count: int) -> list[CreateRequest]:
    """NAME-1 … NAME-count, at consecutive addresses. Raises Usage."""
    if count < 1:
        raise Usage(f"--count {count} makes no machine", "--count takes 1 or more")
    if any(nic.mac for nic in request.nics) and count > 1:
        raise Usage("--mac and --count exclude one another: a MAC belongs to one NIC", "leave --mac out")
    return [_nth(request, number) for number in range(1, count + 1)]


def _nth(request: CreateRequest, number: int) -> CreateRequest:
    nics = []
    for nic in request.nics:
        moved = tuple(_moved(interface, number - 1) for interface in nic.addressing.static)
        nics.append(nic._replace(addressing=nic.addressing._replace(static=moved)))
    name = f"{request.name}-{number}"
    check_name(name)
    return request._replace(name=name, nics=tuple(nics))


def _moved(interface: Interface, by: int) -> Interface:
    length = interface.network.prefixlen
    try:
        moved = ipaddress.ip_interface((interface.ip + by, length))
    except ValueError:
        moved = interface
    if by and (moved == interface or (length < interface.max_prefixlen and moved.network != interface.network)):
        hint = "choose a lower first address, or fewer machines"
        raise Usage(f"{interface.network} ends before the {by + 1}th address after {interface.ip}", hint)
    check_usable(moved)
    return moved
