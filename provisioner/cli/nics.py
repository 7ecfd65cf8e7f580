"""`macvm nic`."""

from __future__ import annotations

import click

from provisioner.actions import views
from provisioner.cli import render
from provisioner.cli.base import group
from provisioner.cli.run import looking
from provisioner.cli.views import nic_cells


@group()
def nic() -> None:
    """The NICs of any libvirt domain, made by macvm or not."""


@nic.command("list")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Of every domain; so it is without NAME.")
def list_(name: str | None, everything: bool) -> None:
    """List NICs: mode (the kernel's where it runs), parent, host device, MAC, model, link, addresses."""
    with looking() as (context, options):
        if name and not everything:
            machines: tuple[views.MachineView, ...] = (views.show(context, name),)
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
            rows = [(machine, *nic_cells(nic), nic.model or "", nic.link) for machine, nic in found]
            headings = ("MACHINE", "MODE", "PARENT", "DEVICE", "MAC", "ADDRESSES", "MODEL", "LINK")
            render.print_table(headings, rows)
