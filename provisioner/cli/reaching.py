"""The commands that reach a VM by its name: its address, ssh, /etc/hosts, and what its NIC sends and hears."""

from __future__ import annotations

import click

from provisioner.actions import reaching
from provisioner.cli import render, words
from provisioner.cli.base import Command
from provisioner.cli.completion import machine_names
from provisioner.cli.run import looking
from provisioner.errors import Usage


@click.command(cls=Command)
@click.argument("name", required=False, metavar="NAME", shell_complete=machine_names)
@click.option("--wait", is_flag=False, flag_value="", metavar="[=SECONDS]", help="Until an address is known.")
@click.option("--timeout", type=words.SECONDS, default="60", help="How long --wait waits.  [60s]")
def ip(name: str | None, wait: str | None, timeout: float) -> None:
    """Print the address that this host reaches a VM by, alone on its line; with -o json all there are.

    A VM may have several: one that the host's routes lead to comes before one that it cannot reach, and
    IPv6's link-local ones are never meant.
    """
    # Click gives an option whose value may be left out the word after it, whatever that is.
    if wait and name is None:
        name, wait = wait, ""
    if name is None:
        raise Usage("Missing argument 'NAME'.", "`macvm ip --help` shows how it is used")
    if wait:
        timeout = words.SECONDS.convert(wait, None, None)
    with looking(agents=True) as (context, options):
        context.require_local("telling a VM's address")
        if wait is None:
            _, reached = reaching.get_address(context, name)
        else:
            _, reached = reaching.wait_for_address(context, name, timeout)
        if options.output == "json":
            render.print_json(reached)
        else:
            click.echo(reached.address)
