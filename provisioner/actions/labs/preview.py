"""What a lab's plan amounts to, in the lines of `ip` and `virsh`, and of the commands that do one thing each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from provisioner.actions import networks, preview
from provisioner.actions.labs.changes import MachineWork, Plan
from provisioner.actions.labs.down import Made, choose
from provisioner.actions.labs.nic_plan import Ask
from provisioner.actions.labs.wanted import WantedEndpoint
from provisioner.context import Context
from provisioner.model.endpoint import IpvlanMode, MacvlanMode


def up(context: Context, found: Plan) -> list[str]:
    """Raises nothing that `up` would not."""
    lines = [
        f"# {change.what} {change.kind} {change.machine or change.name}: {change.reason}" for change in found.changes
    ]
    for name in found.endpoints_gone:
        lines.append(f"ip netns delete macvm-{name}")
    for network in found.networks_new:
        lines += networks.making_lines(network)
    for wish in found.shims_up:
        lines.append(f"macvm shim up {wish.parent}" + "".join(f" --to {one.address or one.block}" for one in wish.to))
    lines += [f"macvm shim up {parent}" for parent in found.unserved]
    for work in found.machines:
        lines += _machine(context, work)
    lines += [_endpoint(one) for one in found.endpoints_new]
    return lines or ["# nothing to change"]


def _endpoint(wish: WantedEndpoint) -> str:
    request, told = wish.request, wish.request.addressing
    words = ["--network", request.network] if request.network else ["--parent", wish.nic.parent]
    if isinstance(wish.mode, IpvlanMode):
        words += ["--ipvlan", wish.mode.value]
    elif not request.network or wish.mode is MacvlanMode.SOURCE:
        words += ["--mode", wish.mode.value]
    for address in told.static:
        words += ["--ip", str(address) if wish.nic.segment is None else str(address.ip)]
    return " ".join(["macvm endpoint create", request.name, *words])


def _machine(context: Context, work: MachineWork) -> Iterator[str]:
    name = work.name
    if work.wanted is None or work.recreate:
        yield from preview.delete(context, [name])
    if work.wanted and (work.real is None or work.recreate):
        yield f"virsh define --validate {name}.xml"
        if work.wanted.request.start:
            yield f"virsh start {name}"
    if work.redefine or work.save:
        yield f"virsh define --validate {name}.xml"
    for step in work.nics:
        if step.before and step.ask in (Ask.MOVE, Ask.DETACH):
            yield f"virsh detach-interface {name} {step.before.kind} --mac {step.before.mac}"
        if step.ask in (Ask.MOVE, Ask.ATTACH):
            yield f"virsh attach-device {name} NIC.xml"
        elif step.before and step.ask is Ask.SET:
            yield f"macvm nic set {name} {step.before.mac}"
    if work.autostart and work.wanted:
        yield f"virsh autostart {name}" + ("" if work.wanted.request.autostart else " --disable")
    if work.power:
        yield f"virsh {'start' if work.power == 'on' else 'shutdown'} {name}"


def down(context: Context, made: Made, only: Sequence[str]) -> list[str]:
    machines, endpoints = choose(made, only)
    lines = [f"ip netns delete macvm-{name}" for name in endpoints]
    lines += preview.delete(context, [machine.uuid for machine in machines])
    if only:
        return lines
    lines += [f"macvm shim down {name}" for name in made.of("shim")]
    return lines + [f"macvm network delete {name}" for name in made.of("network")]
