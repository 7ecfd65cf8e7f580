"""`macvm list` and `macvm show`, and how a machine is printed: apart from what changes machines, and its imports."""

from __future__ import annotations

from collections.abc import Sequence

import click

from provisioner.actions import views
from provisioner.actions.views import MachineView, NicView
from provisioner.cli import render
from provisioner.cli.base import Command
from provisioner.cli.completion import machine_names
from provisioner.cli.run import looking
from provisioner.cli.selecting import select_options


def mode_text(nic: NicView) -> str:
    """The kernel's mode where it runs; libvirt's beside it where the two differ."""
    if nic.kernel_mode and nic.mode and nic.kernel_mode != nic.mode:
        return f"{nic.kernel_mode} (libvirt: {nic.mode})"
    return nic.kernel_mode or nic.mode or ""


def addresses_text(nic: NicView) -> str:
    """Without IPv6's link-local ones where there are others: nobody is reached by those."""
    others = [one for one in nic.addresses if not one.address.startswith("fe80:")]
    return ", ".join(f"{one.address} ({one.source})" for one in others or nic.addresses)


def nic_cells(nic: NicView) -> tuple[str, ...]:
    """mode, parent, host device, MAC, addresses"""
    return (mode_text(nic), nic.parent or nic.network or "", nic.device or "", nic.mac, addresses_text(nic))


def print_machine(machine: MachineView) -> None:
    render.print_facts(
        [
            ("name", machine.name),
            ("state", machine.state),
            ("uuid", machine.uuid or ""),
            ("image", machine.image or ""),
            ("firmware", machine.firmware or ""),
            ("lab", machine.lab or ""),
            ("labels", ", ".join(f"{key}={value}" for key, value in machine.labels.items())),
        ]
    )
    for number, nic in enumerate(machine.nics):
        mode, where, device, mac, addresses = nic_cells(nic)
        wiring = f"{mode} on {where}" if nic.parent else f"libvirt network {where}"
        wiring += f", network {nic.network}" if nic.parent and nic.network else ""
        parts = [mac, wiring, device, addresses]
        render.print_facts([(f"nic {number}", "  ".join(part for part in parts if part))])


@click.command("list", cls=Command)
@click.argument("globs", nargs=-1, metavar="[GLOB]…", shell_complete=machine_names)
@select_options
def list_(globs: Sequence[str], lab: str | None, labels: Sequence[tuple[str, str]]) -> None:
    """List VMs with their NICs and addresses, whoever made them, and endpoints after them."""
    with looking() as (context, options):
        listing = views.look(context)
        everyone = (*listing.machines, *views.endpoints(context))
        chosen = views.select(everyone, globs if not listing.problem else (), lab, labels)
        if options.output == "json":
            render.print_json(chosen)
        elif options.output == "name":
            # For `start`, `stop` and the like, which take no endpoint.
            render.print_names(machine.name for machine in chosen if machine.kind == "machine")
        else:
            _print_list(chosen)
        if listing.problem:
            raise listing.problem


def _print_list(chosen: Sequence[MachineView]) -> None:
    rows = []
    for machine in chosen:
        first = (machine.name, machine.state)
        for nic in machine.nics or (None,):
            rows.append((*first, *(nic_cells(nic) if nic else ("",) * 5)))
            # Further NICs of a machine stand below its first, the name not repeated.
            first = (" ", " ")
    render.print_table(("NAME", "STATE", "MODE", "PARENT", "DEVICE", "MAC", "ADDRESSES"), rows)


@click.command(cls=Command)
@click.argument("name", shell_complete=machine_names)
def show(name: str) -> None:
    """Show one VM."""
    with looking() as (context, options):
        machine = views.show(context, name)
        if options.output == "json":
            render.print_json(machine)
        elif options.output == "name":
            render.print_names([machine.name])
        else:
            print_machine(machine)
