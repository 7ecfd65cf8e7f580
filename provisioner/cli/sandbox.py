"""`macvm sandbox`: a KVM host in namespaces, and from inside it the LAN, the other hosts and the switch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from provisioner.actions import sandbox as actions
from provisioner.cli.base import group
from provisioner.errors import MacvmError, Unable
from provisioner.host.sandbox.client import CannotRun

_ON_OFF = click.Choice(["on", "off"])
#: Options after the command's name belong to the command.
_COMMAND: dict[str, Any] = {"allow_interspersed_args": False}


@group(help="A KVM host in namespaces, to try things without touching your LAN.")
def sandbox() -> None:
    pass


def _shape(function: Callable[..., None]) -> Callable[..., None]:
    hosts = click.option(
        "--hosts",
        type=click.IntRange(1, actions.MOST_HOSTS),
        default=1,
        show_default=True,
        help="KVM hosts on the switch.",
    )
    hairpin = click.option(
        "--hairpin", type=_ON_OFF, default="off", show_default=True, help="Whether the switch sends frames back."
    )
    return hosts(hairpin(function))


_command = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)


@contextmanager
def _own_status() -> Iterator[None]:
    """The command's status is passed through, so macvm's own failures get one that commands rarely use.

    "This host cannot do it" keeps its 5, so that a script can tell "skip" from "failed".
    """
    try:
        yield
    except (CannotRun, Unable):
        raise
    except MacvmError as error:
        error.status = 125
        raise


@sandbox.command(context_settings=_COMMAND)
@_shape
@_command
@click.pass_context
def run(ctx: click.Context, hosts: int, hairpin: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on a KVM host that exists only while it runs.

    \b
    eth0 is at 192.0.2.2 and 2001:db8::2, the LAN peer at 192.0.2.1 and 2001:db8::1; libvirtd is its own.
    spare0 is a second link to the switch, which nobody uses.
    Inside, these reach the rest: macvm sandbox lan|host N -- COMMAND, macvm sandbox hairpin|dhcp on|off.
    """
    with _own_status(), actions.Sandbox(hosts, hairpin == "on") as box:
        status = box.host(1).attach(command)
    ctx.exit(status)


@sandbox.command()
@_shape
@click.pass_context
def shell(ctx: click.Context, hosts: int, hairpin: str) -> None:
    """Open a shell on a KVM host that exists until the shell ends."""
    with _own_status(), actions.Sandbox(hosts, hairpin == "on") as box:
        click.echo("A KVM host of its own: eth0 192.0.2.2, LAN peer 192.0.2.1. `exit` ends it.", err=True)
        status = box.host(1).attach([os.environ.get("SHELL") or "/bin/sh"])
    ctx.exit(status)


@sandbox.command(context_settings=_COMMAND)
@_command
@click.pass_context
def lan(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Inside: run COMMAND on the LAN peer."""
    with _own_status():
        status = actions.around().lan.attach(command)
    ctx.exit(status)


@sandbox.command(context_settings=_COMMAND)
@click.argument("number", metavar="N", type=click.IntRange(1, actions.MOST_HOSTS))
@_command
@click.pass_context
def host(ctx: click.Context, number: int, command: tuple[str, ...]) -> None:
    """Inside: run COMMAND on the Nth KVM host."""
    # Click takes `--` away only where no argument stands before it.
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.", ctx)
    with _own_status():
        status = actions.around().host(number).attach(command)
    ctx.exit(status)


@sandbox.command()
@click.argument("state", type=_ON_OFF)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def hairpin(state: str, dry_run: bool) -> None:
    """Inside: have the switch send frames back out of the port they came in by, as VEPA needs, or not."""
    nodes = actions.around()
    if dry_run:
        for line in nodes.hairpin_lines(state == "on"):
            click.echo(f"ip {line}")
        return
    nodes.hairpin(state == "on")


@sandbox.command()
@click.argument("state", type=_ON_OFF)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def dhcp(state: str, dry_run: bool) -> None:
    """Inside: start or stop the LAN peer's DHCP server."""
    nodes = actions.around()
    if dry_run:
        words = actions.dhcp_server() if state == "on" else ["pkill", "--exact", "dnsmasq"]
        click.echo(f"macvm sandbox lan -- {' '.join(words)}")
        return
    nodes.dhcp(state == "on")
