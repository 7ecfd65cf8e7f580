"""From the keys of a lab file to wishes; what only shows when they are put together is checked here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

from provisioner.actions.labs.files import Files
from provisioner.actions.labs.forms import EndpointForm, LabForm, NetworkForm, NicForm, VmForm
from provisioner.actions.labs.mistakes import Mistake, Place, guess
from provisioner.actions.labs.tree import Items, Table, Text, find
from provisioner.actions.labs.wishes import ShimWish
from provisioner.actions.labs.words import in_file_words
from provisioner.actions.request import CreateRequest, EndpointRequest, NicRequest, is_elsewhere, numbered
from provisioner.errors import MacvmError
from provisioner.model.endpoint import MacvlanMode, check_mode
from provisioner.model.machine import DirectBoot, check_exposure
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, printable
from provisioner.model.network import (
    Network,
    Subnet,
    assemble_subnets,
    check_decided,
    check_disjoint,
    check_given,
    check_reserved,
)
from provisioner.model.nic import Address, check_mtu

Location = tuple[str | int, ...]

#: Of one lab; more than a host can have, and few enough that a slip of the finger is said at once.
MOST_MACHINES = 4096


class Builder:
    """`tree` is the whole file, `form` what of it is right by itself."""

    def __init__(self, lab: str, files: Files, tree: Table, form: LabForm, mistakes: list[Mistake]) -> None:
        self._lab, self._files, self._tree, self._form, self._mistakes = lab, files, tree, form, mistakes
        self._networks: dict[str, Network] = {}
        self._macs: dict[Mac, str] = {}
        self._addresses: dict[tuple[str, Address], str] = {}
        self.places: dict[tuple[str | int, ...], Place] = {}

    def networks(self) -> tuple[Network, ...]:
        for name, form in self._form.networks.items():
            self._place(("networks", name), "network", name)
            with self._checking("networks", name):
                network = self._network(name, form)
                check_disjoint(network, self._networks.values())
                self._networks[name] = network
        return tuple(self._networks.values())

    def _network(self, name: str, form: NetworkForm) -> Network:
        subnets: list[Subnet] = []
        for number, one in enumerate(form.subnets):
            with self._checking("networks", name, "subnets", number):
                gateways = [one.gateway] if one.gateway else []
                subnets += assemble_subnets([one.subnet], gateways, [one.range] if one.range else [])
                assemble_subnets([one.subnet for one in subnets], (), ())
                check_mtu(form.mtu, one.subnet)
        reserved = tuple(form.reserved.items())
        if len(subnets) == len(form.subnets):
            with self._checking("networks", name, "reserved"):
                check_reserved(subnets, reserved)
        mode = form.mode or MacvtapMode.BRIDGE
        return Network(name, form.parent, mode, tuple(subnets), reserved, form.dns, form.mtu, form.shim)

    def machines(self) -> tuple[CreateRequest, ...]:
        made: list[tuple[str, CreateRequest]] = []
        if not self._check_counts():
            return ()
        for name, own in self._form.vms.items():
            form = _merged(own, self._form.defaults)
            with self._checking("vms", name):
                request = self._machine(name, own, form)
                with self._checking(*self._where(name, own, "count")):
                    several = [request] if form.count is None else numbered(request, form.count)
                    made += ((name, one) for one in several)
                    image = self._where(name, own, "image") if form.image else ("vms", name)
                    for one in several:
                        self._place(image, "image", one.name)
                    self._check_nics(self._where(name, own, "nics"), several)
        self._check_names(made)
        return tuple(request for _, request in made)

    def _where(self, name: str, own: VmForm, key: str) -> Location:
        """A key of a VM's, which may stand among the defaults."""
        return ("vms", name, key) if key in own.model_fields_set else ("defaults", key)

    def _machine(self, name: str, own: VmForm, form: VmForm) -> CreateRequest:
        image, checksum = self._image(name, own, form)
        boot = None
        if form.kernel:
            boot = DirectBoot(form.kernel, form.initrd, form.cmdline)
        elif form.initrd or form.cmdline:
            key = "initrd" if form.initrd else "cmdline"
            self._complain(self._where(name, own, key), f"{key} needs a kernel", "add kernel: FILE")
        with self._checking(*self._where(name, own, "vnc")):
            check_exposure(form.vnc, exposed=form.vnc_exposed)
        return CreateRequest(
            name=name,
            nics=tuple(self._nic(nic) for nic in form.nics) or (self._nic(NicForm()),),
            image=image,
            checksum=checksum,
            insecure=form.insecure_no_checksum,
            memory=form.memory,
            vcpus=form.vcpus,
            disk_size=form.disk,
            ssh_keys=tuple(chain(*form.ssh_keys)) if "ssh_keys" in form.model_fields_set else None,
            user_data=tuple(chain(*form.user_data)),
            password=form.password,
            template=form.template,
            virt_type=form.virt_type,
            firmware=form.firmware or None,
            boot=boot,
            vnc=form.vnc,
            start=form.start,
            shim=form.shim,
            take_parent=form.take_parent,
            probe=form.probe,
            autostart=form.autostart,
            lab=self._lab,
            labels=tuple(form.labels.items()),
        )

    def _image(self, name: str, own: VmForm, form: VmForm) -> tuple[str, str]:
        """What is to be found, and its checksum."""
        image, checksum = form.image, form.checksum
        if named := self._form.images.get(image):
            if checksum:
                what = f"the image {image} has its checksum where it stands"
                self._complain(self._where(name, own, "checksum"), what, "leave this one out")
            image, checksum = named.source, named.checksum
        if is_elsewhere(image) and "://" not in image:
            with self._checking(*self._where(name, own, "image")):
                image = str(self._files.path(image))
        return image, checksum

    def _nic(self, form: NicForm) -> NicRequest:
        told, bare = self._form.defaults, not (form.network or form.libvirt)
        return NicRequest(
            mode=form.mode or (told.mode if bare else None),
            parent=form.parent or (told.parent if bare else ""),
            libvirt_network=form.libvirt,
            mac=form.mac,
            mtu=form.mtu,
            addressing=form.addressing,
            network=form.network,
        )

    def endpoints(self) -> tuple[EndpointRequest, ...]:
        made: list[EndpointRequest] = []
        for name, form in self._form.endpoints.items():
            self._place(("endpoints", name), "endpoint", name)
            with self._checking("endpoints", name):
                check_mode(form.mode, form.ipvlan, form.allow_source)
                request = _endpoint(name, form)
                made.append(request)
                said = MacvtapMode(form.mode.value) if form.mode and form.mode is not MacvlanMode.SOURCE else None
                nic = NicRequest(said, form.parent, "", form.mac, form.mtu, form.addressing, form.network)
                self._check_nic(("endpoints", name), name, nic)
        return tuple(made)

    def shims(self) -> tuple[ShimWish, ...]:
        made: dict[str, ShimWish] = {}
        for number, form in enumerate(self._form.shims):
            self._place(("shims", number), "shim", form.parent)
            if form.parent in made:
                self._complain(("shims", number), "this parent has its shim in the list already", "make one of them")
            made[form.parent] = ShimWish(form.parent, form.to)
        return tuple(made.values())

    def _check_counts(self) -> bool:
        """Whether there are few enough machines to look at each."""
        total = 0
        for name, form in self._form.vms.items():
            total += _merged(form, self._form.defaults).count or 1
            if total > MOST_MACHINES:
                what = f"this makes more than {MOST_MACHINES} VMs"
                self._complain(self._where(name, form, "count"), what, "make fewer, or several labs")
                return False
        return True

    def _check_names(self, made: list[tuple[str, CreateRequest]]) -> None:
        """Machines, also those that `count` numbers, and endpoints share their names."""
        taken = dict.fromkeys(self._form.endpoints, "an endpoint")
        for key, request in made:
            if request.name in taken:
                what = f"the name {request.name} is that of {taken[request.name]} already"
                self._complain(("vms", key, "[key]"), what, "choose another")
            taken[request.name] = "a VM"

    def _check_nics(self, where: Location, requests: list[CreateRequest]) -> None:
        for request in requests:
            for number, nic in enumerate(request.nics):
                self._place((*where, number), "vm", request.name, number)
                self._check_nic((*where, number), request.name, nic)

    def _check_nic(self, where: Location, name: str, nic: NicRequest) -> None:
        """A NIC or endpoint against its network; and one holder for each MAC, and for each address of one parent."""
        if nic.mac:
            self._take(self._macs, nic.mac, (*where, "mac"), name, f"the MAC {nic.mac}")
        network = self._networks.get(nic.network)
        if network:
            with self._checking(*where, "mode" if nic.mode and nic.mode is not network.mode else "parent"):
                check_decided(network, nic.parent if network.parent else "", nic.mode)
        parent = network.parent if network else nic.parent
        for address in nic.addressing.static:
            self._take(self._addresses, (parent, address.ip), (*where, "ip"), name, f"the address {address.ip}")
            if network:
                with self._checking(*where, "ip"):
                    check_given(network, address)

    def _take(self, taken: dict[Any, str], what: object, at: Location, name: str, said: str) -> None:
        if what in taken:
            self._complain(at, f"{said} is {taken[what]}'s already", f"give {name} another, or none")
        else:
            taken[what] = name

    def check_networks(self) -> None:
        """Every network that is named is one of the file's; looks at the whole file, not at what is right alone."""
        known = self._tree.get("networks")
        names = list(known) if isinstance(known, Table) else []
        for where in _wired(self._tree):
            _, wired = find(self._tree, where)
            name = wired.get("network") if isinstance(wired, Table) else None
            if not isinstance(name, Text) or name.broken or name in names:
                continue
            what = f"there is no network {name.written or printable(name)} in the file"
            hint = guess("" if name.written else name, names) if names else "add it below `networks:`"
            self._complain((*where, "network"), what, hint)

    def _place(self, location: Location, *thing: str | int) -> None:
        self.places[thing] = find(self._tree, location)[0]

    def _complain(self, location: Location, what: str, hint: str) -> None:
        self._mistakes.append(Mistake(find(self._tree, location)[0], what, hint))

    @contextlib.contextmanager
    def _checking(self, *location: str | int) -> Iterator[None]:
        try:
            yield
        except MacvmError as error:
            place, node = find(self._tree, location)
            if isinstance(node, Text) and node.written:
                self._mistakes.append(Mistake(place, f"what {node.written} stands for cannot be taken", "look at it"))
            else:
                self._mistakes.append(Mistake(place, in_file_words(error.message), in_file_words(error.hint)))


def _merged(form: VmForm, defaults: VmForm) -> VmForm:
    """With what the defaults say and the VM does not."""
    said = defaults.model_fields_set & VmForm.model_fields.keys()
    update = {key: getattr(defaults, key) for key in said - form.model_fields_set}
    if "labels" in said:
        update["labels"] = {**defaults.labels, **form.labels}
    return form.model_copy(update=update)


def _endpoint(name: str, form: EndpointForm) -> EndpointRequest:
    return EndpointRequest(
        name=name,
        mode=form.mode,
        ipvlan=form.ipvlan,
        parent=form.parent,
        network=form.network,
        addressing=form.addressing,
        mac=form.mac,
        mtu=form.mtu,
        sources=tuple(dict.fromkeys(form.allow_source)),
        netns=form.netns,
        shim=form.shim,
        take_parent=form.take_parent,
        probe=form.probe,
    )


def _wired(tree: Table) -> Iterator[Location]:
    """Where NICs and endpoints stand."""
    holders: list[Location] = [("defaults",)]
    if isinstance(vms := tree.get("vms"), Table):
        holders += [("vms", name) for name in vms]
    for holder in holders:
        _, nics = find(tree, (*holder, "nics"))
        if isinstance(nics, Items):
            yield from ((*holder, "nics", number) for number in range(len(nics)))
    if isinstance(endpoints := tree.get("endpoints"), Table):
        yield from (("endpoints", name) for name in endpoints)
