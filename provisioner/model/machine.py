"""A machine as it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from provisioner.model.found import Marks
from provisioner.model.nic import Nic


class Vnc(NamedTuple):
    """Where a graphical console listens. Port None: libvirt takes the next free one from 5900."""

    listen: str = "127.0.0.1"
    port: int | None = None


class DirectBoot(NamedTuple):
    """A kernel that QEMU loads itself."""

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""


class Machine(NamedTuple):
    """Everything that the domain XML is made from. `memory` is in bytes; `disk` None is a machine without one, and
    `base` None a disk that is no overlay. `nvram` is where UEFI is to keep its variables; libvirt makes the file."""

    name: str
    uuid: str
    memory: int
    vcpus: int
    virt_type: str
    nics: tuple[Nic, ...]
    disk: Path | None = None
    base: Path | None = None
    seed: Path | None = None
    firmware: str = "bios"
    nvram: Path | None = None
    boot: DirectBoot | None = None
    vnc: Vnc | None = None
    serial_log: Path | None = None
    marks: Marks = Marks()
