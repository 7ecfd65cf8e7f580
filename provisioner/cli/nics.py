"""`macvm nic`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from provisioner.actions.request import NicRequest
from provisioner.cli import parameters, render, words
from provisioner.cli.base import group, options_of
from provisioner.cli.completion import machine_names, nic_names
from provisioner.cli.run import changing, looking, tell
from provisioner.errors import Usage
from provisioner.model.nic import parse_addressing

if TYPE_CHECKING:
    from provisioner.actions.views import MachineView, NicView


@group()
def nic() -> None:
    """The NICs of any libvirt domain, made by macvm or not."""


@nic.command("list")
@click.argument("name", required=False, shell_complete=machine_names)
@click.option("--all", "everything", is_flag=True, help="Of every domain; so it is without NAME.")
def list_(name: str | None, everything: bool) -> None:
    """List NICs: mode (the kernel's where it runs), parent, host device, MAC, model, link, addresses."""
    with looking() as (context, options):
        from provisioner.actions import views
        from provisioner.cli.views import nic_cells

        if name and not everything:
            machines: tuple[MachineView, ...] = (views.show(context, name),)
        else:
            listing = views.look(context)
            if listing.problem:
                raise listing.problem
            machines = listing.machines
        found = [(machine.name, nic) for machine in machines for nic in machine.nics]
        if options.output == "json":
            render.print_json([{"machine": machine, **render.plain(nic)} for machine, nic in found])
        elif options.output == "name":
            render.print_names(nic.mac for _, nic in found)
        else:
            rows = [(machine, *nic_cells(nic), nic.model or "", link_text(nic)) for machine, nic in found]
            headings = ("MACHINE", "MODE", "PARENT", "DEVICE", "MAC", "ADDRESSES", "MODEL", "LINK")
            render.print_table(headings, rows)


def link_text(nic: NicView) -> str:
    """The guest's carrier as libvirt has it, and the host device's where that lacks one."""
    return f"{nic.link} (no carrier)" if nic.link == "up" and nic.carrier is False else nic.link


def _scope(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, help_text in (
        ("--persistent", "Both, as without any of these."),
        ("--current", "The running machine, or the definition of one that is off."),
        ("--config", "Only the definition."),
        ("--live", "Only the running machine."),
    ):
        function = click.option(name, "scopes", flag_value=name[2:], multiple=True, help=help_text)(function)
    return function


def _one_scope(scopes: Sequence[str]) -> Any:
    from provisioner.actions.nics import Scope

    given = set(scopes)
    if given in (set(), {"persistent"}, {"live", "config"}, {"live", "persistent"}, {"config", "persistent"}):
        return Scope.BOTH
    if len(given) > 1:
        raise Usage(f"--{' and --'.join(sorted(given))} exclude one another", "say one of them")
    return Scope(given.pop())


@nic.command()
@click.argument("name", shell_complete=machine_names)
@parameters.nic_options
@click.option("--model", default="virtio", type=click.Choice(["virtio", "e1000", "e1000e", "rtl8139"]), help="[virtio]")
@_scope
@click.option("--trust-guest-filters", is_flag=True, help="libvirt's own way to IPv6 and multicast: see the README.")
@click.option("--no-shim", is_flag=True, help="Leave the host's side alone: the host will not reach the guest there.")
@parameters.probe_options
@click.option("--take-parent", is_flag=True, help="Let passthrough take a link that the host itself uses.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def attach(name: str, scopes: Sequence[str], model: str, dry_run: bool, **given: Any) -> None:
    """Attach a NIC to a VM, running or not: to the running guest and to its definition.

    Any libvirt domain will do. The address is given to the guest at once where a guest agent answers, and through the
    seed for the next boot where macvm made the VM.
    """
    flags = {key: given.pop(key) for key in ("trust_guest_filters", "no_shim", "take_parent")}
    pace = parameters.one_pace(given.pop("probe"), given.pop("no_probe"))
    wanted = parameters.first_nic(**given) or NicRequest()
    with looking() if dry_run else changing() as (context, _):
        from provisioner.actions import attaching

        options = attaching.AttachOptions(
            scope=_one_scope(scopes),
            model=model,
            trust=flags["trust_guest_filters"],
            shim=not flags["no_shim"],
            take_parent=flags["take_parent"],
            probe=pace,
        )
        if dry_run:
            from provisioner.actions import preview

            click.echo("\n".join(preview.attach(context, name, wanted, options)))
            return
        _print_change(attaching.attach(context, name, wanted, options), "attached")


@nic.command()
@click.argument("name", shell_complete=machine_names)
@click.argument("nic", metavar="NIC", shell_complete=nic_names)
@_scope
@click.option("--timeout", type=words.SECONDS, default="10", help="How long the guest may take.  [10s]")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def detach(name: str, nic: str, scopes: Sequence[str], timeout: float, dry_run: bool) -> None:
    """Detach a NIC, named by its MAC, the MAC's last bytes, its host device, or its parent or network.

    Waits until the guest has let go; where it does not, nothing else has changed.
    """
    with looking() if dry_run else changing() as (context, _):
        from provisioner.actions import nics

        scope = _one_scope(scopes)
        if dry_run:
            from provisioner.actions import preview

            click.echo("\n".join(preview.detach(context, name, nic, scope)))
            return
        _print_change(nics.detach(context, name, nic, scope, timeout), "detached")


@nic.command("set")
@click.argument("name", shell_complete=machine_names)
@click.argument("nic", metavar="[NIC]", required=False, shell_complete=nic_names)
@click.option("--link", type=click.Choice(["up", "down"]), help="The guest's carrier.")
@click.option("--mode", type=parameters.MODE, help="bridge, vepa or private live; passthrough wants --replug.")
@click.option("--parent", metavar="DEV", help="Another host link; wants --replug while the VM runs.")
@parameters.network_option("Another network; its address with it.")
@click.option("--ip", multiple=True, metavar="ADDRESS[/LEN]|auto|dhcp|none", help="What the guest is told from now on.")
@click.option("--gateway", multiple=True, metavar="ADDRESS", help="With --ip: the guest's router.")
@click.option("--dns", multiple=True, metavar="ADDRESS", help="With --ip: a name server.")
@_scope
@parameters.probe_options
@click.option("--replug", is_flag=True, help="Unplug and plug in again where nothing less will do.")
@click.option("--take-parent", is_flag=True, help="Let passthrough take a link that the host itself uses.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def set_(name: str, nic: str | None, scopes: Sequence[str], dry_run: bool, **given: Any) -> None:
    """Change a NIC where it is; MAC and PCI slot stay.

    The kernel changes bridge, vepa and private on a running VM. What needs unplugging says what the guest will see, and
    wants --replug.
    """
    ip, gateway, dns = given.pop("ip"), given.pop("gateway"), given.pop("dns")
    if (gateway or dns) and not ip:
        raise Usage("--gateway and --dns describe --ip, and there is none", "say --ip too")
    # Whether the NIC is on a network, and `auto` has a pool, the plan finds out.
    addressing = parse_addressing(ip, gateway, dns, network=True) if ip else None
    given["probe"] = parameters.one_pace(given["probe"], given.pop("no_probe"))
    with looking() if dry_run else changing() as (context, _):
        from provisioner.actions import nic_changes

        asked = nic_changes.Change(addressing=addressing, scope=_one_scope(scopes), **given)
        if dry_run:
            from provisioner.actions import preview

            click.echo("\n".join(preview.change(context, name, nic, asked)))
            return
        _print_change(nic_changes.change(context, name, nic, asked), "changed")


def _print_change(change: Any, word: str) -> None:
    options = options_of(click.get_current_context())
    for note in change.notes:
        tell(f"note: {note}")
    where = {(True, True): "live and saved", (True, False): "live", (False, True): "saved"}
    if options.output == "json":
        render.print_json(change)
        return
    if options.output == "name":
        render.print_names([change.mac])
        return
    parts = [f"{word}: {change.mac}", f"{change.machine}, {where[change.live, change.config]}"]
    if change.nic and change.asked:
        from provisioner.cli.views import addresses_text

        parts.append(addresses_text(change.nic))
    click.echo("  ".join(part for part in parts if part))
    if change.reason and change.asked:
        tell(f"note: not applied in the guest: {change.reason}")
