"""What a machine is to boot with."""

from __future__ import annotations

from provisioner.context import Context
from provisioner.errors import Unable
from provisioner.model.domain_xml.firmware import brings_firmware, is_chosen_by_libvirt
from provisioner.model.domain_xml.parsing import parse
from provisioner.model.domain_xml.reading import firmware_of


def choose_firmware(
    context: Context, asked: str | None, template: bytes, template_name: str, virt_type: str, notes: list[str]
) -> str:
    """`bios`, `uefi`, or "" where a template's loader does not show which: what it brings wins, and that is noted.

    Raises Unable where libvirt finds no UEFI firmware on this host.
    """
    root = parse(template, template_name)
    firmware = asked or "bios"
    if brings_firmware(root):
        firmware = firmware_of(root)
        if asked and asked != firmware:
            notes.append(f"{template_name} brings its own firmware, which stays: --firmware {asked} does nothing")
        if not is_chosen_by_libvirt(root):
            return firmware
    kind = root.find("os/type")
    arch, machine = (kind.get("arch"), kind.get("machine")) if kind is not None else (None, None)
    if firmware == "uefi" and not context.hypervisor.has_uefi(arch, machine, virt_type):
        raise Unable(f"this host has no UEFI firmware for {machine or 'such'} machines", "apt install ovmf")
    return firmware
