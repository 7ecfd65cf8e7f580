"""A machine and its NICs as libvirt has them.

Named tuples and not dataclasses, as all values that `list` imports: making a class takes 0.14 ms instead of 0.77.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac

#: States of a machine without a guest.
OFF = ("off", "crashed")

#: The wish of a machine that `create` made from a template.
TEMPLATE = "template=own"


class Marks(NamedTuple):
    """macvm's facts about a machine, in the domain's `<metadata>`. `password` is `own` where create was given one;
    `wish` has digests of what its lab's file said."""

    image: str = ""
    base: str = ""
    login: str = ""
    password: str = ""
    lab: str = ""
    wish: str = ""
    labels: tuple[tuple[str, str], ...] = ()


class FoundNic(NamedTuple):
    """A NIC as a domain's XML has it. `kind` is libvirt's interface type; `device` is empty where none is named."""

    mac: Mac
    kind: str
    mode: MacvtapMode | None = None
    parent: str = ""
    network: str = ""
    device: str = ""
    model: str = ""
    link: str = "up"


class FoundMachine(NamedTuple):
    """A domain as libvirt has it. `marks` is None for a machine that macvm did not make; `files` are its disks.
    `firmware` is `bios`, `uefi`, or "" where its XML does not show which; `memory` is in bytes; `defined` tells
    whether it outlasts its power, where that was looked at. `boot` are the kernel, initrd and command line that QEMU
    loads itself, `vnc` the address and port of its screen, "" for the next free one."""

    name: str
    uuid: str
    nics: tuple[FoundNic, ...] = ()
    marks: Marks | None = None
    files: tuple[Path, ...] = ()
    state: str = "unknown"
    autostart: bool = False
    firmware: str = ""
    memory: int = 0
    vcpus: int = 0
    virt_type: str = ""
    defined: bool = True
    boot: tuple[str, str, str] | None = None
    vnc: tuple[str, str] | None = None

    @property
    def runs(self) -> bool:
        """Whether there is a guest, be it paused."""
        return self.state not in OFF
