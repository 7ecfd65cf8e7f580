"""What a lab's plan amounts to, in the lines of `ip`, `virsh` and the like, in the order in which it is carried out."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from provisioner.actions import endpoint_plan, endpoint_preview, networks, nics, preview, script, shim_preview, vlans
from provisioner.actions.labs import machine_work
from provisioner.actions.labs.changes import Leave, MachineWork, Plan
from provisioner.actions.labs.down import Made, choose
from provisioner.actions.labs.nic_plan import Ask, NicStep
from provisioner.actions.parents import Links
from provisioner.actions.plan import make_plan
from provisioner.actions.request import CreateRequest, EndpointRequest
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import MacvmError, Problems
from provisioner.host.labs import Thing
from provisioner.model.found import Marks
from provisioner.model.nic import Nic


def up(context: Context, found: Plan, leave: Leave) -> list[str]:
    """Raises nothing that `up` would not."""
    if not found.changes:
        return ["# nothing to change"]
    context.coming = found.networks_new
    return script.once(_Up(context, found, leave).lines())


class _Up:
    """`_planned` are the NICs of what comes before, whose addresses and MACs are taken then."""

    def __init__(self, context: Context, found: Plan, leave: Leave) -> None:
        self._context, self._plan, self._leave = context, found, leave
        self._planned: list[Nic] = []

    def lines(self) -> Iterator[str]:
        found, context, leave = self._plan, self._context, self._leave
        for change in found.changes:
            yield f"# {change.what} {change.kind} {change.machine or change.name}: {change.reason}"
        yield from endpoint_preview.delete(context, found.endpoints_gone)
        for work in found.machines:
            yield from self._giving_up(work) if machine_work.gives_up(work, leave) else ()
        yield from shim_preview.unrouting_lines(context, *_told_by(context, found.shims_gone))
        for name in found.networks_gone:
            yield from preview.delete_network(context, name)
        for network in found.networks_new:
            yield from networks.making_lines(network)
        for wish in found.shims_up:
            yield from shim_preview.up(context, wish.parent, wish.to)
        for parent in found.unserved:
            yield from shim_preview.up(context, parent, ())
        for work in found.machines:
            if machine_work.becomes(work, leave):
                yield from self._becoming(work)
            if left := machine_work.is_left(work, leave):
                yield f"# {work.name} is left as it is without --{left}"
        for endpoint in found.endpoints_new:
            request = endpoint.request
            yield from self._told(f"endpoint create {request.name}", partial(self._endpoint, request))

    def _giving_up(self, work: MachineWork) -> Iterator[str]:
        if work.wanted is None or (work.recreate and self._leave.recreate):
            yield from preview.delete(self._context, [work.name])
            return
        if work.save:
            yield self._defining(work)
        if machine_work.halts(work, self._leave):
            yield from preview.stop(self._context, [work.name])
        for step in work.nics:
            if step.before and step.ask in (Ask.DETACH, Ask.MOVE):
                yield from preview.detach(self._context, work.name, step.before.mac, nics.Scope.BOTH)

    def _becoming(self, work: MachineWork) -> Iterator[str]:
        assert work.wanted is not None
        request = work.wanted.request
        if work.real is None:
            yield from self._told(f"create {work.name}", partial(self._create, request))
            return
        if work.recreate:
            yield f"# then what `macvm create {work.name} --dry-run` shows once the old one is gone"
            return
        halted = machine_work.halts(work, self._leave)
        if halted or not work.real.runs:
            yield from self._saved(work, request)
        for step in work.nics:
            if step.wanted is not None and step.ask is not Ask.DETACH:
                yield from self._told(f"nic attach {work.name}", partial(self._nic, work.name, step, request))
        if work.autostart:
            yield from (preview.autostart_on if request.autostart else preview.autostart_off)(
                self._context, [work.name]
            )
        if work.power == "on" or (halted and request.start):
            yield from preview.start(self._context, [work.name], stopped=halted)

    def _saved(self, work: MachineWork, request: CreateRequest) -> Iterator[str]:
        assert work.real is not None
        if work.resize:
            disk, size = machine_work.grown(self._context, work, request)
            yield shlex.join(["qemu-img", "resize", "-f", "qcow2", str(disk), str(size)])
        if work.redefine:
            yield self._defining(work)

    def _defining(self, work: MachineWork) -> str:
        assert work.wanted is not None
        assert work.real is not None
        now = work.real.now
        plan = machine_work.redefined(self._context, work.wanted.request, now.uuid, now.marks or Marks())
        return script.with_xml("virsh define --validate", plan.xml)

    def _create(self, request: CreateRequest) -> list[str]:
        plan = make_plan(self._context, request, self._planned)
        self._planned += plan.machine.nics
        return preview.create_lines(self._context, plan)

    def _nic(self, name: str, step: NicStep, request: CreateRequest) -> list[str]:
        if step.ask is Ask.SET:
            assert step.before is not None
            return preview.change(self._context, name, step.before.mac, machine_work.change_of(step, request))
        return preview.attach(self._context, name, *machine_work.attach_of(step, request))

    def _endpoint(self, request: EndpointRequest) -> list[str]:
        plan = endpoint_plan.plan(self._context, request, self._planned)
        self._planned.append(plan.endpoint.nic)
        return endpoint_preview.planned(self._context, plan)

    def _told(self, command: str, lines: Callable[[], list[str]]) -> list[str]:
        """What stands on something that is not there before, a VLAN's link or an address that is given up, cannot be
        planned yet."""
        try:
            return lines()
        except MacvmError as error:
            why = "; ".join(one.message for one in error.problems) if isinstance(error, Problems) else error.message
            return [f"# then what `macvm {command} --dry-run` shows once that is done; now {why}"]


def _told_by(context: Context, things: Sequence[Thing]) -> tuple[list[GuestRoute], list[str]]:
    """The routes of addresses that a lab had served, and the parents whose shims it had made."""
    told, store = {thing.name for thing in things if thing.kind == "to"}, context.reading_store
    found = store.others.all() if store else []
    routes = [
        GuestRoute(ipaddress.ip_address(one.address), one.mac, one.parent) for one in found if one.address in told
    ]
    return routes, [thing.name for thing in things if thing.kind == "shim"]


def down(context: Context, made: Made, only: Sequence[str], *, keep_disks: bool = False) -> list[str]:
    machines, endpoints = choose(made, only)
    lines, routes = endpoint_preview.removal(context, endpoints)
    told, let_go = ([], []) if only else _told_by(context, made.things)
    names = [machine.uuid for machine in machines]
    lines += preview.delete(context, names, keep_disks=keep_disks, others=[*routes, *told], let_go=let_go)
    return lines if only else lines + _networks_lines(context, made.of("network"))


def _networks_lines(context: Context, names: Sequence[str]) -> list[str]:
    """The links of VLANs that no other network is on; what is on them goes before."""
    store, there = context.reading_store, Links.read()
    networks = store.networks.all() if store else []
    stay = {network.parent for network in networks if network.name not in names}
    parents = dict.fromkeys(network.parent for network in networks if network.name in names)
    found = [there.find(parent) for parent in parents if parent not in stay]
    lines = [f"ip link del {link.name}" for link in found if link and vlans.is_ours(link)]
    return lines + [f"# the store forgets the network {name}" for name in names]
