"""`macvm inventory`."""

from __future__ import annotations

from pathlib import Path

import click

from provisioner.cli import render
from provisioner.cli.base import Command
from provisioner.cli.run import looking, tell
from provisioner.errors import Usage


@click.command(cls=Command)
@click.option("--lab", metavar="L", help="Only this lab's VMs.")
@click.option("--list", "as_list", is_flag=True, help="As JSON, as Ansible asks an inventory script.")
@click.option("--host", "of_host", metavar="H", help="One VM's variables, as JSON.")
@click.option(
    "-i", "key", type=click.Path(exists=True, path_type=Path), metavar="KEY", help="The private key to log in with."
)
def inventory(lab: str | None, as_list: bool, of_host: str | None, key: Path | None) -> None:
    """Print the VMs that run as an inventory for Ansible, with groups from labs (lab_NAME) and labels (KEY_VALUE).

    \b
    macvm inventory > hosts.yaml; ansible -i hosts.yaml role_web -m ping
    ansible -i <(macvm inventory --lab classic) all -m ping
    Or as a script of two lines: #!/bin/sh, and exec macvm inventory "$@"
    """
    if as_list and of_host is not None:
        raise Usage("--list and --host exclude one another", "--list has every host's variables too")
    with looking(agents=True) as (context, options):
        context.require_local("an inventory of this host's own VMs")
        from provisioner.actions.labs import inventory as action

        found = action.look(context, lab, key and key.absolute())
        if of_host is not None:
            return render.print_json(action.host(found, of_host))
    for note in found.notes:
        tell(note)
    if as_list or options.output == "json":
        render.print_json(found.listed())
    elif options.output == "name":
        render.print_names(found.hosts)
    else:
        click.echo(found.yaml(), nl=False)
