"""What a command would do, with the lines of `ip`, `sysctl`, `qemu-img` and `virsh` that amount to the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from provisioner.actions import attaching, images, networks, nic_changes, nics, passthrough, script, shim_preview, shims
from provisioner.actions.plan import Plan, make_plan
from provisioner.actions.request import CreateRequest, NicRequest
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import Unable
from provisioner.host import links
from provisioner.model.domain_xml.nics import find_nic_xml, nic_xml, with_source, without_alias
from provisioner.model.found import FoundMachine
from provisioner.model.masking import MASK
from provisioner.model.nic import Nic
from provisioner.model.seed import shown_files

Maker = Callable[[Context, Sequence[str]], list[str]]


def create_each(context: Context, requests: Iterable[CreateRequest]) -> Iterator[str]:
    """For each a script, and in its comments the seed's texts with secrets masked, and the domain's XML; what one of
    them makes the next finds. Raises Problems, as `create` does."""
    planned, said = list[Nic](), set[str]()
    for request in requests:
        plan = make_plan(context, request, planned)
        steps = [line for line in create_lines(context, plan) if line not in said]
        planned += plan.machine.nics
        said.update(steps)
        yield _create(plan, steps)


def _create(plan: Plan, steps: Sequence[str]) -> str:
    parts = ["# steps", *steps, *(f"# note: {note}" for note in plan.notes), "#", "# seed"]
    for name, text in sorted(shown_files(plan.told).items()):
        parts += [f"## {name}", *script.comment(text)]
    return "\n".join([*parts, "#", "# domain", *script.comment(plan.xml)])


def create_lines(context: Context, plan: Plan) -> list[str]:
    from provisioner.actions.pulling import bringing_lines

    machine, folder = plan.machine, shlex.quote(str(plan.folder))
    lines = bringing_lines(context, plan.image) if plan.image else []
    lines += [f"mkdir {folder}", f"chmod 711 {folder}", *_disk_lines(context, plan)]
    if machine.seed:
        texts = shown_files(plan.told)
        if any(MASK in text for text in texts.values()):
            lines.append(f"# {MASK} stands for what only the guest is told")
        lines += script.seed_lines(machine.seed, texts, context.hypervisor.qemu_user())
    lines.append(script.with_xml("virsh define --validate", plan.xml))
    if plan.start:
        lines += _starting_lines(context, machine.name, machine.nics, plan.routes)
    if plan.autostart:
        lines.append(f"virsh autostart {machine.name}")
    return [*lines, f"# the store keeps what {machine.name} holds: addresses, MACs, and these files"]


def _disk_lines(context: Context, plan: Plan) -> list[str]:
    disk = plan.machine.disk
    if disk is None:
        return []
    base = ["-F", "qcow2", "-b", str(images.image_path(context, plan.image))] if plan.image else []
    return _overlay_lines(disk, base, plan.disk_size)


def _overlay_lines(disk: Path, base: Sequence[str], size: int | None) -> list[str]:
    argv = ["qemu-img", "create", "-f", "qcow2", *base, str(disk), *([str(size)] if size else [])]
    return [shlex.join(argv), f"chmod 600 {shlex.quote(str(disk))}"]


def reset_disk_lines(disk: Path, base: Path, size: int | None) -> list[str]:
    return _overlay_lines(disk, ["-F", "qcow2", "-b", str(base)], size)


def _starting_lines(
    context: Context,
    name: str,
    nics: Iterable[Nic],
    routes: Sequence[GuestRoute],
    networked: Collection[str] | None = None,
) -> list[str]:
    direct = [nic for nic in nics if nic.direct]
    lines = [line for nic in direct for line in passthrough.taking_lines(nic.parent, nic.mode)]
    lines.append(f"virsh start --paused {name}")
    lines += [line for nic in direct for line in _nic_lines(nic.device, nic.mtu)]
    lines += shim_preview.routing_lines(context, routes, networked, {nic.mac: nic.mode for nic in direct})
    return [*lines, f"virsh resume {name}"]


def _nic_lines(device: str, mtu: int | None) -> list[str]:
    lines = [f"sysctl -w net.ipv6.conf.{device}.disable_ipv6=1", f"ip link set {device} allmulticast on"]
    return [*lines, f"ip link set {device} mtu {mtu}"] if mtu else lines


def attach(context: Context, name: str, wanted: NicRequest, options: attaching.AttachOptions) -> list[str]:
    machine, nic, (live, config), _, notes = attaching.plan_attach(context, name, wanted, options)
    xml = nic_xml(nic, trust=options.trust)
    lines = []
    if live:
        lines += passthrough.taking_lines(nic.parent, nic.mode) if nic.direct else []
        lines.append(script.with_xml(f"virsh attach-device {machine.name} --live", xml))
        lines += _nic_lines(nic.device, nic.mtu) if nic.direct else []
    if config:
        lines.append(script.with_xml(f"virsh attach-device {machine.name} --config", xml))
    if live:
        lines += shim_preview.routing_lines(context, shims.guest_routes(nic), modes={nic.mac: nic.mode})
    return [*lines, *_seed_note(machine, config), *(f"# note: {note}" for note in notes)]


def _seed_note(machine: FoundMachine, config: bool) -> list[str]:
    told = machine.marks is not None and config
    return [f"# the seed of {machine.name} is written anew, for its next boot"] if told else []


def detach(context: Context, name: str, wanted: str, scope: nics.Scope) -> list[str]:
    machine, nic, (live, config) = nics.plan_detach(context, name, wanted, scope)
    halves = " ".join(["--live"] * live + ["--config"] * config)
    gone = (live, config) == nics.seen(context, machine.uuid, nic.mac)
    routes = [route for route in _routes(context, machine) if gone and route.mac == nic.mac]
    lines = [f"virsh detach-interface {machine.name} {nic.kind} --mac {nic.mac} {halves}"]
    lines += shim_preview.unrouting_lines(context, routes)
    if live:
        lines.append(script.waiting_unplugged(machine.name, nic.mac))
    lines += passthrough.giving_back_lines(context, machine.uuid, nic.parent) if gone else []
    return lines + _seed_note(machine, config)


def change(context: Context, name: str, wanted: str | None, asked: nic_changes.Change) -> list[str]:
    plan = nic_changes.plan_change(context, name, wanted, asked)
    machine, found, after = plan.machine.name, plan.found, plan.after
    lines = []
    rewired = after.wiring != plan.before.wiring
    if plan.replug:
        lines += _replug_lines(context, plan)
    elif rewired and plan.live:
        lines.append(f"ip link set {found.device} type macvtap mode {links.kernel_mode(after.mode)}")
    if plan.rewired and plan.config:
        saved = find_nic_xml(context.hypervisor.definition(plan.machine.uuid), found.mac) or ""
        xml = with_source(saved, after.parent, after.mode)
        lines.append(script.with_xml(f"virsh update-device {machine} --config", xml))
    for half, there in (("--live", plan.live), ("--config", plan.config)):
        if asked.link and there:
            lines.append(f"virsh domif-setlink {machine} {found.mac} {asked.link} {half}".removesuffix(" --live"))
    old, new = _routes(context, plan.machine), shims.guest_routes(after)
    lines += shim_preview.routing_lines(context, new if plan.live else (), modes={after.mac: after.mode})
    gone = [route for route in old if route.mac == found.mac and route not in new]
    told = asked.addressing is not None or asked.network is not None
    return [*lines, *shim_preview.unrouting_lines(context, gone), *_seed_note(plan.machine, plan.config and told)]


def _replug_lines(context: Context, plan: nic_changes.Plan) -> list[str]:
    machine, found, after = plan.machine, plan.found, plan.after
    running = find_nic_xml(context.hypervisor.live_definition(machine.uuid), found.mac) or ""
    again = with_source(without_alias(running), after.parent, after.mode)
    lines = [f"virsh detach-interface {machine.name} direct --mac {found.mac} --live"]
    lines.append(script.waiting_unplugged(machine.name, found.mac))
    if after.wiring != plan.before.wiring:
        lines += passthrough.giving_back_lines(context, machine.uuid, plan.before.parent)
        lines += passthrough.taking_lines(after.parent, after.mode)
    lines.append(script.with_xml(f"virsh attach-device {machine.name} --live", again))
    return lines + (_nic_lines(found.device, after.mtu) if found.device else [])


def _machines(context: Context, names: Sequence[str]) -> list[FoundMachine]:
    return list({machine.uuid: machine for machine in map(context.hypervisor.get, names)}.values())


def _routes(context: Context, machine: FoundMachine) -> list[GuestRoute]:
    store = context.reading_store
    return shims.routes_of(store, machine.uuid) if store else []


def _heard(context: Context, machine: FoundMachine) -> list[GuestRoute]:
    """What it was only heard to have, which is forgotten when it stops."""
    store = context.reading_store
    leased = {lease.address for lease in store.leases(owner=machine.uuid)} if store else set()
    return [route for route in _routes(context, machine) if str(route.address) not in leased]


def start(context: Context, names: Sequence[str], *, stopped: bool = False) -> list[str]:
    """`stopped`: they will have been, by then."""
    lines = []
    for machine in _machines(context, names):
        if machine.state == "running" and not stopped:
            lines.append(f"# {machine.name} is running already, as virsh domstate tells")
            continue
        store = context.reading_store
        told = {mac: Nic.from_json(text) for mac, text in store.told_of(machine.uuid).items()} if store else {}
        found = [(nic, told[nic.mac]) for nic in machine.nics if nic.kind == "direct" and nic.mac in told]
        wired = [known._replace(mode=nic.mode or known.mode, parent=nic.parent) for nic, known in found]
        routes = [route for route in _routes(context, machine) if not stopped or route not in _heard(context, machine)]
        networked = {
            one for parent in {route.parent for route in routes} for one in shim_preview.on_networks(context, parent)
        }
        begun = _starting_lines(context, machine.name, wired, routes, networked)
        lines += [line for line in begun if stopped or machine.state == "off" or not line.startswith("virsh start")]
    return lines


def stop(context: Context, names: Sequence[str]) -> list[str]:
    lines, machines = [], [machine for machine in _machines(context, names) if machine.runs]
    lines += [f"virsh shutdown --mode acpi {machine.name}" for machine in machines]
    lines += [script.waiting_off(machine.name) for machine in machines]
    return lines + _forgetting_lines(context, machines)


def _forgetting_lines(context: Context, machines: Sequence[FoundMachine]) -> list[str]:
    heard = [route for machine in machines for route in _heard(context, machine)]
    return shim_preview.unrouting_lines(context, heard)


def cut(context: Context, names: Sequence[str]) -> list[str]:
    machines = [machine for machine in _machines(context, names) if machine.runs]
    return [*(f"virsh destroy {machine.name}" for machine in machines), *_forgetting_lines(context, machines)]


def restart(context: Context, names: Sequence[str], *, force: bool = False) -> list[str]:
    return [*(cut if force else stop)(context, names), *start(context, names, stopped=True)]


def cut_and_start(context: Context, names: Sequence[str]) -> list[str]:
    return restart(context, names, force=True)


def autostart_on(context: Context, names: Sequence[str]) -> list[str]:
    return [f"virsh autostart {machine.name}" for machine in _machines(context, names)]


def autostart_off(context: Context, names: Sequence[str]) -> list[str]:
    return [f"virsh autostart --disable {machine.name}" for machine in _machines(context, names)]


_UNDEFINE = "virsh undefine --managed-save --snapshots-metadata --checkpoints-metadata --nvram"


def delete(
    context: Context,
    names: Sequence[str],
    *,
    keep_disks: bool = False,
    others: Sequence[GuestRoute] = (),
    let_go: Sequence[str] = (),
) -> list[str]:
    """`others` are routes of what goes with them, `let_go` parents whose shim does."""
    lines, machines, store = [], _machines(context, names), context.reading_store
    for machine in machines:
        if machine.marks is None:
            raise Unable(f"{machine.name} was not made by macvm", f"virsh undefine {machine.name}")
        if machine.runs:
            lines.append(f"virsh destroy {machine.name}")
        lines.append(f"{_UNDEFINE} {machine.name}")
        paths = store.files_of(machine.uuid) if store else []
        lines += script.removing(path for path in paths if not (keep_disks and path.suffix == ".qcow2"))
        folder = shlex.quote(str(context.machines_dir / machine.uuid))
        lines.append(f"rmdir --ignore-fail-on-non-empty {folder}")
        lines += passthrough.giving_back_lines(context, machine.uuid)
    routes = [route for one in machines for route in _routes(context, one)]
    return lines + shim_preview.unrouting_lines(context, [*routes, *others], let_go)


def delete_keeping_disks(context: Context, names: Sequence[str]) -> list[str]:
    return delete(context, names, keep_disks=True)


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
