"""`macvm endpoint`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from provisioner.actions import endpoint_views
from provisioner.actions.endpoint_views import EndpointView
from provisioner.cli import parameters, render
from provisioner.cli.base import group
from provisioner.cli.completion import endpoint_names, network_names
from provisioner.cli.run import changing, looking, tell
from provisioner.cli.words import Words
from provisioner.errors import MacvmError, Usage
from provisioner.model.endpoint import IpvlanMode, MacvlanMode
from provisioner.model.nic import parse_addressing

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_MODE = Words("mode", MacvlanMode.parse)
_HEADINGS = ("NAME", "STATE", "MODE", "PARENT", "NETWORK", "NAMESPACE", "DEVICE", "MAC", "ADDRESSES")


@group()
def endpoint() -> None:
    """Network namespaces with a macvlan or ipvlan in them: simulated containers."""


@endpoint.command()
@click.argument("name")
@click.option("--parent", default="", metavar="DEV", help="Host link to sit on; default: the default route's.")
@click.option(
    "--network", default="", metavar="NET", shell_complete=network_names, help="Parent, mode and address from it."
)
@click.option("--mode", type=_MODE, help="bridge (default), vepa, private, passthrough or source.")
@click.option(
    "--allow-source",
    "sources",
    multiple=True,
    type=parameters.MAC,
    help="In mode source: take frames from this MAC; any number of times.",
)
@click.option(
    "--ipvlan",
    type=click.Choice([mode.value for mode in IpvlanMode]),
    help="An ipvlan, which has its parent's MAC: for Wi-Fi, and switches that limit MACs.",
)
@click.option("--ip", multiple=True, metavar="ADDRESS[/LEN]|auto|none", help="Default: auto on a network, else none.")
@click.option(
    "--gateway", multiple=True, metavar="ADDRESS", help="Default route; default: the network's, or the host's."
)
@click.option("--dns", multiple=True, metavar="ADDRESS", help="A name server for exec and shell.")
@click.option("--mac", type=parameters.MAC, help="Default: macvm chooses.")
@click.option("--mtu", type=parameters.MTU, help="In bytes, at most the parent's.")
@click.option("--netns", metavar="PID|NAME", help="Into this namespace, a running container's say; delete leaves it.")
@click.option("--no-shim", is_flag=True, help="Leave the host's side alone: the host will not reach the endpoint.")
@parameters.probe_options
@click.option("--take-parent", is_flag=True, help="Let passthrough take a link that the host itself uses.")
@_DRY_RUN
def create(name: str, ipvlan: str | None, dry_run: bool, **given: Any) -> None:
    """Create an endpoint: a network namespace macvm-NAME with a macvlan, there eth0, on the LAN.

    On a network, parent, mode and addresses are the network's; on one in mode bridge, --mode source and --ipvlan may be
    said too. An ipvlan in mode l3 sends and hears no broadcast: the LAN needs a route to it by way of the host.
    """
    from provisioner.actions.request import EndpointRequest

    for option in ("netns", "network", "parent"):
        # What `--netns "$(…)"` says when the command in it failed is not "make one".
        if (
            given[option] == ""
            and click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE
        ):
            raise Usage(f"--{option} is empty", "name one, or leave the option out")
        given[option] = given[option] or ""
    ip = given.pop("ip") or (() if given["network"] else ("none",))
    addressing = parse_addressing(ip, given.pop("gateway"), given.pop("dns"), network=bool(given["network"]))
    request = EndpointRequest(
        name=name,
        ipvlan=IpvlanMode(ipvlan) if ipvlan else None,
        addressing=addressing,
        sources=tuple(dict.fromkeys(given.pop("sources"))),
        shim=not given.pop("no_shim"),
        probe=parameters.one_pace(given.pop("probe"), given.pop("no_probe")),
        **given,
    )
    with looking() if dry_run else changing() as (context, options):
        if dry_run:
            from provisioner.actions import endpoint_preview

            click.echo("\n".join(endpoint_preview.create(context, request)))
            return
        from provisioner.actions import endpoints

        made, notes = endpoints.create(context, request)
    for note in notes:
        tell(f"note: {note}")
    if options.output == "json":
        render.print_json(made)
    elif options.output == "name":
        render.print_names([made.name])
    else:
        _print_table([made])


def _print_table(found: Sequence[EndpointView]) -> None:
    render.print_table(
        _HEADINGS,
        [
            (
                one.name,
                one.state,
                one.mode if one.type == "macvlan" else f"{one.type} {one.mode}",
                one.parent,
                one.network or "",
                one.namespace,
                one.device or "",
                one.mac or "",
                ", ".join(address.address for address in one.addresses),
            )
            for one in found
        ],
    )


@endpoint.command("list")
def list_() -> None:
    """List endpoints, with where they are and what they are reached by."""
    with looking(libvirt=False) as (context, options):
        found = endpoint_views.list_all(context)
        if options.output == "json":
            render.print_json(found)
        elif options.output == "name":
            render.print_names(one.name for one in found)
        else:
            _print_table(found)


@contextmanager
def _own_status() -> Iterator[None]:
    """The command's status is passed through, so macvm's own failures get one that commands rarely use."""
    try:
        yield
    except MacvmError as error:
        if error.status not in (126, 127):  # CannotRun, as a shell has it
            error.status = 125
        raise


@endpoint.command(name="exec", context_settings={"allow_interspersed_args": False})
@click.argument("name", shell_complete=endpoint_names)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(ctx: click.Context, name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in an endpoint: with its links, its /sys, and its DNS servers in /etc/resolv.conf.

    Ends with the command's own status; 125 where macvm failed, 126 where COMMAND cannot be executed, 127 where there is
    none.
    """
    # Click takes `--` away only where no argument stands before it.
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.", ctx)
    with _own_status(), looking(libvirt=False) as (context, _):
        endpoint_views.enter(context, name, command)


@endpoint.command()
@click.argument("name", shell_complete=endpoint_names)
def shell(name: str) -> None:
    """Open a shell in an endpoint."""
    with _own_status(), looking(libvirt=False) as (context, _):
        endpoint_views.get(context, name)
        tell(f"in the endpoint {name}: `exit` ends it")
        endpoint_views.enter(context, name, [os.environ.get("SHELL") or "/bin/sh"])


@endpoint.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=endpoint_names)
@_DRY_RUN
def delete(names: Sequence[str], dry_run: bool) -> None:
    """Delete endpoints: link, namespace, addresses, and the host's routes. A namespace of --netns stays."""
    with looking(libvirt=False) if dry_run else changing(libvirt=False) as (context, options):
        if dry_run:
            from provisioner.actions import endpoint_preview

            click.echo("\n".join(endpoint_preview.delete(context, names)))
            return
        from provisioner.actions import endpoint_removal

        gone = endpoint_removal.delete(context, names)
    if options.output == "json":
        render.print_json([{"name": name, "result": "deleted"} for name in gone])
    elif options.output == "name":
        render.print_names(gone)
    else:
        for name in gone:
            tell(f"deleted: {name}")
