"""A machine as it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from provisioner.errors import Usage
from provisioner.model.found import Marks
from provisioner.model.names import is_number, printable
from provisioner.model.nic import Nic, parse_address


class Vnc(NamedTuple):
    """Where a graphical console listens. Port None: libvirt takes the next free one from 5900."""

    listen: str = "127.0.0.1"
    port: int | None = None


def parse_vnc(text: str) -> Vnc:
    """`[ADDRESS][:PORT]`; nothing at all is a console on this host alone. Raises Usage."""
    if not text:
        return Vnc()
    host, sign, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not sign:
        host, port = text, ""
    if port and (not is_number(port) or not 5900 <= int(port) <= 65535):
        raise Usage(f"{printable(port)} is no VNC port", "a number from 5900 to 65535")
    address = parse_address(host.strip("[]") or "127.0.0.1", "address to listen on")
    return Vnc(str(address), int(port) if port else None)


def check_exposure(vnc: Vnc | None, *, exposed: bool) -> None:
    """Raises Usage for a screen that others than this host's users would see, where nobody said that they may."""
    if vnc and vnc.listen not in ("127.0.0.1", "::1") and not exposed:
        raise Usage(
            f"--vnc={vnc.listen} would show the guest's screen to the network, unencrypted and without a password",
            "reach 127.0.0.1 through ssh -L, or insist with --vnc-exposed",
        )


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
