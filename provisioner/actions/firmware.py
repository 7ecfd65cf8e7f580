"""What a machine is to boot with."""

from __future__ import annotations

from provisioner.actions.catalogue import find_entry
from provisioner.actions.request import CreateRequest
from provisioner.context import Context
from provisioner.errors import Unable
from provisioner.host.store import StoredImage
from provisioner.model.domain_xml.firmware import brings_firmware, is_chosen_by_libvirt
from provisioner.model.domain_xml.parsing import Element
from provisioner.model.domain_xml.reading import firmware_of


def choose_firmware(
    context: Context,
    request: CreateRequest,
    image: StoredImage | None,
    template: Element,
    virt_type: str,
    notes: list[str],
) -> str:
    """`bios`, `uefi`, or "" where a template's loader does not show which. What the template brings wins, then what was
    asked for, then what the image boots by; a note says where they differ.

    Raises Unable where libvirt finds no UEFI firmware on this host.
    """
    asked, entry = request.firmware, find_entry(image.name) if image else None
    needed = entry.firmware if entry else ""
    brings = brings_firmware(template)
    firmware = firmware_of(template) if brings else asked or needed or "bios"
    if asked and asked != firmware:
        notes.append(f"{request.template} brings its own firmware, which stays: --firmware {asked} does nothing")
    if entry and needed and firmware not in ("", needed):
        notes.append(f"{entry.name} boots by {needed.upper()} alone, and {request.name} has {firmware.upper()}")
    if firmware == "uefi" and (is_chosen_by_libvirt(template) or not brings):
        _check_uefi(context, template, virt_type)
    return firmware


def _check_uefi(context: Context, template: Element, virt_type: str) -> None:
    kind = template.find("os/type")
    arch, machine = (kind.get("arch"), kind.get("machine")) if kind is not None else (None, None)
    if not context.hypervisor.has_uefi(arch, machine, virt_type):
        raise Unable(f"this host has no UEFI firmware for {machine or 'such'} machines", "apt install ovmf")
