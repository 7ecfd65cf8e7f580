"""`macvm shim`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from provisioner.actions import shim_preview, shimming
from provisioner.actions.shimming import ShimView
from provisioner.cli import render
from provisioner.cli.base import group
from provisioner.cli.run import changing, looking, tell
from provisioner.cli.words import Words
from provisioner.context import Options
from provisioner.model.nic import Address, parse_address
from provisioner.model.shim import To, parse_to

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_TO = Words("address[,mac]|block", parse_to)
_ADDRESS = Words("address", parse_address)


@group()
def shim() -> None:
    """The host's own way to the guests behind a parent."""


@shim.command()
@click.argument("parent", required=False, default="", metavar="[PARENT]")
@click.option(
    "--to", multiple=True, type=_TO, help="Serve a guest that libvirt does not know, or all in a block that answer."
)
@_DRY_RUN
def up(parent: str, to: Sequence[To], dry_run: bool) -> None:
    """Make a parent's shim, and a host route to every guest behind it; any number of times.

    Without PARENT, of every parent that has guests, or whose shim was up: after a reboot one `macvm shim up` brings all
    of them back, and the VLAN links of networks. --to serves what libvirt does not know, such as a container's macvlan:
    it is asked for from the shim, and served until `shim forget`.
    """
    with looking() if dry_run else changing() as (context, options):
        if dry_run:
            click.echo("\n".join(shim_preview.up(context, parent, to)))
            return
        made = [shimming.up(context, parent, to)] if parent or to else shimming.up_all(context)
    _print(made, options)
    tell("note: a reboot takes shims away; macvm shim up brings them back, with what --to told")


@shim.command()
@click.argument("parent", required=False, default="", metavar="[PARENT]")
def status(parent: str) -> None:
    """Show shims: whom the host reaches through each, from where that is known, and whom it does not, and why."""
    with looking() as (context, options):
        _print(shimming.status(context, parent), options)


@shim.command()
@click.argument("parent", required=False, default="", metavar="[PARENT]")
@_DRY_RUN
def down(parent: str, dry_run: bool) -> None:
    """Remove a parent's shim, with every route on it.

    The next command that starts or changes a VM on that parent makes it again.
    """
    with looking() if dry_run else changing() as (context, options):
        if dry_run:
            click.echo("\n".join(shim_preview.down(context, parent)))
            return
        gone = shimming.down(context, parent)
    _say("down", gone, options)


@shim.command()
@click.argument("address", type=_ADDRESS)
@_DRY_RUN
def forget(address: Address, dry_run: bool) -> None:
    """No longer serve an address that --to told."""
    with looking() if dry_run else changing() as (context, options):
        if dry_run:
            click.echo("\n".join(shim_preview.forget(context, address)))
            return
        shimming.forget(context, address)
    _say("forgotten", str(address), options)


def _say(word: str, what: str, options: Options) -> None:
    if options.output == "json":
        render.print_json({word: what})
    elif options.output == "name":
        render.print_names([what])
    else:
        tell(f"{word}: {what}")


def _print(found: Sequence[ShimView], options: Options) -> None:
    if options.output == "json":
        render.print_json(found)
    elif options.output == "name":
        render.print_names(one.shim for one in found if one.shim)
    elif not found:
        tell("there is no shim on this host, and nothing that wants one")
    else:
        for number, one in enumerate(found):
            if number:
                click.echo()
            _print_one(one)


def _print_one(one: ShimView) -> None:
    state = "" if one.up else ", down"
    render.print_facts([("parent", one.parent), ("shim", f"{one.shim} {one.mac}{state}" if one.shim else "none")])
    if one.guests:
        click.echo()
        rows = [
            (guest.address, guest.mac, guest.owner or "", guest.source, "yes" if guest.route else f"no: {guest.reason}")
            for guest in one.guests
        ]
        render.print_table(("ADDRESS", "MAC", "OWNER", "FROM", "ROUTE"), rows)
    if one.unreached:
        click.echo()
        render.print_table(("NOT REACHED", "MAC", "MODE", "WHY"), one.unreached)
