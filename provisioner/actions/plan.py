"""The plan of a create: looks at everything, changes nothing, and reports every problem at once."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.actions import images, shims
from provisioner.actions.parents import Links, check_parent, choose_parent
from provisioner.actions.removal import LOG_DIR
from provisioner.actions.request import CreateRequest, NicRequest
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, Problems, Taken, Unable, Usage
from provisioner.host import netlink, system
from provisioner.host.hypervisor import kvm_problem
from provisioner.host.store import StoredImage
from provisioner.model.domain_xml import domain_xml, parse
from provisioner.model.machine import LEAST_MEMORY, FoundMachine, Machine, Marks, human_size
from provisioner.model.names import Mac, check_name
from provisioner.model.nic import Address, Addressing, Interface, Nic, check_usable
from provisioner.model.seed import SeedRequest, seed_files, takes_script
from provisioner.resources import resource

#: What QEMU's q35 takes.
_MOST_VCPUS = 288


@dataclass(frozen=True)
class Plan:
    """All that `create` will do. `leases` are `(network, address, mac, parent)` with an empty parent where no shim is
    wanted; `folder` holds the machine's disk and seed."""

    machine: Machine
    folder: Path
    xml: str
    image: StoredImage | None
    disk_size: int | None
    seed: dict[str, bytes]
    leases: tuple[tuple[str, str, str, str], ...]
    routes: tuple[GuestRoute, ...]
    start: bool
    autostart: bool
    notes: tuple[str, ...]


class _Findings:
    """Collects problems and goes on."""

    def __init__(self) -> None:
        self.problems: list[MacvmError] = []
        self.notes: list[str] = []

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        try:
            yield
        except Problems as several:
            self.problems += several.problems
        except MacvmError as error:
            self.problems.append(error)

    def finish(self) -> None:
        if self.problems:
            unique = {problem.message: problem for problem in self.problems}
            raise Problems(list(unique.values()))


@dataclass(frozen=True)
class _Surroundings:
    """What is there already."""

    links: Links
    machines: list[FoundMachine]


def make_plan(context: Context, request: CreateRequest) -> Plan:
    """Raises Problems with everything that stands in the way."""
    findings = _Findings()
    there = _Surroundings(Links.read(), context.hypervisor.machines())
    with findings.checking():
        check_name(request.name)
        if any(machine.name == request.name for machine in there.machines):
            raise Taken(f"a machine named {request.name} exists already", "choose another name, or delete that one")
    with findings.checking():
        _check_sizes(request)
    image = None
    with findings.checking():
        image = _choose_image(context, request)
    virt_type = request.virt_type
    with findings.checking():
        virt_type = _choose_virt_type(request.virt_type or context.settings.virt_type, findings.notes)
    with findings.checking():
        _check_boot_files(request)
    template, template_name = b"", ""
    with findings.checking():
        template, template_name = _read_template(request)
    nics = _plan_nics(context, request, there, findings)
    with findings.checking():
        _check_user_data(request, image)
    findings.finish()
    return _assemble(context, request, image, virt_type, template, template_name, nics, findings.notes)


def _assemble(
    context: Context,
    request: CreateRequest,
    image: StoredImage | None,
    virt_type: str,
    template: bytes,
    template_name: str,
    nics: tuple[Nic, ...],
    notes: list[str],
) -> Plan:
    identity = str(uuid.uuid4())
    folder = context.machines_dir / identity
    entry = images.catalogue().get(image.name) if image else None
    login = image.login if image else ""
    machine = Machine(
        name=request.name,
        uuid=identity,
        memory=request.memory,
        vcpus=request.vcpus,
        virt_type=virt_type,
        nics=nics,
        disk=folder / "disk.qcow2" if image or request.disk_size else None,
        base=images.image_path(context, image) if image else None,
        seed=folder / "seed.iso",
        boot=request.boot,
        vnc=request.vnc,
        serial_log=LOG_DIR / f"{request.name}-serial.log",
        marks=Marks(
            image=f"{image.name}:{image.version}".rstrip(":") if image else "",
            base=image.digest if image else "",
            login=login,
            lab=request.lab,
            labels=request.labels,
        ),
    )
    keys = request.ssh_keys
    if keys is None:
        keys = system.ssh_public_keys() if entry is None or entry.takes_keys else ()
    seed = SeedRequest(
        hostname=request.name,
        instance_id=identity,
        nics=nics,
        ssh_keys=keys,
        user_data=request.user_data,
        login=login,
        password_hash=system.password_hash(request.password) if request.password else "",
    )
    wants_shim = {nic.mac: nic.direct and request.shim and shims.reaches_host(nic.mode) for nic in nics}
    routes = tuple(
        GuestRoute(address, nic.mac, nic.parent)
        for nic in nics
        for address in nic.addressing.addresses
        if wants_shim[nic.mac] and shims.pinned_source(nic.parent, address)
    )
    leases = tuple(
        (f"parent:{nic.parent}", str(address), nic.mac, nic.parent if wants_shim[nic.mac] else "")
        for nic in nics
        for address in nic.addressing.addresses
        if nic.direct
    )
    return Plan(
        machine=machine,
        folder=folder,
        xml=domain_xml(machine, template, template_name),
        image=image,
        disk_size=request.disk_size,
        seed=seed_files(seed),
        leases=leases,
        routes=routes,
        start=request.start,
        autostart=request.autostart,
        notes=tuple(notes),
    )


def _check_sizes(request: CreateRequest) -> None:
    if request.memory < LEAST_MEMORY:
        raise Usage(
            f"{human_size(request.memory)} of memory boots no guest", f"at least --memory {human_size(LEAST_MEMORY)}"
        )
    total = system.memory_total()
    if request.memory > total:
        raise Unable(
            f"{human_size(request.memory)} of memory is more than this host has, {human_size(total)}",
            "ask for less with --memory",
        )
    if not 1 <= request.vcpus <= _MOST_VCPUS:
        raise Usage(f"{request.vcpus} virtual CPUs are not possible", f"--vcpus takes 1 to {_MOST_VCPUS}")


def _choose_image(context: Context, request: CreateRequest) -> StoredImage | None:
    wanted = request.image or (context.settings.image if not request.boot else "")
    if request.boot and not wanted:
        return None
    store = context.reading_store
    image = images.choose_image(images.list_images(store), wanted)
    images.check_base(context, image)
    if request.disk_size and request.disk_size < image.virtual_size:
        raise Usage(
            f"a disk of {human_size(request.disk_size)} is smaller than the image {image.name}, "
            f"{human_size(image.virtual_size)}",
            f"at least --disk {human_size(image.virtual_size)}, or leave it out",
        )
    return image


def _choose_virt_type(wanted: str, notes: list[str]) -> str:
    problem = kvm_problem() if wanted in ("auto", "kvm") else ""
    if wanted == "auto":
        if problem:
            notes.append(f"KVM cannot run guests here ({problem}): QEMU emulates the CPU, which is slow")
        return "qemu" if problem else "kvm"
    if wanted == "kvm" and problem:
        raise Unable(f"KVM cannot run guests here: {problem}", "use --virt-type qemu")
    return wanted


def _check_boot_files(request: CreateRequest) -> None:
    if not request.boot:
        return
    for what, path in (("kernel", request.boot.kernel), ("initrd", request.boot.initrd)):
        if path is None:
            continue
        if not path.is_file():
            raise NotFound(f"there is no {what} {path}", f"check --{what}")
        # QEMU reads it as its own user; libvirt gives it the file's rights, but not those of the folders above.
        if not os.access(path, os.R_OK):
            raise Unable(f"the {what} {path} cannot be read", "check its rights")


def _read_template(request: CreateRequest) -> tuple[bytes, str]:
    path = request.template or resource("templates", "q35.xml")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no template {path}", "check --template") from None
    except OSError as error:
        raise Unable(f"the template {path} cannot be read: {error.strerror}", "check --template") from None
    name = f"the template {path}"
    # Parsed here too, so that its problems are reported together with all others.
    parse(text, name)
    return text, name


def _check_user_data(request: CreateRequest, image: StoredImage | None) -> None:
    entry = images.catalogue().get(image.name) if image else None
    if request.user_data and request.password:
        raise Usage("--password and --user-data exclude one another", "set the password in the user-data")
    if request.password and not (image and image.login):
        raise Usage("--password needs an image whose login is known", "use --user-data instead")
    if entry and entry.script_only and request.user_data and not takes_script(request.user_data):
        raise Usage(
            f"guests of {entry.name} run user-data only where it begins with #!",
            "write it as a script, not cloud-config",
        )


def _plan_nics(context: Context, request: CreateRequest, there: _Surroundings, findings: _Findings) -> tuple[Nic, ...]:
    planned: list[Nic] = []
    for wanted in request.nics:
        with findings.checking():
            nic = _plan_wiring(context, request, wanted, there)
            nic = replace(nic, mac=_choose_mac(context, wanted.mac, nic, there, planned))
            if nic.direct:
                with findings.checking():
                    nic = replace(nic, addressing=_complete(wanted.addressing, nic.parent))
                with findings.checking():
                    _check_addresses(context, nic, planned)
            planned.append(nic)
            if nic.direct and request.shim:
                _note_reachability(nic, findings.notes)
    if not request.nics:
        findings.notes.append("no NIC was asked for")
    return tuple(planned)


def _plan_wiring(context: Context, request: CreateRequest, wanted: NicRequest, there: _Surroundings) -> Nic:
    if wanted.libvirt_network:
        networks = context.hypervisor.networks()
        if wanted.libvirt_network not in networks:
            hint = f"there are {', '.join(networks) or 'none'}: virsh net-list --all"
            raise NotFound(f"there is no libvirt network {wanted.libvirt_network}", hint)
        if request.start and not networks[wanted.libvirt_network]:
            hint = f"virsh net-start {wanted.libvirt_network}"
            raise Unable(f"the libvirt network {wanted.libvirt_network} is not active", hint)
        return Nic(mac=Mac.random(), libvirt_network=wanted.libvirt_network, addressing=Addressing(dhcp=True))
    name = choose_parent(there.links, wanted.parent or context.settings.parent, wanted.mode)
    parent = check_parent(there.links, name, wanted.mode, wanted.mtu, take=request.take_parent)
    return Nic(mac=Mac.random(), mode=wanted.mode, parent=parent.name, mtu=wanted.mtu, addressing=wanted.addressing)


def _choose_mac(context: Context, wanted: Mac | None, nic: Nic, there: _Surroundings, planned: list[Nic]) -> Mac:
    """A free MAC: the kernel refuses the same one twice on a parent, but at start, and without saying whose it is."""
    holders: dict[str, str] = {link.mac: f"the link {link.name}" for link in there.links.all}
    holders |= {found.mac: f"machine {machine.name}" for machine in there.machines for found in machine.nics}
    holders |= {other.mac: "another NIC of this machine" for other in planned}
    store = context.reading_store
    if wanted is None:
        mac = nic.mac
        while mac in holders or mac.device in holders or (store and store.holder_of_mac(mac)):
            mac = Mac.random()
        return mac
    holder = holders.get(wanted)
    if holder is None and store and store.holder_of_mac(wanted):
        holder = f"machine {store.holder_of_mac(wanted)}"
    if holder:
        raise Taken(f"MAC {wanted} is in use by {holder}", "leave --mac out, and macvm chooses one")
    check_device_free(wanted.device, there.links, there.machines)
    return wanted


def check_device_free(device: str, host: Links, machines: list[FoundMachine], own: str = "") -> None:
    """Two domains that claim one host device: the failed start of the second deletes the running NIC of the first.

    `own` is the UUID of the machine that is asked for. Raises Taken.
    """
    for machine in machines:
        if machine.uuid != own and any(nic.device == device for nic in machine.nics):
            raise Taken(f"the host device {device} belongs to a NIC of machine {machine.name}", "choose another --mac")
    if host.find(device):
        hint = f"see what it is: ip -d link show {device}; macvm gc clears what macvm left"
        raise Taken(f"there is a link {device} on this host already", hint)


def _complete(addressing: Addressing, parent: str) -> Addressing:
    """Fills in a length left out, and gateway and DNS of the host's own subnet."""
    own = netlink.addresses(netlink.get_link(parent).index)
    static = tuple(_with_length(interface, own, parent) for interface in addressing.static)
    for interface in static:
        check_usable(interface)
    gateways, dns = addressing.gateways, addressing.dns
    inside = [interface for interface in static if any(interface.ip in mine.network for mine in own)]
    if inside and not gateways:
        gateways = _own_gateways(parent, {interface.version for interface in inside})
    if inside and not dns:
        dns = system.name_servers()
    for gateway in gateways:
        if static and not any(gateway in interface.network or gateway.is_link_local for interface in static):
            raise Usage(f"gateway {gateway} is in no subnet of {', '.join(map(str, static))}", "check --gateway")
    return replace(addressing, static=static, gateways=gateways, dns=dns)


def _with_length(interface: Interface, own: list[Interface], parent: str) -> Interface:
    if interface.network.prefixlen < interface.max_prefixlen:
        return interface
    for mine in own:
        if mine.version == interface.version and interface.ip in mine.network:
            return ipaddress.ip_interface((interface.ip, mine.network.prefixlen))
    subnets = ", ".join(str(mine.network) for mine in own) or "none"
    raise Usage(
        f"{interface.ip} has no length, and is in no subnet of {parent} ({subnets})",
        f"say it: --ip {interface.ip}/{24 if interface.version == 4 else 64}",
    )


def _own_gateways(parent: str, versions: set[int]) -> tuple[Address, ...]:
    index = netlink.get_link(parent).index
    found: list[Address] = []
    for route in netlink.routes():
        default = route.destination.prefixlen == 0 and route.device == index
        if default and route.gateway and route.gateway.version in versions:
            versions = versions - {route.gateway.version}
            found.append(route.gateway)
    return tuple(found)


def _check_addresses(context: Context, nic: Nic, planned: list[Nic]) -> None:
    own = {interface.ip: link.name for link in netlink.links() for interface in netlink.addresses(link.index)}
    store = context.reading_store
    held = {lease.address: lease.machine for lease in store.leases()} if store else {}
    for address in nic.addressing.addresses:
        if address in own:
            raise Taken(f"address {address} is this host's own, on {own[address]}", "choose another with --ip")
        if str(address) in held:
            raise Taken(f"address {address} is held by machine {held[str(address)]}", "choose another with --ip")
        if any(address in other.addressing.addresses for other in planned):
            raise Usage(f"address {address} is given to two NICs", "give each NIC its own")


def _note_reachability(nic: Nic, notes: list[str]) -> None:
    mode = nic.mode.value
    if not shims.reaches_host(nic.mode):
        notes.append(f"the host cannot reach {nic.mac}: mode {mode} lets no shim through; a second NIC would: "
                     "--nic libvirt=default")  # fmt: skip
        return
    for address in nic.addressing.addresses:
        if shims.pinned_source(nic.parent, address) is None:
            notes.append(f"no route from this host to {address}: {nic.parent} has no address in its subnet")
