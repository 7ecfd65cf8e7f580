"""The commands that change whole machines, but for `create`, and those that wait for one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from provisioner.actions import machines, power, preview
from provisioner.actions.catalogue import find_entry
from provisioner.cli import render, words
from provisioner.cli.base import Command, options_of
from provisioner.cli.completion import machine_names
from provisioner.cli.run import changing, confirm, looking, tell
from provisioner.cli.selecting import machines_chosen
from provisioner.context import load_settings
from provisioner.errors import Usage
from provisioner.host.commands import missing_tool


def _names_and_dry_run(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")(function)
    return machines_chosen(function)


def _done(names: Sequence[str], word: str) -> None:
    """The result of a command that changes machines: their names where asked for, a line each otherwise."""
    options = options_of(click.get_current_context())
    if options.output == "json":
        render.print_json([{"name": name, "result": word} for name in names])
    elif options.output == "name":
        render.print_names(names)
    else:
        for name in names:
            tell(f"{word}: {name}")


@click.command(cls=Command)
@_names_and_dry_run
def start(names: Sequence[str], dry_run: bool) -> None:
    """Start VMs; a paused one goes on."""
    if dry_run:
        return _preview(preview.start, names)
    with changing() as (context, _):
        for note in power.start(context, names):
            tell(f"note: {note}")
    return _done(names, "started")


def _preview(make: preview.Maker, names: Sequence[str]) -> None:
    with looking() as (context, _):
        click.echo("\n".join(make(context, names)))


_TIMEOUT = click.option("--timeout", type=words.SECONDS, default="60", help="How long the guest may take.  [60s]")
_FORCE = click.option("--force", is_flag=True, help="Cut the power.")


@click.command(cls=Command)
@_names_and_dry_run
@_TIMEOUT
@_FORCE
def stop(names: Sequence[str], timeout: float, force: bool, dry_run: bool) -> None:
    """Shut VMs down through ACPI, and wait until they are off."""
    if dry_run:
        return _preview(preview.cut if force else preview.stop, names)
    with changing() as (context, _):
        power.stop(context, names, timeout=timeout, force=force)
    return _done(names, "stopped")


@click.command(cls=Command)
@_names_and_dry_run
@_TIMEOUT
@_FORCE
def restart(names: Sequence[str], timeout: float, force: bool, dry_run: bool) -> None:
    """Stop VMs and start them again."""
    if dry_run:
        return _preview(preview.cut_and_start if force else preview.restart, names)
    with changing() as (context, _):
        for note in power.restart(context, names, timeout=timeout, force=force):
            tell(f"note: {note}")
    return _done(names, "restarted")


@click.command(cls=Command)
@click.argument("switch", type=click.Choice(["on", "off"]))
@_names_and_dry_run
def autostart(switch: str, names: Sequence[str], dry_run: bool) -> None:
    """Start VMs with the host, or not."""
    on = switch == "on"
    if dry_run:
        return _preview(preview.autostart_on if on else preview.autostart_off, names)
    with changing() as (context, _):
        power.autostart(context, names, on)
    return _done(names, f"autostart {switch}")


@click.command(cls=Command)
@_names_and_dry_run
def reset(names: Sequence[str], dry_run: bool) -> None:
    """Give VMs a fresh disk from their image, and lose what is on the old one.

    MACs, addresses and NICs stay, as do keys, user-data and password. A VM that runs has its power cut, and is started
    again; one that is off stays off. It asks first where there is a terminal.
    """
    from provisioner.actions import reset as resetting
    from provisioner.actions import reset_preview

    if dry_run:
        return _preview(reset_preview.reset, names)
    what = "its disk" if len(names) == 1 else "their disks"
    # Scripts need no --yes for it.
    if sys.stdin.isatty():
        confirm(f"Reset {', '.join(names)}, and lose what is on {what}?", options_of(_here()))
    with changing() as (context, options):
        done, notes = resetting.reset(context, names)
        for note in notes:
            tell(f"note: {note}")
    if options.output == "json":
        return render.print_json(done)
    return _done([machine.name for machine in done], "reset")


@click.command(cls=Command)
@_names_and_dry_run
@click.option("--keep-disks", is_flag=True, help="Leave the disks, and say where they are.")
def delete(names: Sequence[str], keep_disks: bool, dry_run: bool) -> None:
    """Delete VMs and all that create made for them; nothing else."""
    if dry_run:
        return _preview(preview.delete_keeping_disks if keep_disks else preview.delete, names)
    what = "" if keep_disks else " with its disk" if len(names) == 1 else " with their disks"
    confirm(f"Delete {', '.join(names)}{what}?", options_of(_here()))
    with changing() as (context, options):
        deleted = machines.delete(context, names, keep_disks=keep_disks)
    for machine in deleted:
        for disk in machine.kept:
            tell(f"kept: {disk}")
    if options.output == "json":
        return render.print_json(deleted)
    return _done([machine.name for machine in deleted], "deleted")


def _here() -> click.Context:
    return click.get_current_context()


@click.command(cls=Command)
@click.argument("name", shell_complete=machine_names)
def console(name: str) -> None:
    """Open a VM's serial console; Ctrl+] ends it."""
    open_console(name)


def require_terminal(name: str) -> None:
    """Raises Usage where there is none for the console."""
    if not sys.stdin.isatty():
        raise Usage(
            "the console needs a terminal, and standard input is none",
            f"ssh -t where ssh is in between; in a script: script -qec 'macvm console {name}' /dev/null",
        )


def open_console(name: str) -> None:
    """Becomes `virsh console`, which is kept well; says the image's login first."""
    with looking() as (context, _):
        machine = context.hypervisor.get(name)
        if machine.state == "off":
            raise Usage(f"{machine.name} is off, and has no console now", f"macvm start {machine.name}")
    require_terminal(machine.name)
    marks = machine.marks
    entry = find_entry(marks.image.partition(":")[0]) if marks else None
    if entry and marks and entry.login:
        password = "the one it was created with" if marks.password else entry.password
        tell(f"login: {entry.login}" + (f", password: {password}" if password else ""))
    uri = load_settings(options_of(_here()), os.environ).connect
    sys.stdout.flush()
    try:
        os.execvp("virsh", ["virsh", "--connect", uri, "console", machine.uuid])
    except FileNotFoundError as error:
        raise missing_tool("virsh") from error


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=machine_names)
@click.option(
    "--for", "what", type=click.Choice(words.WAIT_FOR), default="ping", show_default=True, help="What to wait for."
)
@click.option("--timeout", type=words.SECONDS, default="60", help="How long.  [60s]")
def wait(names: Sequence[str], what: str, timeout: float) -> None:
    """Wait until VMs have an address, answer a ping, or greet as an SSH server.

    Guests that DHCP or they themselves give their address are heard on their own NICs. Several are waited for side by
    side. When the time is up: status 9, and the VMs stay as they are.
    """
    from provisioner.actions.waiting import Waiting

    with looking(agents=True) as (context, options), contextlib.closing(Waiting(context)) as begun:
        context.require_local("waiting for a VM")
        answered = begun.until(names, what, timeout)
    if options.output == "json":
        render.print_json([{"name": name, "answered": what, "address": address} for name, address in answered.items()])
    elif options.output == "name":
        render.print_names(answered)
    else:
        for name, address in answered.items():
            tell(f"{name} is at {address}" if what == "ip" else f"{name} answers {what} at {address}")
