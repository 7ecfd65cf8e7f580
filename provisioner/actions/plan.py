"""The plan of a create: looks at everything, changes nothing, and reports every problem at once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import images
from provisioner.actions.addresses import Segment
from provisioner.actions.catalogue import catalogue
from provisioner.actions.firmware import choose_firmware
from provisioner.actions.removal import LOG_DIR
from provisioner.actions.request import CreateRequest
from provisioner.actions.shims import GuestRoute, guest_routes
from provisioner.actions.virt_type import choose_virt_type
from provisioner.actions.wiring import Findings, Surroundings, plan_nics
from provisioner.context import Context
from provisioner.errors import NotFound, Taken, Unable, Usage
from provisioner.host import disks, system
from provisioner.host.store import StoredImage
from provisioner.model.domain_xml.parsing import parse
from provisioner.model.domain_xml.writing import domain_xml
from provisioner.model.found import TEMPLATE, Marks
from provisioner.model.machine import Machine
from provisioner.model.names import check_name
from provisioner.model.nic import Nic
from provisioner.model.seed import SeedRequest, seed_files
from provisioner.model.sizes import DEFAULT_MEMORY, LEAST_MEMORY, human_size
from provisioner.model.user_data import check_combinable, check_script
from provisioner.resources import resource

#: What QEMU's q35 takes.
_MOST_VCPUS = 288


class Plan(NamedTuple):
    """All that `create` will do; `folder` holds the machine's disk and seed. The NICs on a network have the addresses
    that they would get now: the claim decides, and `with_nics` then says so."""

    machine: Machine
    folder: Path
    xml: str
    image: StoredImage | None
    disk_size: int | None
    told: SeedRequest
    segments: Mapping[str, Segment]
    start: bool
    autostart: bool
    probe: str
    notes: tuple[str, ...]

    @property
    def seed(self) -> dict[str, bytes]:
        return seed_files(self.told)

    @property
    def routes(self) -> tuple[GuestRoute, ...]:
        return tuple(route for nic in self.machine.nics for route in guest_routes(nic))

    def with_nics(self, nics: tuple[Nic, ...]) -> Plan:
        """The same with other addresses, of which the domain's XML does not tell."""
        return self._replace(machine=self.machine._replace(nics=nics), told=self.told._replace(nics=nics))


class _Parts(NamedTuple):
    """What a machine is made of beside its NICs."""

    request: CreateRequest
    image: StoredImage | None = None
    virt_type: str = ""
    firmware: str = ""
    template: bytes = b""
    template_name: str = ""


def make_plan(
    context: Context, request: CreateRequest, others: Sequence[Nic] = (), there: Surroundings | None = None
) -> Plan:
    """`others` are the NICs of machines that are made before this one, `there` what somebody has just looked at. Raises
    Problems with everything that stands in the way, Unable where libvirt is not this host's own."""
    context.require_local("creating a VM")
    findings = Findings()
    there = there or Surroundings.look(context)
    with findings.checking():
        check_name(request.name)
        if any(machine.name == request.name for machine in there.machines):
            raise Taken(f"a machine named {request.name} exists already", "choose another name, or delete that one")
        if context.reading_store and context.reading_store.has_endpoint(request.name):
            from provisioner.host.endpoints import endpoint_exists

            raise endpoint_exists(request.name)
    parts = _choose_parts(context, request, findings)
    nics = plan_nics(
        context,
        request.nics,
        there,
        findings,
        others,
        start=request.start,
        shim=request.shim,
        take_parent=request.take_parent,
    )
    findings.finish()
    plan = _assemble(context, parts, str(uuid.uuid4()), nics)
    return plan._replace(segments=there.segments, notes=tuple(findings.notes))


def make_again(context: Context, request: CreateRequest, identity: str, nics: tuple[Nic, ...]) -> Plan:
    """Of a machine that is there, with its UUID and the NICs that it has. Raises Problems."""
    findings = Findings()
    parts = _choose_parts(context, request, findings)
    findings.finish()
    return _assemble(context, parts, identity, nics)._replace(notes=tuple(findings.notes))


def _choose_parts(context: Context, request: CreateRequest, findings: Findings) -> _Parts:
    with findings.checking():
        _check_sizes(request)
    image = None
    with findings.checking():
        image = _choose_image(context, request)
        request = _sized(request, image, findings.notes)
    virt_type = request.virt_type
    with findings.checking():
        virt_type = choose_virt_type(request.virt_type or context.settings.virt_type, findings.notes)
    with findings.checking():
        _check_boot_files(request)
    template, template_name, firmware = b"", "", ""
    with findings.checking():
        template, template_name = _read_template(request)
        root = parse(template, template_name)
        firmware = choose_firmware(context, request, image, root, virt_type, findings.notes)
    with findings.checking():
        _check_user_data(request, image, findings.notes)
    return _Parts(request, image, virt_type, firmware, template, template_name)


def _assemble(context: Context, parts: _Parts, identity: str, nics: tuple[Nic, ...]) -> Plan:
    request, image, virt_type, firmware, template, template_name = parts
    folder = context.machines_dir / identity
    entry = catalogue().get(image.name) if image else None
    login = image.login if image else ""
    machine = Machine(
        name=request.name,
        uuid=identity,
        memory=request.memory or DEFAULT_MEMORY,
        vcpus=request.vcpus,
        virt_type=virt_type,
        nics=nics,
        disk=folder / "disk.qcow2" if image or request.disk_size else None,
        base=images.image_path(context, image) if image else None,
        seed=folder / "seed.iso",
        firmware=firmware,
        nvram=folder / "nvram.fd" if firmware == "uefi" else None,
        boot=request.boot,
        vnc=request.vnc,
        serial_log=LOG_DIR / f"{request.name}-serial.log",
        marks=Marks(
            image=f"{image.name}:{image.version}".rstrip(":") if image else "",
            base=image.digest if image else "",
            login=login,
            password="own" if request.password else "",
            lab=request.lab,
            # No file says it, and nothing shows afterwards that there was one.
            wish=request.wish or (TEMPLATE if request.template else ""),
            labels=request.labels,
        ),
    )
    keys = request.ssh_keys
    if keys is None:
        keys = system.ssh_public_keys() if entry is None or entry.takes_keys else ()
    told = SeedRequest(
        hostname=request.name,
        instance_id=identity,
        nics=nics,
        ssh_keys=keys,
        user_data=request.user_data,
        login=login,
        password_hash=system.password_hash(request.password) if request.password else "",
    )
    return Plan(
        machine=machine,
        folder=folder,
        xml=domain_xml(machine, template, template_name),
        image=image,
        disk_size=request.disk_size,
        told=told,
        segments={},
        start=request.start,
        autostart=request.autostart,
        probe=request.probe,
        notes=(),
    )


def _check_sizes(request: CreateRequest) -> None:
    memory = request.memory or DEFAULT_MEMORY
    if memory < LEAST_MEMORY:
        raise Usage(f"{human_size(memory)} of memory boots no guest", f"at least --memory {human_size(LEAST_MEMORY)}")
    if request.disk_size and request.disk_size > disks.MOST_VIRTUAL:
        raise Usage(
            f"a disk of {human_size(request.disk_size)} is more than macvm makes",
            f"at most --disk {human_size(disks.MOST_VIRTUAL)}",
        )
    total = system.memory_total()
    if memory > total:
        raise Unable(
            f"{human_size(memory)} of memory is more than this host has, {human_size(total)}",
            "ask for less with --memory",
        )
    if not 1 <= request.vcpus <= _MOST_VCPUS:
        raise Usage(f"{request.vcpus} virtual CPUs are not possible", f"--vcpus takes 1 to {_MOST_VCPUS}")


def _choose_image(context: Context, request: CreateRequest) -> StoredImage | None:
    # Not at the top, as elsewhere: `start` and `stop` import this module too.
    from provisioner.actions import pulling

    image = pulling.choose(context, request)
    if image is None:
        return None
    if image.digest:
        images.check_base(context, image)
    if request.disk_size and request.disk_size < image.virtual_size:
        raise Usage(
            f"a disk of {human_size(request.disk_size)} is smaller than the image {image.name}, "
            f"{human_size(image.virtual_size)}",
            f"at least --disk {human_size(image.virtual_size)}, or leave it out",
        )
    return image


def _sized(request: CreateRequest, image: StoredImage | None, notes: list[str]) -> CreateRequest:
    """With at least the memory and the disk that the image works with; less was not asked for, or is refused."""
    entry = catalogue().get(image.name) if image else None
    if entry is None or image is None:
        return request
    least = human_size(entry.memory)
    if request.memory and request.memory < entry.memory:
        asked = human_size(request.memory)
        raise Usage(f"{asked} of memory is less than {entry.name} works with, {least}", f"at least --memory {least}")
    if request.disk_size and request.disk_size < entry.disk:
        asked, least = human_size(request.disk_size), human_size(entry.disk)
        raise Usage(f"a disk of {asked} is less than {entry.name} works with, {least}", f"at least --disk {least}")
    if entry.memory > DEFAULT_MEMORY and not request.memory:
        notes.append(f"{entry.name} gets {least} of memory: it works with no less")
    disk = entry.disk if entry.disk > max(image.virtual_size, request.disk_size or 0) else request.disk_size
    return request._replace(memory=request.memory or max(DEFAULT_MEMORY, entry.memory), disk_size=disk)


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


def _check_user_data(request: CreateRequest, image: StoredImage | None, notes: list[str]) -> None:
    entry = catalogue().get(image.name) if image else None
    if entry and entry.configured_by == "none" and (request.user_data or request.password):
        option = "--user-data" if request.user_data else "--password"
        hint = 'leave it out; or, where they read one, /etc/macvm/catalog.d says so: configured_by = "cloud-init"'
        raise Usage(f"guests of {entry.name} read no seed: {option} would not reach them", hint)
    if entry and request.ssh_keys and not (entry.takes_keys and entry.configured_by != "none"):
        notes.append(f"guests of {entry.name} take no SSH keys: --ssh-key does not reach them")
    if request.password and not (image and image.login):
        raise Usage("--password needs an image whose login is known", "use --user-data instead")
    if not request.password.isprintable():
        # Nobody could type it, and what makes the hash reads one line.
        raise Usage("--password has a character that is none of writing", "letters, digits, signs and blanks")
    if entry and entry.script_only:
        for part in request.user_data:
            check_script(part, entry.name)
        if len(request.user_data) > 1:
            raise Usage(f"guests of {entry.name} run one script, and no MIME", "put it all into one --user-data")
        if request.password and request.user_data:
            raise Usage(
                f"--password and --user-data exclude one another for guests of {entry.name}, which run one script",
                f"set the password in it: echo {entry.login}:HASH | chpasswd -e, with the hash of openssl passwd -6",
            )
    check_combinable(request.user_data)
