"""`macvm shim`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence

import click

from provisioner.actions import install as installing
from provisioner.actions import shim_preview, shimming, watching
from provisioner.actions.shimming import ShimView
from provisioner.cli import render
from provisioner.cli.base import group
from provisioner.cli.run import changing, looking, tell
from provisioner.cli.words import Words
from provisioner.context import Options
from provisioner.errors import Usage
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
@click.option("--known", is_flag=True, help="Only what there was: with no guest and no shim before, do nothing.")
@_DRY_RUN
def up(parent: str, to: Sequence[To], known: bool, dry_run: bool) -> None:
    """Make a parent's shim, and a host route to every guest behind it; any number of times.

    Without PARENT, of every parent that has guests, or whose shim was up: after a reboot one `macvm shim up` brings all
    of them back, and the VLAN links of networks. Where there is none it makes that of the default route's link, but not
    with --known, as each boot says it. --to serves what libvirt does not know, such as a container's macvlan: it is
    asked for from the shim, and served until `shim forget`.
    """
    if known and (parent or to):
        raise Usage("--known is for all that there was, and not for a parent or --to", "leave one of them out")
    with looking() if dry_run else changing() as (context, options):
        if dry_run:
            click.echo("\n".join(shim_preview.up(context, parent, to, known=known)) or "# nothing is missing")
            return
        made = [shimming.up(context, parent, to)] if parent or to else shimming.up_all(context, known=known)
        lasting = installing.outlasts_boot(context)
    _print(made, options)
    if not made:
        return
    if lasting:
        tell(f"note: {installing.BOOT_UNIT} brings this back after a reboot, with what --to told")
    else:
        tell(
            "note: a reboot takes shims away; macvm shim up brings them back, with what --to told;"
            " macvm shim install has each boot do it"
        )


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
def watch() -> None:
    """Keep shims and routes right while VMs come and go, until Ctrl+C or SIGTERM.

    On libvirt's and the kernel's own events: VMs that virsh or virt-manager start and stop, guests whose address DHCP
    gives or changes, a parent that loses its address or its shim.
    """
    stopped = threading.Event()
    with changing() as (context, _):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        watching.watch(context, stopped.is_set)


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


@shim.command()
@click.argument("parent", required=False, default="", metavar="[PARENT]")
@_DRY_RUN
def install(parent: str, dry_run: bool) -> None:
    """Make shims last: a systemd unit that runs `shim up` at each boot, and one that runs `shim watch`.

    With drop-ins that keep NetworkManager and systemd-networkd off macvm's links. Any number of times; with PARENT, its
    shim is brought up first. The units run the macvm that wrote them, with its --state-dir and --connect.
    """
    program = installing.find_program(sys.argv[0])
    with looking(libvirt=bool(parent)) if dry_run else changing(libvirt=bool(parent)) as (context, options):
        if dry_run:
            lines = installing.install_lines(context, program)
            before = shim_preview.up(context, parent, ()) if parent else []
            click.echo("\n".join([*before, *lines]))
            return
        installing.plan(context, program)
        made = shimming.up(context, parent) if parent else None
        done = installing.install(context, program)
    if made:
        tell(f"up: {made.shim} on {made.parent}")
    _list("written", done.written, options)
    for note in done.notes:
        tell(f"note: {note}")
    if not done.started:
        tell("note: systemd does not run here now: the units are enabled, and start at the next boot")


@shim.command()
@_DRY_RUN
def uninstall(dry_run: bool) -> None:
    """Remove what `shim install` wrote, and nothing else; shims stay until the next reboot, or `shim down`."""
    with looking(libvirt=False) if dry_run else changing(libvirt=False) as (context, options):
        if dry_run:
            for line in installing.uninstall_lines():
                click.echo(line)
            return
        done = installing.uninstall(context)
    _list("removed", done.removed, options)
    for path in done.kept:
        tell(f"note: {path} stays: macvm did not write it")


def _list(word: str, paths: Sequence[str], options: Options) -> None:
    if options.output == "json":
        render.print_json({word: paths})
    elif options.output == "name":
        render.print_names(paths)
    else:
        for path in paths:
            tell(f"{word}: {path}")
        if not paths:
            tell(f"nothing was {word}: there is nothing of `shim install`")


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
    for shut in one.firewall:
        tell(f"note: guests may not reach this host: {shut.reason}; {shut.rule}")
