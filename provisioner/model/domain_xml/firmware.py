"""What a domain is to boot with, and the file in which UEFI keeps its variables."""

from __future__ import annotations

from lxml import etree

from provisioner.model.domain_xml.parsing import Element
from provisioner.model.machine import Machine


def brings_firmware(root: Element) -> bool:
    """Whether a template says itself what to boot with."""
    system = root.find("os")
    return system is not None and (system.get("firmware") is not None or system.find("loader") is not None)


def is_chosen_by_libvirt(root: Element) -> bool:
    """Whether libvirt is to find the firmware's files on its host, by QEMU's descriptors of them."""
    system = root.find("os")
    return system is not None and system.get("firmware") == "efi"


def fill_firmware(root: Element, machine: Machine) -> None:
    """A template's own firmware stays. What it says of its variables' file does not: two machines would write to it,
    and undefining one would delete it."""
    system = root.find("os")
    if system is None:
        return
    if machine.firmware == "uefi" and not brings_firmware(root):
        system.set("firmware", "efi")
        features = etree.SubElement(system, "firmware")
        # Said outright: libvirt takes the first firmware that fits, and with Debian's that is the one with Secure Boot.
        etree.SubElement(features, "feature", enabled="no", name="secure-boot")
    _fill_nvram(system, machine)


def _fill_nvram(system: Element, machine: Machine) -> None:
    nvram, loader = system.find("nvram"), system.find("loader")
    if nvram is not None:
        for source in nvram.findall("source"):
            nvram.remove(source)
        nvram.attrib.pop("type", "")
        nvram.text = None
    if machine.nvram is None or (loader is not None and loader.get("stateless") == "yes"):
        return
    if nvram is None:
        nvram = etree.SubElement(system, "nvram")
    nvram.text = str(machine.nvram)
