"""What a command would do, with the lines of `ip`, `sysctl`, `qemu-img` and `virsh` that amount to the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from provisioner.actions import attaching, images, networks, nic_changes, nics, passthrough, shim_preview, shims
from provisioner.actions.plan import Plan, make_plan
from provisioner.actions.request import CreateRequest, NicRequest
from provisioner.context import Context
from provisioner.errors import Unable
from provisioner.host import links
from provisioner.model.domain_xml.nics import nic_xml
from provisioner.model.found import FoundMachine
from provisioner.model.seed import shown_files

Maker = Callable[[Context, Sequence[str]], list[str]]


def create(context: Context, request: CreateRequest) -> str:
    """The steps, the seed's texts with secrets masked, and the domain's XML. Raises Problems, as `create` does."""
    plan = make_plan(context, request)
    parts = ["# steps", *_create_steps(context, plan), *(f"# note: {note}" for note in plan.notes), "", "# seed"]
    for name, text in sorted(shown_files(plan.told).items()):
        parts += [f"## {name}", *text.splitlines()]
    return "\n".join([*parts, "", "# domain", plan.xml])


def _create_steps(context: Context, plan: Plan) -> list[str]:
    from provisioner.actions.pulling import bringing_lines

    machine = plan.machine
    lines = bringing_lines(context, plan.image) if plan.image else []
    if plan.image and machine.disk:
        base = str(images.image_path(context, plan.image))
        size = [str(plan.disk_size)] if plan.disk_size else []
        argv = ["qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", base, str(machine.disk), *size]
        lines.append(shlex.join(argv))
    elif machine.disk:
        lines.append(shlex.join(["qemu-img", "create", "-f", "qcow2", str(machine.disk), str(plan.disk_size)]))
    lines.append(f"xorrisofs -o {machine.seed} -V cidata -J -R SEED-FOLDER")
    lines.append("virsh define --validate DOMAIN.xml")
    if plan.start:
        for nic in machine.nics:
            lines += passthrough.making_lines(nic.parent, nic.mode) if nic.direct else []
        lines.append(f"virsh start --paused {machine.name}")
        for nic in machine.nics:
            if nic.direct:
                lines += _nic_lines(nic.device, nic.mtu)
        for route in plan.routes:
            lines += [line for line in shim_preview.shim_lines(route) if line not in lines]
        lines.append(f"virsh resume {machine.name}")
    if plan.autostart:
        lines.append(f"virsh autostart {machine.name}")
    return lines


def _nic_lines(device: str, mtu: int | None) -> list[str]:
    lines = [f"sysctl -w net.ipv6.conf.{device}.disable_ipv6=1", f"ip link set {device} allmulticast on"]
    return [*lines, f"ip link set {device} mtu {mtu}"] if mtu else lines


def attach(context: Context, name: str, wanted: NicRequest, options: attaching.AttachOptions) -> list[str]:
    machine, nic, (live, config), _, notes = attaching.plan_attach(context, name, wanted, options)
    lines = [f"# NIC.xml: {nic_xml(nic, trust=options.trust)}"]
    if live:
        lines.append(f"virsh attach-device {machine.name} NIC.xml --live")
        lines += _nic_lines(nic.device, nic.mtu) if nic.direct else []
    if config:
        lines.append(f"virsh attach-device {machine.name} NIC.xml --config")
    for route in shims.guest_routes(nic) if live else ():
        lines += [line for line in shim_preview.shim_lines(route) if line not in lines]
    return [*lines, *(f"# note: {note}" for note in notes)]


def detach(context: Context, name: str, wanted: str, scope: nics.Scope) -> list[str]:
    machine, nic, (live, config) = nics.plan_detach(context, name, wanted, scope)
    halves = " ".join(["--live"] * live + ["--config"] * config)
    gone = (live, config) == nics.seen(context, machine.uuid, nic.mac)
    routes = [route for route in _routes(context, machine) if gone and route.mac == nic.mac]
    line = f"virsh detach-interface {machine.name} {nic.kind} --mac {nic.mac} {halves}"
    return [line, *shim_preview.unrouting_lines(context, routes)]


def change(context: Context, name: str, wanted: str | None, asked: nic_changes.Change) -> list[str]:
    plan = nic_changes.plan_change(context, name, wanted, asked)
    machine, found, after = plan.machine.name, plan.found, plan.after
    lines = []
    rewired = after.wiring != plan.before.wiring
    if plan.replug:
        lines.append(f"virsh detach-interface {machine} direct --mac {found.mac} --live")
        lines.append(f"virsh attach-device {machine} NIC.xml --live  # the same, {after.wiring}")
    elif rewired and plan.live:
        lines.append(f"ip link set {found.device} type macvtap mode {links.kernel_mode(after.mode)}")
    if rewired and plan.config:
        lines.append(f"virsh update-device {machine} NIC.xml --config  # the same, {after.wiring}")
    for half, there in (("--live", plan.live), ("--config", plan.config)):
        if asked.link and there:
            lines.append(f"virsh domif-setlink {machine} {found.mac} {asked.link} {half}".removesuffix(" --live"))
    old, new = _routes(context, plan.machine), shims.guest_routes(after)
    for route in new if plan.live else ():
        lines += [line for line in shim_preview.shim_lines(route) if line not in lines] if route not in old else []
    gone = [route for route in old if route.mac == found.mac and route not in new]
    return lines + shim_preview.unrouting_lines(context, gone)


def _machines(context: Context, names: Sequence[str]) -> list[FoundMachine]:
    return [context.hypervisor.get(name) for name in names]


def _routes(context: Context, machine: FoundMachine) -> list[shims.GuestRoute]:
    store = context.reading_store
    return shims.routes_of(store, machine.uuid) if store else []


def start(context: Context, names: Sequence[str]) -> list[str]:
    lines = []
    for machine in _machines(context, names):
        lines.append(f"virsh start --paused {machine.name}")
        for nic in machine.nics:
            if nic.kind == "direct" and nic.device:
                lines += _nic_lines(nic.device, None)
        for route in _routes(context, machine):
            networked = str(route.address) in shim_preview.on_networks(context, route.parent)
            lines += shim_preview.shim_lines(route, on_network=networked)
        lines.append(f"virsh resume {machine.name}")
    return lines


def stop(context: Context, names: Sequence[str]) -> list[str]:
    return [f"virsh shutdown --mode acpi {machine.name}" for machine in _machines(context, names)]


def cut(context: Context, names: Sequence[str]) -> list[str]:
    return [f"virsh destroy {machine.name}" for machine in _machines(context, names)]


def restart(context: Context, names: Sequence[str]) -> list[str]:
    return stop(context, names) + start(context, names)


def autostart_on(context: Context, names: Sequence[str]) -> list[str]:
    return [f"virsh autostart {machine.name}" for machine in _machines(context, names)]


def autostart_off(context: Context, names: Sequence[str]) -> list[str]:
    return [f"virsh autostart --disable {machine.name}" for machine in _machines(context, names)]


def delete(context: Context, names: Sequence[str]) -> list[str]:
    lines, machines = [], _machines(context, names)
    for machine in machines:
        if machine.marks is None:
            raise Unable(f"{machine.name} was not made by macvm", f"virsh undefine {machine.name}")
        lines += [f"virsh destroy {machine.name}", f"virsh undefine --nvram {machine.name}"]
        store = context.reading_store
        lines += [f"rm {shlex.quote(str(path))}" for path in store.files_of(machine.uuid)] if store else []
    return lines + shim_preview.unrouting_lines(context, [route for one in machines for route in _routes(context, one)])


def create_network(context: Context, request: networks.NetworkRequest) -> list[str]:
    network = networks.plan(context, request)
    pools = [f"# {one.subnet}: gives out {one.given_out}" for one in network.subnets]
    return [*networks.making_lines(network), *pools]


def delete_network(context: Context, name: str) -> list[str]:
    return networks.removing_lines(context, networks.check_delete(context, name)) or [
        f"# only {name} itself is removed"
    ]


def networks_up(context: Context) -> list[str]:
    return networks.up_lines(context)


def delete_image(context: Context, wanted: str) -> list[str]:
    _, gone = images.find_deletable(context, context.reading_store, wanted)
    return [f"rm {shlex.quote(str(path))}" for path in gone]
