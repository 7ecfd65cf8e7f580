"""A domain, as macvm needs to know it, from libvirt's XML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from provisioner.model.domain_xml.parsing import NS, Element, parse
from provisioner.model.found import FoundMachine, FoundNic, Marks
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac


def found_machine(text: str, state: str = "unknown", autostart: bool = False) -> FoundMachine:
    """What macvm needs to know of a domain, from its XML."""
    root = parse(text, "the domain")
    interfaces = root.findall("devices/interface")
    # The disks themselves, and the bases below them where the definition or the running domain names them.
    files = [Path(source.get("file", "")) for source in root.iterfind("devices/disk//source[@file]")]
    return FoundMachine(
        name=root.findtext("name") or "",
        uuid=root.findtext("uuid") or "",
        nics=tuple(_found_nic(element) for element in interfaces if element.find("mac") is not None),
        marks=_found_marks(root.find(f"metadata/{NS}machine")),
        files=tuple(files),
        state=state,
        autostart=autostart,
        firmware=firmware_of(root),
        memory=_memory(root),
        vcpus=_vcpus(root),
        virt_type=root.get("type", ""),
        boot=_boot(root),
        vnc=_vnc(root),
    )


def _memory(root: Element) -> int:
    """What the guest has, which is less than `<memory>` where somebody took some away. libvirt writes KiB."""
    found = root.find("currentMemory")
    found = root.find("memory") if found is None else found
    return 0 if found is None else int(found.text or 0) * 1024


def _vcpus(root: Element) -> int:
    found = root.find("vcpu")
    return 0 if found is None else int(found.get("current") or found.text or 0)


def _boot(root: Element) -> tuple[str, str, str] | None:
    if not (kernel := root.findtext("os/kernel")):
        return None
    return kernel, root.findtext("os/initrd") or "", root.findtext("os/cmdline") or ""


def _vnc(root: Element) -> tuple[str, str] | None:
    screen = root.find("devices/graphics[@type='vnc']")
    if screen is None:
        return None
    return screen.get("listen", ""), "" if screen.get("autoport") == "yes" else screen.get("port", "")


def firmware_of(root: Element) -> str:
    """`bios`, `uefi`, or "" where a loader does not show which it is."""
    system, loader = root.find("os"), root.find("os/loader")
    if system is not None and system.get("firmware"):
        return "uefi" if system.get("firmware") == "efi" else "bios"
    if loader is not None:
        return "uefi" if loader.get("type") == "pflash" else ""
    return "bios"


def _found_marks(mark: Element | None) -> Marks | None:
    if mark is None:
        return None
    labels = tuple((label.get("key", ""), label.text or "") for label in mark.findall(f"{NS}label"))
    texts = {tag: mark.findtext(NS + tag) or "" for tag in ("image", "base", "login", "password", "lab", "wish")}
    return Marks(labels=labels, **texts)


def _found_nic(element: Element) -> FoundNic:
    parts: dict[str, Element] = {str(child.tag): child for child in element}
    nothing: Mapping[str, str] = {}
    source, kind = parts.get("source", nothing), element.get("type", "")
    mode = source.get("mode")
    return FoundNic(
        mac=Mac(parts["mac"].get("address", "").lower()),
        kind=kind,
        # A direct NIC without a mode is VEPA to libvirt; a network's NIC shows the mode it got while it runs.
        mode=MacvtapMode(mode) if mode else (MacvtapMode.VEPA if kind == "direct" else None),
        parent=source.get("dev", "") if kind == "direct" else "",
        network=source.get("network", ""),
        device=parts.get("target", nothing).get("dev", ""),
        model=parts.get("model", nothing).get("type", ""),
        link=parts.get("link", nothing).get("state", "up"),
    )
