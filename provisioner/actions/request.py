"""What `create` is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from provisioner.model.machine import DirectBoot, Vnc
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Addressing


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
