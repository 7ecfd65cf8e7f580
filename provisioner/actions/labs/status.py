"""Each thing of a lab, as it is wanted and as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from provisioner.actions import endpoint_views, views
from provisioner.actions.labs import real
from provisioner.actions.labs.changes import Change
from provisioner.actions.labs.plan import plan
from provisioner.actions.labs.real import Real, RealMachine, RealNic
from provisioner.actions.labs.wanted import Wanted, WantedMachine, WantedNic, wanted_by
from provisioner.actions.labs.wishes import Lab, ShimWish
from provisioner.actions.parents import Links
from provisioner.context import Context
from provisioner.errors import NotFound
from provisioner.host.labs import Thing
from provisioner.model.endpoint import IpvlanMode, Mode
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import printable
from provisioner.model.network import Network


class ThingStatus(NamedTuple):
    """`kind` is network, shim, vm or endpoint. `wanted` is None for what the file does not have, or where there is no
    file; `real` for what is not there. `differs` says what `up` would do, and why; nothing where all is as wanted."""

    kind: str
    name: str
    wanted: str | None
    real: str | None
    addresses: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


class LabStatus(NamedTuple):
    """`path` is "" where no file says what is wanted."""

    lab: str
    path: str
    things: tuple[ThingStatus, ...]


def look(context: Context, name: str, lab: Lab | None, only: Sequence[str] = ()) -> LabStatus:
    """Changes nothing. `lab` is None where there is no file; `only` names machines and endpoints.

    Raises Problems, NotFound.
    """
    context.require_local("looking at a lab")
    links = Links.read()
    there = real.look(context, name, links)
    wanted = wanted_by(context, lab, links) if lab else Wanted(name)
    changes = plan(wanted, there, only).changes if lab else ()
    found = tuple(_Looking(wanted, there, changes, _addresses(context)).all())
    if only:
        found = tuple(one for one in found if one.name in only and one.kind in ("vm", "endpoint"))
        for missing in set(only) - {one.name for one in found}:
            raise NotFound(f"{name} has no {printable(missing, 70)}", f"`macvm lab status {name}` shows what it has")
    return LabStatus(name, str(lab.path) if lab and lab.path else "", found)


def _addresses(context: Context) -> dict[str, tuple[str, ...]]:
    """Of machines and endpoints, which share their names."""
    found = {
        machine.name: tuple(one.address for nic in machine.nics for one in nic.addresses)
        for machine in views.look(context).machines
    }
    endpoints = {one.name: tuple(held.address for held in one.addresses) for one in endpoint_views.list_all(context)}
    return found | endpoints


class _Looking:
    def __init__(
        self, wanted: Wanted, there: Real, changes: Iterable[Change], addresses: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._wanted = wanted
        self._real = there
        self._changes = tuple(changes)
        self._addresses = addresses

    def all(self) -> Iterator[ThingStatus]:
        wanted, there = self._wanted, self._real
        networks = {one.name: _network(one) for one in wanted.networks}
        yield from self._each("network", networks, {name: _network(one) for name, one in there.networks.items()})
        shims = {one.parent: _shim(one) for one in wanted.shims}
        shims = {one.name: "up" for one in self._changes if one.kind == "shim" and one.what == "~"} | shims
        up = {one.parent: one.has_shim for some in there.unserved.values() for one in some} | dict(there.shims)
        yield from self._each("shim", shims, {parent: "up" if is_up else "gone" for parent, is_up in up.items()})
        machines = {one.request.name: _wanted_machine(one) for one in wanted.machines}
        reality = {name: _machine(one) for name, one in there.machines.items()}
        for name in {**machines, **dict(sorted(reality.items()))}:
            yield self._thing("vm", name, machines, reality)
        endpoints = {
            one.request.name: f"{_mode(one.mode)} on {one.request.network or one.nic.parent}"
            for one in wanted.endpoints
        }
        found = {
            name: f"{_mode(one.endpoint.mode)} on {one.endpoint.nic.network or one.endpoint.nic.parent}"
            if one.is_there
            else "gone"
            for name, one in there.endpoints.items()
        }
        yield from self._each("endpoint", endpoints, found)

    def _each(self, kind: str, wanted: Mapping[str, str], there: Mapping[str, str]) -> Iterator[ThingStatus]:
        """Those that are wanted, and those that the lab made and nobody wants any more."""
        lab, made = self._wanted.name, self._real.made
        left = [name for name in there if name not in wanted and made.get(Thing(kind, name)) == lab]
        for name in (*wanted, *left):
            yield self._thing(kind, name, wanted, there)

    def _thing(self, kind: str, name: str, wanted: Mapping[str, str], there: Mapping[str, str]) -> ThingStatus:
        addresses = self._addresses.get(name, ()) if kind in ("vm", "endpoint") and name in there else ()
        differs = tuple(_differs(one) for one in self._changes if _of(one) == (kind, name))
        return ThingStatus(kind, name, wanted.get(name), there.get(name), addresses, differs)


def _of(change: Change) -> tuple[str, str]:
    """The thing that a change is of."""
    return ("vm", change.machine) if change.kind == "nic" else (change.kind, change.name)


def _differs(change: Change) -> str:
    return f"nic {change.name}: {change.reason}" if change.kind == "nic" else change.reason


def _network(network: Network) -> str:
    return ", ".join([f"{network.mode.value} on {network.parent}", *(str(one.subnet) for one in network.subnets)])


def _shim(wish: ShimWish) -> str:
    return "up" + "".join(f", to {one.address or one.block}" for one in wish.to)


def _wanted_machine(machine: WantedMachine) -> str:
    state = "running" if machine.request.start else "off"
    return ", ".join([state, *map(_wanted_nic, machine.nics)])


def _wanted_nic(nic: WantedNic) -> str:
    asked = nic.asked
    return _wiring(asked.libvirt_network, nic.mode, asked.network or nic.parent)


def _machine(machine: RealMachine) -> str:
    return ", ".join([machine.now.state, *map(_nic, machine.nics)])


def _nic(nic: RealNic) -> str:
    if nic.kind != "direct":
        return _wiring(nic.network or nic.kind, None, "")
    return _wiring("", nic.mode, (nic.told.network if nic.told else "") or nic.parent)


def _wiring(libvirt_network: str, mode: MacvtapMode | None, where: str) -> str:
    if libvirt_network:
        return f"libvirt network {libvirt_network}"
    return f"{mode.value if mode else 'no mode'} on {where}"


def _mode(mode: Mode) -> str:
    return f"ipvlan {mode.value}" if isinstance(mode, IpvlanMode) else mode.value
