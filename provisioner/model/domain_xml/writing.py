"""A machine to the XML that libvirt is to define."""

from __future__ import annotations

import math
from pathlib import Path

from lxml import etree

from provisioner.errors import Usage
from provisioner.model.domain_xml.firmware import fill_firmware
from provisioner.model.domain_xml.parsing import NAMESPACE, NS, Element, parse
from provisioner.model.found import Marks
from provisioner.model.machine import Machine
from provisioner.model.nic import Nic

_PREFIX = "macvm"

#: Root ports left free on q35, so that NICs can be attached while the machine runs: each port takes one device.
SPARE_ROOT_PORTS = 14


def _child(parent: Element, tag: str) -> Element:
    """The first child of that name; made when missing."""
    found = parent.find(tag)
    return etree.SubElement(parent, tag) if found is None else found


def _set_text(parent: Element, tag: str, text: str) -> Element:
    element = _child(parent, tag)
    for inner in list(element):
        element.remove(inner)
    element.text = text
    return element


def _drop(parent: Element, *tags: str) -> None:
    for tag in tags:
        for element in parent.findall(tag):
            parent.remove(element)


def domain_xml(machine: Machine, template: str | bytes, what: str = "the template") -> str:
    """The domain that libvirt is to define. Name, UUID, memory, CPUs, disks, NICs and macvm's metadata are the
    machine's; all else is the template's. Raises Usage for a template that is no domain."""
    try:
        return _filled(machine, parse(template, what))
    except ValueError as error:
        # lxml's word for control characters, which a label, a path or a kernel's command line may bring.
        raise Usage(f"{machine.name} cannot be written as XML: {error}", "leave control characters out") from None


def _filled(machine: Machine, root: Element) -> str:
    for comment in list(root.iter(etree.Comment)):
        above = comment.getparent()
        if above is not None:
            above.remove(comment)
    root.set("type", machine.virt_type)
    _drop(root, "memory", "currentMemory", "maxMemory", "vcpus", "genid")
    _set_text(root, "name", machine.name)
    _set_text(root, "uuid", machine.uuid)
    _fill_marks(root, machine.marks)
    _set_text(root, "memory", str(machine.memory // 1024)).set("unit", "KiB")
    _set_text(root, "vcpu", str(machine.vcpus)).attrib.pop("current", "")
    _fill_cpu(root, machine)
    _drop_identity(root)
    fill_firmware(root, machine)
    _fill_boot(root, machine)
    _child(_child(root, "features"), "acpi")
    devices = _child(root, "devices")
    _fill_disks(devices, machine)
    _fill_serial_log(devices, machine.serial_log)
    _drop(devices, "interface")
    for nic in machine.nics:
        devices.append(interface(nic))
    _fill_vnc(devices, machine)
    _fill_root_ports(root, devices)
    _order(root)
    etree.indent(root)
    return etree.tostring(root, encoding="unicode") + "\n"


def interface(nic: Nic) -> Element:
    """The `<interface>` of a NIC. The mode is always said: libvirt's own default is VEPA."""
    element = etree.Element("interface", type="direct" if nic.direct else "network")
    etree.SubElement(element, "mac", address=nic.mac)
    if nic.direct:
        # Off: a guest must not be able to change the host device's MAC; multicast is let through from the host's side.
        element.set("trustGuestRxFilters", "no")
        etree.SubElement(element, "source", dev=nic.parent, mode=nic.mode.value)
        etree.SubElement(element, "target", dev=nic.device)
    else:
        etree.SubElement(element, "source", network=nic.libvirt_network)
    etree.SubElement(element, "model", type=nic.model)
    return element


def _fill_marks(root: Element, marks: Marks) -> None:
    metadata = _child(root, "metadata")
    _drop(metadata, f"{NS}machine")
    mark = etree.SubElement(metadata, f"{NS}machine", nsmap={_PREFIX: NAMESPACE})
    _say_marks(mark, marks, NS)


def marks_xml(marks: Marks) -> tuple[str, str]:
    """macvm's part of a domain's metadata, for libvirt to put into one that is there, and its namespace, which libvirt
    itself gives to the elements."""
    mark = etree.Element("machine")
    _say_marks(mark, marks, "")
    return etree.tostring(mark, encoding="unicode"), NAMESPACE


def _say_marks(mark: Element, marks: Marks, space: str) -> None:
    for tag in ("image", "base", "login", "password", "lab", "wish"):
        value = getattr(marks, tag)
        if value:
            etree.SubElement(mark, space + tag).text = value
    for key, value in marks.labels:
        etree.SubElement(mark, f"{space}label", key=key).text = value


def _fill_cpu(root: Element, machine: Machine) -> None:
    cpu = root.find("cpu")
    if cpu is None:
        if machine.virt_type == "kvm":
            etree.SubElement(root, "cpu", mode="host-passthrough", migratable="on")
        return
    for topology in cpu.findall("topology"):
        # libvirt refuses one that does not multiply out to the number of CPUs.
        counts = [int(str(count)) for count in topology.attrib.values() if str(count).isdecimal()]
        if math.prod(counts) != machine.vcpus:
            cpu.remove(topology)


def _drop_identity(root: Element) -> None:
    """What a dump of another machine says of that machine alone."""
    system = root.find("sysinfo/system")
    if system is not None:
        _drop(system, "entry[@name='uuid']")


def _fill_boot(root: Element, machine: Machine) -> None:
    if not machine.boot:
        return
    system = _child(root, "os")
    _drop(system, "kernel", "initrd", "cmdline")
    parts = (("kernel", machine.boot.kernel), ("initrd", machine.boot.initrd), ("cmdline", machine.boot.cmdline))
    for tag, value in parts:
        if value:
            etree.SubElement(system, tag).text = str(value)


def _disk(path: Path, device: str, fmt: str, target: str, bus: str) -> Element:
    element = etree.Element("disk", type="file", device=device)
    # The format is always said: QEMU must never guess it from what a guest has written.
    etree.SubElement(element, "driver", name="qemu", type=fmt)
    etree.SubElement(element, "source", file=str(path))
    etree.SubElement(element, "target", dev=target, bus=bus)
    return element


def _backing_store(base: Path) -> Element:
    """The base said outright: libvirt need not read it out of the overlay, which the guest's QEMU can write, and leaves
    the base's owner alone, so that no QEMU can make it writable."""
    store = etree.Element("backingStore", type="file")
    etree.SubElement(store, "format", type="qcow2")
    source = etree.SubElement(store, "source", file=str(base))
    etree.SubElement(source, "seclabel", model="dac", relabel="no")
    etree.SubElement(store, "backingStore")
    return store


def _fill_disks(devices: Element, machine: Machine) -> None:
    _drop(devices, "disk")
    if machine.disk:
        disk = _disk(machine.disk, "disk", "qcow2", "vda", "virtio")
        devices.append(disk)
        if machine.base:
            disk.append(_backing_store(machine.base))
    if machine.seed:
        target, bus = ("sda", "sata") if _is_q35(devices) else ("hda", "ide")
        seed = _disk(machine.seed, "cdrom", "raw", target, bus)
        etree.SubElement(seed, "readonly")
        devices.append(seed)


def _fill_serial_log(devices: Element, log: Path | None) -> None:
    serial = devices.find("serial")
    if log is None or serial is None or serial.find("log") is not None:
        return
    element = etree.Element("log", file=str(log), append="off")
    source = serial.find("source")
    serial.insert(0 if source is None else serial.index(source) + 1, element)


def _fill_vnc(devices: Element, machine: Machine) -> None:
    if not machine.vnc:
        return
    _drop(devices, "graphics")
    port = "-1" if machine.vnc.port is None else str(machine.vnc.port)
    autoport = "yes" if machine.vnc.port is None else "no"
    graphics = etree.SubElement(devices, "graphics", type="vnc", port=port, autoport=autoport)
    etree.SubElement(graphics, "listen", type="address", address=machine.vnc.listen)
    if devices.find("video") is None:
        video = etree.SubElement(devices, "video")
        etree.SubElement(video, "model", type="virtio")


def _is_q35(devices: Element) -> bool:
    root = devices.getparent()
    kind = None if root is None else root.find("os/type")
    return kind is not None and "q35" in kind.get("machine", "")


def _takes_root_port(device: Element) -> bool:
    """Whether libvirt will put the device behind a root port of its own, where it has no address yet."""
    if device.find("address") is not None:
        return False
    if device.tag in ("interface", "rng", "memballoon", "vsock", "sound"):
        return device.get("model") != "none"
    if device.tag == "disk":
        target = device.find("target")
        return target is not None and target.get("bus") == "virtio"
    if device.tag == "controller":
        return device.get("type") in ("scsi", "virtio-serial")
    return device.tag == "video"


def _fill_root_ports(root: Element, devices: Element) -> None:
    """q35 hot-plugs only behind `pcie-root-port`s, of which libvirt adds one: add what the devices need, and spares."""
    if not _is_q35(devices):
        return
    if devices.find("controller[@type='pci'][@model='pcie-root']") is None:
        # Root ports without it before them make the define fail.
        devices.insert(0, etree.Element("controller", type="pci", index="0", model="pcie-root"))
    used = sum(_takes_root_port(device) for device in devices)
    channels = devices.findall("channel/target[@type='virtio']")
    if channels and devices.find("controller[@type='virtio-serial']") is None:
        used += 1
    have = len(devices.findall("controller[@type='pci'][@model='pcie-root-port']"))
    for _ in range(used + SPARE_ROOT_PORTS - have):
        etree.SubElement(devices, "controller", type="pci", model="pcie-root-port")


_HEAD = ("name", "uuid", "title", "description", "metadata", "memory", "vcpu", "cpu", "os", "features", "clock")


def _order(root: Element) -> None:
    """Puts what a reader looks for first at the top; libvirt itself takes any order."""
    for tag in reversed(_HEAD):
        for element in root.findall(tag):
            root.remove(element)
            root.insert(0, element)
    devices = root.find("devices")
    if devices is not None:
        pci = devices.findall("controller[@type='pci']")
        for controller in reversed(pci):
            devices.remove(controller)
            devices.insert(0, controller)
