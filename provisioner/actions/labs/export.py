"""Machines that are there, with their networks, shims and endpoints, as the lab that would make them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import views
from provisioner.actions.labs import real
from provisioner.actions.labs.changes import Change
from provisioner.actions.labs.nic_plan import is_told
from provisioner.actions.labs.plan import plan
from provisioner.actions.labs.real import Real, RealMachine, RealNic
from provisioner.actions.labs.wanted import Wanted, WantedNic, wanted_by
from provisioner.actions.labs.wishes import Lab, ShimWish
from provisioner.actions.parents import Links
from provisioner.actions.request import CreateRequest, EndpointRequest, NicRequest
from provisioner.actions.virt_type import choose_virt_type
from provisioner.context import Context
from provisioner.errors import NotFound, Unable, Usage
from provisioner.host.labs import Thing
from provisioner.model.endpoint import Endpoint, IpvlanMode, MacvlanMode
from provisioner.model.found import TEMPLATE, Marks
from provisioner.model.machine import DirectBoot, Vnc
from provisioner.model.names import printable
from provisioner.model.network import Network
from provisioner.model.nic import Addressing, Nic, parse_address
from provisioner.model.shim import To
from provisioner.model.sizes import DEFAULT_MEMORY

#: The name of a lab of machines that are in none.
_NO_LAB = "exported"


class Exported(NamedTuple):
    """`notes` say what of the machines no file has, or this one has not."""

    lab: Lab
    notes: tuple[str, ...]


def look(context: Context, globs: Sequence[str], lab: str | None) -> Exported:
    """All of a lab, or the machines and endpoints that are meant; those that are off are not to be started.

    Raises NotFound, Usage where they are of several labs, Unable for a machine that is not macvm's.
    """
    context.require_local("exporting a lab")
    name, only = _choose(context, globs, lab)
    links = Links.read()
    there = real.look(context, name, links)
    usual = choose_virt_type(context.settings.virt_type, [])
    found = _Exporting(name, only, there, usual).lab()
    found = _told_all(found, wanted_by(context, found, links), there)
    changes = plan(wanted_by(context, found, links), there).changes
    notes = [_note(one) for one in sorted(changes, key=lambda one: (one.kind, one.machine, one.name))]
    if not name:
        hint = "this host's `lab up` finds their names taken as long as they are there"
        notes.append(f"these VMs are of no lab: {hint}")
    return Exported(found, tuple(notes))


def _note(change: Change) -> str:
    """What a plan of the file still has."""
    if change.what == "-":
        return f"{change.kind} {change.name} is not in the file: `lab up` of it would remove that"
    reason = change.reason.replace("is another", "is not in it")
    return f"{change.kind} {change.machine or change.name} is not as the file has it: {reason}"


def _choose(context: Context, globs: Sequence[str], lab: str | None) -> tuple[str, frozenset[str] | None]:
    """The lab's name, "" for none, and the names that alone are meant."""
    listing = views.look(context)
    if listing.problem:
        raise listing.problem
    endpoints = [one._replace(lab=lab) for one in views.endpoints(context)]
    chosen = views.select((*listing.machines, *endpoints), globs, lab, ())
    machines = [one for one in chosen if one.kind == "machine"]
    strange = [one.name for one in machines if not one.made_by_macvm]
    if strange and globs:
        raise Unable(f"{', '.join(strange)} was not made by macvm, and so by no lab", "name others")
    machines = [one for one in machines if one.made_by_macvm]
    if not machines and not (globs and chosen):
        said = f"the lab {printable(lab, 70)} has no VM" if lab else "there is no VM to export"
        raise NotFound(said, "`macvm list` shows all there are")
    labs = sorted({one.lab or "" for one in machines})
    if len(labs) > 1:
        of = ", ".join(one or "none" for one in labs)
        raise Usage(f"these VMs are of several labs: {of}", "--lab L, or name VMs of one")
    return (labs[0] if labs else ""), (frozenset(one.name for one in chosen) if globs else None)


def _told_all(lab: Lab, wanted: Wanted, there: Real) -> Lab:
    """With gateways and name servers where those that this host would choose are others."""
    machines, endpoints = [], []
    for machine in wanted.machines:
        nics = [nic for nic in there.machines[machine.request.name].nics if _says(nic)]
        asked = [
            wish.asked._replace(addressing=_told_as(wish, nic.told if nic.kind == "direct" else None))
            for wish, nic in zip(machine.nics, nics, strict=True)
        ]
        machines.append(machine.request._replace(nics=tuple(asked)))
    for one in wanted.endpoints:
        told = there.endpoints[one.request.name].endpoint.nic
        endpoints.append(one.request._replace(addressing=_told_as(one.nic, told)))
    return lab._replace(machines=tuple(machines), endpoints=tuple(endpoints))


def _told_as(wish: WantedNic, told: Nic | None) -> Addressing:
    asked = wish.asked.addressing
    if told is None or is_told(wish, told):
        return asked
    return asked._replace(gateways=told.addressing.gateways, dns=told.addressing.dns)


def _says(nic: RealNic) -> bool:
    """Whether a file can say what it is: on a parent, or on a network of libvirt's."""
    return nic.kind == "direct" or bool(nic.network)


class _Exporting:
    def __init__(self, name: str, only: Collection[str] | None, there: Real, usual_virt_type: str) -> None:
        self._name = name
        self._only = only
        self._real = there
        self._virt_type = usual_virt_type

    def lab(self) -> Lab:
        machines = [self._machine(one) for name, one in sorted(self._real.machines.items()) if self._is_meant(name)]
        endpoints = list(self._endpoints())
        used = {nic.network for one in machines for nic in one.nics} | {one.network for one in endpoints}
        networks = [
            network for name, network in self._real.networks.items() if name in used or self._made("network", name)
        ]
        shims = tuple(self._shims())
        return Lab(self._name or _NO_LAB, None, tuple(networks), tuple(machines), tuple(endpoints), shims)

    def _is_meant(self, name: str) -> bool:
        return self._only is None or name in self._only

    def _made(self, kind: str, name: str) -> bool:
        """Of the whole lab, what it made belongs to it though nobody uses it."""
        return self._only is None and bool(self._name) and self._real.made.get(Thing(kind, name)) == self._name

    def _machine(self, machine: RealMachine) -> CreateRequest:
        now, marks = machine.now, machine.now.marks
        assert marks is not None
        network = self._real.networks.get
        nics = [nic for nic in machine.nics if _says(nic)]
        own = [nic.told for nic in nics if nic.told and nic.kind == "direct"]
        shim = all(nic.shim or _is_without_shim(network(nic.network)) for nic in own)
        size = machine.disk_size
        return CreateRequest(
            name=now.name,
            nics=tuple(_nic(nic, network(nic.told.network) if nic.told else None) for nic in nics),
            image=marks.image,
            memory=now.memory if now.memory != max(DEFAULT_MEMORY, machine.least_memory) else None,
            vcpus=now.vcpus,
            disk_size=size if size and size > machine.least_disk else None,
            virt_type=now.virt_type if now.virt_type != self._virt_type else "",
            firmware=now.firmware if now.firmware == "uefi" else None,
            boot=_boot(machine.saved.boot) if _said(marks, "boot") else None,
            vnc=_vnc(machine.saved.vnc) if _said(marks, "vnc") else None,
            start=machine.runs,
            shim=shim,
            autostart=now.autostart,
            lab=self._name or _NO_LAB,
            labels=marks.labels,
        )

    def _endpoints(self) -> Iterator[EndpointRequest]:
        for name, one in self._real.endpoints.items():
            lab = self._real.made.get(Thing("endpoint", name), "")
            if self._is_meant(name) and (self._only is not None or lab == self._name):
                yield _endpoint(one.endpoint, self._real.networks.get(one.endpoint.nic.network))

    def _shims(self) -> Iterator[ShimWish]:
        for parent in self._real.shims:
            served = [address for at, address in sorted(self._real.to) if at == parent and self._made("to", address)]
            if self._made("shim", parent) or served:
                yield ShimWish(parent, tuple(To(parse_address(address)) for address in served))


def _said(marks: Marks, part: str) -> bool:
    """Whether its lab's file, or `create`, may have said a part of a definition; otherwise a template did."""
    return marks.wish in ("", TEMPLATE) or f"{part}=" in marks.wish


def _boot(there: tuple[str, str, str] | None) -> DirectBoot | None:
    if there is None:
        return None
    kernel, initrd, cmdline = there
    return DirectBoot(Path(kernel), Path(initrd) if initrd else None, cmdline)


def _vnc(there: tuple[str, str] | None) -> Vnc | None:
    return Vnc(there[0], int(there[1]) if there[1] else None) if there else None


def _is_without_shim(network: Network | None) -> bool:
    return network is not None and not network.shim


def _nic(nic: RealNic, network: Network | None) -> NicRequest:
    if nic.kind != "direct":
        return NicRequest(libvirt_network=nic.network)
    if nic.told is None:
        return NicRequest(mode=nic.mode, parent=nic.parent)
    told = nic.told
    asked = NicRequest(addressing=_addressing(told), mtu=_mtu(told, network), network=told.network)
    return asked if told.network else asked._replace(mode=nic.mode, parent=nic.parent)


def _addressing(told: Nic) -> Addressing:
    return Addressing(static=told.addressing.static, dhcp=told.addressing.dhcp)


def _mtu(told: Nic, network: Network | None) -> int | None:
    return None if network and told.mtu == network.mtu else told.mtu


def _endpoint(endpoint: Endpoint, network: Network | None) -> EndpointRequest:
    nic, mode = endpoint.nic, endpoint.mode
    ipvlan = mode if isinstance(mode, IpvlanMode) else None
    says_mode = isinstance(mode, MacvlanMode) and (mode is MacvlanMode.SOURCE or not nic.network)
    return EndpointRequest(
        name=endpoint.name,
        mode=mode if says_mode and isinstance(mode, MacvlanMode) else None,
        ipvlan=ipvlan,
        parent="" if nic.network else nic.parent,
        network=nic.network,
        addressing=_addressing(nic),
        mtu=_mtu(nic, network),
        sources=endpoint.sources,
        netns="" if endpoint.own else endpoint.namespace,
        shim=nic.shim or _is_without_shim(network),
    )
