"""What makes a lab's reality what its file wants: a pure function of the two."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from provisioner.actions.labs.digests import AT_FIRST_BOOT, differences
from provisioner.actions.labs.nic_plan import Ask, NicStep, Promises, compare, kept_macs, match
from provisioner.actions.labs.real import Real, RealEndpoint, RealMachine, RealNic
from provisioner.actions.labs.wanted import Wanted, WantedEndpoint, WantedMachine, WantedNic
from provisioner.actions.labs.wishes import ShimWish
from provisioner.actions.request import CreateRequest
from provisioner.errors import MacvmError, NotFound, Problems, Taken
from provisioner.host.labs import Thing
from provisioner.model.endpoint import IpvlanMode
from provisioner.model.names import Mac
from provisioner.model.network import Network
from provisioner.model.nic import Addressing
from provisioner.model.sizes import DEFAULT_MEMORY, human_size


class Change(NamedTuple):
    """`what` is `+`, `~` or `-`; `kind` network, shim, vm, nic or endpoint; `machine` that of a NIC. `how`: `live`,
    `restart` (the guest is to be shut down for it), `recreate` (with a fresh disk), `destroys`."""

    what: str
    kind: str
    name: str
    words: str
    reason: str
    how: str = "live"
    machine: str = ""


class Leave(NamedTuple):
    """What the user lets a machine go through."""

    restart: bool = False
    recreate: bool = False


class MachineWork(NamedTuple):
    """Everything that is to be done to one machine. `wanted` is None for one that goes, `real` for one that comes.

    `macs` are those that the NICs keep of one that is made anew. `recreate`, `redefine`, `resize` say why, "" for not
    at all; `power` is `on`, `off` or "" for as it is.
    """

    name: str
    wanted: WantedMachine | None
    real: RealMachine | None
    nics: tuple[NicStep, ...] = ()
    macs: tuple[Mac | None, ...] = ()
    recreate: str = ""
    redefine: str = ""
    resize: str = ""
    labels: bool = False
    autostart: bool = False
    power: str = ""

    @property
    def wants_restart(self) -> bool:
        """Whether it can be done only to a machine that is off, and this one runs."""
        halts = bool(self.redefine or self.resize or self.power == "off")
        return bool(self.real and self.real.runs and self.wanted and halts and not self.recreate)


class Plan(NamedTuple):
    """`changes` are for people to read, in the order in which they are made; the rest is how."""

    lab: str
    changes: tuple[Change, ...] = ()
    networks_new: tuple[Network, ...] = ()
    networks_changed: tuple[Network, ...] = ()
    networks_gone: tuple[str, ...] = ()
    shims_up: tuple[ShimWish, ...] = ()
    shims_gone: tuple[Thing, ...] = ()
    machines: tuple[MachineWork, ...] = ()
    endpoints_gone: tuple[str, ...] = ()
    endpoints_new: tuple[WantedEndpoint, ...] = ()

    @property
    def destroys(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.how == "destroys")


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
        machines = [work for work in self._machines() if work]
        endpoints_gone, endpoints_new, endpoint_changes = self._endpoints()
        if self.problems:
            raise Problems(self.problems)
        machine_changes = [change for work in machines for change in _changes_of(work)]
        return Plan(
            lab=self.wanted.name,
            changes=(*network_changes, *shim_changes, *machine_changes, *endpoint_changes),
            networks_new=tuple(new),
            networks_changed=tuple(changed),
            networks_gone=tuple(gone),
            shims_up=tuple(shims_up),
            shims_gone=tuple(shims_gone),
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
                changes.append(Change("+", "network", network.name, _network_words(network), "there is none"))
                continue
            differ = _network_differs(network, there)
            if not differ or self.only:
                continue
            if not self._ours("network", network.name):
                self.problems.append(_not_ours("network", network.name, "; ".join(differ)))
                continue
            reason = "; ".join(differ)
            if _stays(network, there):
                changed.append(network)
            else:
                self._check_holders(network.name)
                self.replaced.add(network.name)
                gone.append(network.name)
                new.append(network)
                reason += ": every NIC on it is unplugged and plugged in again"
            changes.append(Change("~", "network", network.name, _network_words(network), reason))
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
        parts = [part for part in parts if not _is_so(part, request, there)]
        at_first = [part.replace("_", " ") for part in parts if part in AT_FIRST_BOOT]
        smaller, larger = _disk_differs(request, there)
        sizes = _sizes_differ(machine, there)
        later = [part for part in parts if part not in AT_FIRST_BOOT]
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
            resize="" if recreate else "; ".join(larger),
            labels=not recreate and sorted(request.labels) != sorted(marks.labels),
            autostart=not recreate and request.autostart is not there.now.autostart,
            power="" if recreate else _power(request, there),
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
            told = _address_words(wish.request.addressing)
            words = f"{_mode_words(wish)} on {wish.request.network or wish.nic.parent}, {told}"
            if there is None:
                new.append(wish)
                changes.append(Change("+", "endpoint", name, words, "there is none"))
                continue
            differ = _endpoint_differs(wish, there, self.promises)
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


def _network_words(network: Network) -> str:
    subnets = ", ".join(str(one.subnet) for one in network.subnets)
    return f"{network.mode.value} on {network.parent}" + (f", {subnets}" if subnets else "")


def _network_differs(wanted: Network, there: Network) -> list[str]:
    found = []
    if wanted.parent != there.parent:
        found.append(f"parent {there.parent} → {wanted.parent}")
    if wanted.mode is not there.mode:
        found.append(f"mode {there.mode.value} → {wanted.mode.value}")
    # Where the file names no subnet, the parent's own were taken.
    if wanted.subnets and set(wanted.subnets) != set(there.subnets):
        found.append("other subnets, gateways or ranges")
    if dict(wanted.reserved) != dict(there.reserved):
        found.append("other reserved addresses")
    if wanted.dns != there.dns:
        found.append("other name servers")
    if wanted.mtu != there.mtu:
        found.append(f"MTU {there.mtu or 'of the parent'} → {wanted.mtu or 'of the parent'}")
    if wanted.shim is not there.shim:
        found.append("with a shim" if wanted.shim else "without a shim")
    return found


def _stays(wanted: Network, there: Network) -> bool:
    """Whether what is on a network can stay on it as it changes."""
    same_subnets = {one.subnet for one in wanted.subnets} == {one.subnet for one in there.subnets}
    return wanted.parent == there.parent and (same_subnets or not wanted.subnets)


def _disk_differs(request: CreateRequest, there: RealMachine) -> tuple[list[str], list[str]]:
    """Why the disk is to be smaller, which only a fresh one is, and why larger."""
    wanted = max(request.disk_size or 0, there.least_disk)
    if not wanted or not there.disk_size or wanted == there.disk_size:
        return [], []
    said = [f"disk {human_size(there.disk_size)} → {human_size(wanted)}"]
    return (said, []) if wanted < there.disk_size else ([], said)


def _is_so(part: str, request: CreateRequest, there: RealMachine) -> bool:
    """Whether a machine has what its file says by now, though it was not made from that word."""
    marks = there.now.marks
    if part == "image":
        return marks is not None and request.image == marks.image and not request.checksum
    return part == "firmware" and request.firmware == there.now.firmware


def _sizes_differ(machine: WantedMachine, there: RealMachine) -> list[str]:
    request, found = machine.request, list[str]()
    memory = request.memory or max(DEFAULT_MEMORY, there.least_memory)
    for one in (there.now, there.saved):
        if one.memory // 1024 != memory // 1024:
            found.append(f"memory {human_size(one.memory)} → {human_size(memory)}")
        if one.vcpus != request.vcpus:
            found.append(f"vcpus {one.vcpus} → {request.vcpus}")
        if one.virt_type != machine.virt_type:
            found.append(f"virt_type {one.virt_type} → {machine.virt_type}")
    return list(dict.fromkeys(found))


def _power(request: CreateRequest, there: RealMachine) -> str:
    if request.start and there.now.state in ("off", "crashed", "paused"):
        return "on"
    return "off" if not request.start and there.runs else ""


def _mode_words(wish: WantedEndpoint) -> str:
    return f"ipvlan {wish.mode.value}" if isinstance(wish.mode, IpvlanMode) else wish.mode.value


def _endpoint_differs(wish: WantedEndpoint, there: RealEndpoint, promises: Promises) -> list[str]:
    endpoint, nic, request = there.endpoint, there.endpoint.nic, wish.request
    found = [] if there.is_there else ["its namespace or its link is gone"]
    if endpoint.mode is not wish.mode:
        found.append(f"mode {endpoint.mode.value} → {wish.mode.value}")
    # Of a NIC that is like it, whose MAC is what the store knows it by.
    like = RealNic(nic.mac, "direct", nic.parent, "", wish.nic.mode, wish.nic.mode, "up", True, True, nic)
    free = promises._replace(macs=frozenset())
    compared = compare(wish.nic, like, True, free)
    if compared is None:
        found.append(f"MAC {nic.mac} → {wish.nic.mac}")
    elif compared[0]:
        found.append(compared[1])
    if endpoint.sources != request.sources:
        found.append("other sources")
    if endpoint.own is bool(request.netns):
        found.append("another namespace")
    return found


def _changes_of(work: MachineWork) -> Iterator[Change]:
    name, real, wanted = work.name, work.real, work.wanted
    if wanted is None:
        yield Change("-", "vm", name, "", "not in the file", "destroys")
        return
    if real is None:
        yield Change("+", "vm", name, _machine_words(wanted), "there is none")
        return
    if work.recreate:
        yield Change("~", "vm", name, _machine_words(wanted), work.recreate, "recreate")
        return
    halted = "restart" if real.runs else "live"
    for words, reason in (("definition", work.redefine), ("disk", work.resize)):
        if reason:
            yield Change("~", "vm", name, words, reason, halted)
    if work.labels:
        yield Change("~", "vm", name, "labels", "the file has others")
    if work.autostart:
        yield Change(
            "~",
            "vm",
            name,
            "autostart",
            f"autostart {_on(not wanted.request.autostart)} → {_on(wanted.request.autostart)}",
        )
    for step in work.nics:
        yield _nic_change(name, step)
    if work.power == "on":
        yield Change("~", "vm", name, "start", f"it is {real.now.state}")
    if work.power == "off":
        yield Change("~", "vm", name, "stop", f"it is {real.now.state}, and is not to be started", "restart")


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _machine_words(machine: WantedMachine) -> str:
    request = machine.request
    nics = ", ".join(_nic_words(nic) for nic in machine.nics)
    return f"{request.image or 'the default image'}, {nics or 'no NIC'}"


def _nic_words(nic: WantedNic) -> str:
    if nic.asked.libvirt_network:
        return f"libvirt network {nic.asked.libvirt_network}"
    where = nic.asked.network or nic.parent
    return f"{nic.mode.value} on {where} ({_address_words(nic.asked.addressing)})"


def _address_words(asked: Addressing) -> str:
    """As the file has it: the length of an address comes from the network."""
    return ", ".join(map(str, asked.addresses)) or str(asked)


def _nic_change(machine: str, step: NicStep) -> Change:
    name = step.before.mac if step.before else (step.wanted.mac or "new") if step.wanted else ""
    sign = {Ask.ATTACH: "+", Ask.DETACH: "-"}.get(step.ask, "~")
    words = _nic_words(step.wanted) if step.wanted else _was(step.before) if step.before else ""
    return Change(sign, "nic", name, words, step.reason, "live", machine)


def _was(nic: RealNic) -> str:
    mode = nic.mode.value if nic.mode else nic.kind
    return f"{mode} on {nic.parent or nic.network}"
