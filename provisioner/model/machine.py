"""A machine as it is asked for, and as it is found."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from provisioner.errors import Usage
from provisioner.model.names import Mac, printable
from provisioner.model.nic import MacvtapMode, Nic

_SIZE = re.compile(r"(\d{1,12})\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}

#: Less than this boots no kernel that macvm knows of.
LEAST_MEMORY = 32 << 20


def parse_size(text: str, *, plain_unit: str = "m", what: str = "size") -> int:
    """Bytes of `512`, `512M`, `2G`, `2GiB`; a number without a unit counts in `plain_unit`. Raises Usage."""
    match = _SIZE.fullmatch(text.strip())
    if not match or not int(match[1]):
        raise Usage(f"{printable(text)} is no {what}", "a number with K, M, G or T, such as 512M or 2G")
    return int(match[1]) * _UNITS[(match[2] or plain_unit).lower()]


def human_size(size: int) -> str:
    """`20 MiB`: three digits at most."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    value, unit = float(size), units.pop(0)
    while value >= 1024 and units:
        value, unit = value / 1024, units.pop(0)
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


@dataclass(frozen=True)
class Vnc:
    """Where a graphical console listens. Port None: libvirt takes the next free one from 5900."""

    listen: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True)
class DirectBoot:
    """A kernel that QEMU loads itself."""

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""


@dataclass(frozen=True)
class Marks:
    """macvm's facts about a machine, kept in the domain's `<metadata>`."""

    image: str = ""
    base: str = ""
    login: str = ""
    lab: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Machine:
    """Everything that the domain XML is made from. `memory` is in bytes; `disk` None is a machine without one, and
    `base` None a disk that is no overlay."""

    name: str
    uuid: str
    memory: int
    vcpus: int
    virt_type: str
    nics: tuple[Nic, ...]
    disk: Path | None = None
    base: Path | None = None
    seed: Path | None = None
    boot: DirectBoot | None = None
    vnc: Vnc | None = None
    serial_log: Path | None = None
    marks: Marks = field(default_factory=Marks)


@dataclass(frozen=True)
class FoundNic:
    """A NIC as a domain's XML has it. `kind` is libvirt's interface type; `device` is empty where none is named."""

    mac: Mac
    kind: str
    mode: MacvtapMode | None = None
    parent: str = ""
    network: str = ""
    device: str = ""
    model: str = ""
    link: str = "up"


@dataclass(frozen=True)
class FoundMachine:
    """A domain as libvirt has it. `marks` is None for a machine that macvm did not make; `files` are its disks."""

    name: str
    uuid: str
    nics: tuple[FoundNic, ...] = ()
    marks: Marks | None = None
    files: tuple[Path, ...] = ()
    state: str = "unknown"
    autostart: bool = False
