"""One NIC inside a domain's XML: what libvirt is handed to attach, detach or change it, and the room for it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

from lxml import etree

from provisioner.model.domain_xml.parsing import Element, parse
from provisioner.model.domain_xml.writing import interface
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Nic


class Slots(NamedTuple):
    """Where a machine takes hot-plugged devices: its type, how many slots it has, and how many are taken."""

    machine_type: str
    slots: int
    taken: int


def nic_xml(nic: Nic, *, link: str = "up", trust: bool = False, address_from: str = "") -> str:
    """The `<interface>` to attach. `address_from` is another `<interface>`, whose PCI address it takes."""
    element = interface(nic)
    if trust:
        element.set("trustGuestRxFilters", "yes")
    _set_link(element, link)
    if address_from:
        address = etree.fromstring(address_from).find("address")
        if address is not None:
            element.append(deepcopy(address))
    return etree.tostring(element, encoding="unicode")


def find_nic_xml(domain: str, mac: Mac) -> str | None:
    """The `<interface>` with that MAC, as it stands in the domain."""
    element = _find(parse(domain, "the domain"), mac)
    return None if element is None else etree.tostring(element, encoding="unicode", with_tail=False)


def alias_of(nic: str) -> str:
    """libvirt's name for the device while it runs, by which its events speak of it."""
    alias = etree.fromstring(nic).find("alias")
    return "" if alias is None else alias.get("name", "")


def without_alias(nic: str) -> str:
    """The same `<interface>` without libvirt's name for the device, which it gives anew at each attach."""
    return _changed(nic, lambda element: _drop(element, "alias"))


def same_source(one: str, other: str) -> bool:
    """Whether two NICs are wired alike."""
    sources = [etree.fromstring(nic).find("source") for nic in (one, other)]
    first, second = (None if source is None else sorted(source.attrib.items()) for source in sources)
    return first == second


def source_of(nic: str) -> tuple[str, MacvtapMode | None]:
    """The parent and the mode that a NIC has there; none where it is not direct."""
    element = etree.fromstring(nic)
    source = element.find("source")
    if element.get("type") != "direct" or source is None:
        return "", None
    # libvirt's own default.
    return source.get("dev", ""), MacvtapMode(source.get("mode", "vepa"))


def link_of(nic: str) -> str:
    link = etree.fromstring(nic).find("link")
    return "up" if link is None else link.get("state", "up")


def with_link(nic: str, state: str) -> str:
    return _changed(nic, lambda element: _set_link(element, state))


def with_source(nic: str, parent: str, mode: MacvtapMode) -> str:
    """The same `<interface>` on another parent or in another mode; what libvirt fills in at run time is left out."""

    def change(element: Element) -> None:
        _drop(element, "alias", "backend")
        element.set("type", "direct")
        source = element.find("source")
        if source is None:
            source = etree.SubElement(element, "source")
        source.attrib.clear()
        source.set("dev", parent)
        source.set("mode", mode.value)

    return _changed(nic, change)


def address_is_free(domain: str, nic: str) -> bool:
    """Whether no other device of the domain has the PCI address of this `<interface>`."""
    address = etree.fromstring(nic).find("address")
    if address is None:
        return False
    root = parse(domain, "the domain")
    return _place(address) not in [_place(other) for other in root.iterfind("devices//address[@type='pci']")]


def count_slots(domain: str) -> Slots:
    """q35 takes one device behind each `pcie-root-port`, i440fx (`pc`) one in each slot of its only bus."""
    root = parse(domain, "the domain")
    kind = root.find("os/type")
    machine_type = "" if kind is None else kind.get("machine", "")
    addresses = [address for address in root.iterfind("devices//address[@type='pci']")]
    if "q35" in machine_type or "virt" in machine_type:
        ports = root.findall("devices/controller[@type='pci'][@model='pcie-root-port']")
        buses = {int(port.get("index", "0")) for port in ports}
        taken = {int(address.get("bus", "0"), 16) for address in addresses} & buses
        return Slots("q35", len(buses), len(taken))
    # Slots 0 and 1 are the board's own: the host bridge, and the PIIX3 with the functions that belong to it.
    on_bus = {address.get("slot") for address in addresses if int(address.get("bus", "0"), 16) == 0}
    return Slots("i440fx", 30, len(on_bus - {"0x00", "0x01"}))


def _place(address: Element) -> tuple[str, ...]:
    return tuple(str(address.get(part)) for part in ("domain", "bus", "slot", "function"))


def _find(root: Element, mac: Mac) -> Element | None:
    for element in root.iterfind("devices/interface"):
        address = element.find("mac")
        if address is not None and address.get("address", "").lower() == mac:
            return element
    return None


def _changed(nic: str, change: Callable[[Element], None]) -> str:
    element = etree.fromstring(nic)
    change(element)
    return etree.tostring(element, encoding="unicode")


def _drop(element: Element, *tags: str) -> None:
    for tag in tags:
        for found in element.findall(tag):
            element.remove(found)


def _set_link(element: Element, state: str) -> None:
    _drop(element, "link")
    etree.SubElement(element, "link", state=state)
