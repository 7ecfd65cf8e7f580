"""What makes a lab's reality what its file wants: a pure function of the two."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from provisioner.actions.labs.change_words import address_words, changes_of, mode_words, network_words
from provisioner.actions.labs.changes import Change, MachineWork, Plan
from provisioner.actions.labs.comparing import (
    disk_differs,
    endpoint_differs,
    is_so,
    network_differs,
    power_of,
    sizes_differ,
    stays,
)
from provisioner.actions.labs.digests import AT_FIRST_BOOT, differences
from provisioner.actions.labs.host_side import Unserved
from provisioner.actions.labs.nic_plan import Ask, NicStep, Promises, compare, kept_macs, match
from provisioner.actions.labs.real import Real, RealMachine, RealNic
from provisioner.actions.labs.wanted import Wanted, WantedEndpoint, WantedMachine, WantedNic
from provisioner.actions.labs.wishes import ShimWish
from provisioner.errors import MacvmError, NotFound, Problems, Taken
from provisioner.host.labs import Thing
from provisioner.model.network import Network


def plan(wanted: Wanted, real: Real, only: Collection[str] = ()) -> Plan:
    """`only` names machines and endpoints that alone are to change, with the networks that they need.

    Raises NotFound for a name that is not in the file, Problems for names that others have.
    """
    known = {one.request.name for one in wanted.machines} | {one.request.name for one in wanted.endpoints}
    for name in only:
        if name not in known:
            raise NotFound(f"{wanted.name} has no {name}", f"there are {', '.join(sorted(known)) or 'none'}")
    return _Planning(wanted, real, frozenset(only)).all()


class _Planning:
    def __init__(self, wanted: Wanted, real: Real, only: frozenset[str]) -> None:
        self.wanted, self.real, self.only = wanted, real, only
        self.problems: list[MacvmError] = []
        nics = [nic for machine in wanted.machines for nic in machine.nics]
        self.promises = Promises.of([*nics, *(one.nic for one in wanted.endpoints)])
        #: Networks that leave and come back, with all that is on them.
        self.replaced: set[str] = set()

    def all(self) -> Plan:
        new, changed, gone, network_changes = self._networks()
        shims_up, shims_gone, shim_changes = self._shims()
        unserved = self._unserved({wish.parent for wish in shims_up})
        shim_changes += [Change("~", "shim", parent, "shim", why) for parent, why in unserved.items()]
        machines = [work for work in self._machines() if work]
        endpoints_gone, endpoints_new, endpoint_changes = self._endpoints()
        if self.problems:
            raise Problems(self.problems)
        machine_changes = [change for work in machines for change in changes_of(work)]
        return Plan(
            lab=self.wanted.name,
            changes=(*network_changes, *shim_changes, *machine_changes, *endpoint_changes),
            networks_new=tuple(new),
            networks_changed=tuple(changed),
            networks_gone=tuple(gone),
            shims_up=tuple(shims_up),
            shims_gone=tuple(shims_gone),
            unserved=tuple(unserved),
            machines=tuple(machines),
            endpoints_gone=tuple(endpoints_gone),
            endpoints_new=tuple(endpoints_new),
        )

    def _ours(self, kind: str, name: str) -> bool:
        return self.real.made.get(Thing(kind, name)) == self.wanted.name

    def _chosen(self, name: str) -> bool:
        return not self.only or name in self.only

    def _left_over(self, kind: str, wanted: Collection[str]) -> list[str]:
        """What the lab made, and its file no longer names."""
        if self.only:
            return []
        made = [thing for thing, lab in self.real.made.items() if lab == self.wanted.name and thing.kind == kind]
        return [thing.name for thing in made if thing.name not in wanted]

    # networks

    def _networks(self) -> tuple[list[Network], list[Network], list[str], list[Change]]:
        new, changed, gone, changes = list[Network](), list[Network](), list[str](), list[Change]()
        for network in self.wanted.networks:
            there = self.real.networks.get(network.name)
            if there is None and not self._needed(network.name):
                continue
            if there is None:
                new.append(network)
                changes.append(Change("+", "network", network.name, network_words(network), "there is none"))
                continue
            differ = network_differs(network, there)
            if not differ or self.only:
                continue
            if not self._ours("network", network.name):
                self.problems.append(_not_ours("network", network.name, "; ".join(differ)))
                continue
            reason = "; ".join(differ)
            if stays(network, there):
                changed.append(network)
            else:
                self._check_holders(network.name)
                self.replaced.add(network.name)
                gone.append(network.name)
                new.append(network)
                reason += ": every NIC on it is unplugged and plugged in again"
            changes.append(Change("~", "network", network.name, network_words(network), reason))
        for name in self._left_over("network", {network.name for network in self.wanted.networks}):
            if name in self.real.networks:
                gone.append(name)
                changes.append(Change("-", "network", name, "", "not in the file"))
        return new, changed, gone, changes

    def _needed(self, network: str) -> bool:
        """By one of those that alone are to change."""
        nics = [(one.request.name, nic) for one in self.wanted.machines for nic in one.nics]
        nics += [(one.request.name, one.nic) for one in self.wanted.endpoints]
        return any(self._chosen(name) and nic.asked.network == network for name, nic in nics) or not self.only

    def _check_holders(self, name: str) -> None:
        mine = {*self.real.machines, *(one.name for one in self.real.made if one.kind == "endpoint")}
        others = sorted(self.real.holders.get(name, frozenset()) - mine)
        if others:
            hint = "detach those first, or give it another name in the file"
            self.problems.append(Taken(f"the network {name} is in use by {', '.join(others)}, and is to change", hint))

    # shims

    def _shims(self) -> tuple[list[ShimWish], list[Thing], list[Change]]:
        up, gone, changes = list[ShimWish](), list[Thing](), list[Change]()
        if self.only:
            return up, gone, changes
        for wish in self.wanted.shims:
            there = self.real.shims.get(wish.parent)
            missing = [one for one in wish.to if one.address and (wish.parent, str(one.address)) not in self.real.to]
            if there and not missing:
                continue
            up.append(wish)
            said = "".join(f", to {one.address or one.block}" for one in wish.to)
            reason = "there is none" if there is None else "it is gone" if not there else "an address is not served"
            changes.append(Change("+" if there is None else "~", "shim", wish.parent, f"shim{said}", reason))
        kept = {str(one.address) for wish in self.wanted.shims for one in wish.to if one.address}
        for kind, names in (("to", kept), ("shim", {wish.parent for wish in self.wanted.shims})):
            for name in self._left_over(kind, names):
                gone.append(Thing(kind, name))
                changes.append(Change("-", "shim", name, "", "not in the file"))
        return up, gone, changes

    def _unserved(self, coming: Collection[str]) -> dict[str, str]:
        """Parents, but for those whose shim comes anyway, each with what guests of its that run and stay lack."""
        names = [one.request.name for one in self.wanted.machines] + [one.request.name for one in self.wanted.endpoints]
        lacking: dict[str, list[Unserved]] = {}
        for name in filter(self._chosen, names):
            for one in self.real.unserved.get(name, ()):
                if one.parent not in coming:
                    lacking.setdefault(one.parent, []).append(one)
        return {
            parent: f"no route to {', '.join(str(one.address) for one in some)}" if some[0].has_shim else "it is gone"
            for parent, some in lacking.items()
        }

    # machines

    def _machines(self) -> Iterator[MachineWork | None]:
        for machine in self.wanted.machines:
            name = machine.request.name
            if not self._chosen(name):
                continue
            there = self.real.machines.get(name)
            if there is None:
                if name in self.real.strangers:
                    self.problems.append(_not_ours("vm", name, "it is not of this lab"))
                yield MachineWork(name, machine, None)
            else:
                work = self._compare(machine, there)
                yield work if work != MachineWork(name, machine, there) else None
        if not self.only:
            names = {machine.request.name for machine in self.wanted.machines}
            for name, there in self.real.machines.items():
                if name not in names:
                    yield MachineWork(name, None, there)

    def _compare(self, machine: WantedMachine, there: RealMachine) -> MachineWork:
        request, marks = machine.request, there.now.marks
        assert marks is not None
        parts = differences(marks.wish, machine.wish) if machine.wish is not None else []
        parts = [part for part in parts if not is_so(part, request, there)]
        at_first = [part.replace("_", " ") for part in parts if part in AT_FIRST_BOOT]
        smaller, larger = disk_differs(request, there)
        sizes = sizes_differ(machine, there)
        later = [part for part in parts if part not in (*AT_FIRST_BOOT, "boot")]
        recreate = "; ".join([*(f"{part} is another" for part in at_first), *smaller])
        steps = match(machine.nics, there.nics, there.runs, self.promises)
        return MachineWork(
            name=request.name,
            wanted=machine,
            real=there,
            nics=() if recreate else tuple(self._with_replaced(machine, there, steps)),
            macs=tuple(kept_macs(machine.nics, there.nics, self.promises)) if recreate else (),
            recreate=recreate,
            redefine="" if recreate else "; ".join([*sizes, *(f"{part} is another" for part in later)]),
            save=not recreate and there.runs and not there.now.defined,
            resize="" if recreate else "; ".join(larger),
            labels=not recreate and sorted(request.labels) != sorted(marks.labels),
            autostart=not recreate and request.autostart is not there.now.autostart,
            power="" if recreate else power_of(request, there),
        )

    def _with_replaced(self, machine: WantedMachine, there: RealMachine, steps: list[NicStep]) -> Iterator[NicStep]:
        """NICs on a network that leaves and comes back are plugged in again, whatever else becomes of them."""
        touched = {step.before.mac for step in steps if step.before}
        for step in steps:
            on_it = step.before is not None and self._on_replaced(step.before)
            yield step._replace(ask=Ask.MOVE) if step.ask is Ask.SET and on_it else step
        for nic in there.nics:
            if nic.mac not in touched and self._on_replaced(nic):
                yield NicStep(
                    Ask.MOVE, nic, self._wish_for(machine, there, nic), f"network {nic.told and nic.told.network}"
                )

    def _wish_for(self, machine: WantedMachine, there: RealMachine, nic: RealNic) -> WantedNic | None:
        fits = (wish for wish in machine.nics if compare(wish, nic, there.runs, self.promises) == (Ask.NOTHING, ""))
        return next(fits, None)

    def _on_replaced(self, nic: RealNic) -> bool:
        return nic.told is not None and nic.told.network in self.replaced

    # endpoints

    def _endpoints(self) -> tuple[list[str], list[WantedEndpoint], list[Change]]:
        gone, new, changes = list[str](), list[WantedEndpoint](), list[Change]()
        for wish in self.wanted.endpoints:
            name = wish.request.name
            if not self._chosen(name):
                continue
            there = self.real.endpoints.get(name)
            told = address_words(wish.request.addressing)
            words = f"{mode_words(wish)} on {wish.request.network or wish.nic.parent}, {told}"
            if there is None:
                new.append(wish)
                changes.append(Change("+", "endpoint", name, words, "there is none"))
                continue
            differ = endpoint_differs(wish, there, self.promises)
            if there.endpoint.nic.network in self.replaced:
                differ.append(f"network {there.endpoint.nic.network}")
            if not differ:
                continue
            if not self._ours("endpoint", name):
                self.problems.append(_not_ours("endpoint", name, "; ".join(differ)))
            gone.append(name)
            new.append(wish)
            changes.append(Change("~", "endpoint", name, words, "; ".join(differ)))
        for name in self._left_over("endpoint", {wish.request.name for wish in self.wanted.endpoints}):
            if name in self.real.endpoints:
                gone.append(name)
                changes.append(Change("-", "endpoint", name, "", "not in the file"))
        return gone, new, changes


def _not_ours(kind: str, name: str, why: str) -> Taken:
    shown = "VM" if kind == "vm" else kind
    return Taken(f"there is a {shown} {name} already, which this lab did not make: {why}", "choose another name")
