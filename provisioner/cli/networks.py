"""`macvm network`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click

from provisioner.actions import networks, preview
from provisioner.actions.networks import NetworkRequest, NetworkView
from provisioner.cli import parameters, render
from provisioner.cli.base import group, options_of
from provisioner.cli.completion import network_names
from provisioner.cli.run import changing, looking, tell
from provisioner.cli.words import Words
from provisioner.model.mode import MacvtapMode
from provisioner.model.network import parse_range, parse_reserved, parse_subnet
from provisioner.model.nic import parse_address
from provisioner.model.vlan import vlan_parent

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_SUBNET = Words("subnet", parse_subnet)
_RANGE = Words("range", parse_range)
_RESERVED = Words("name=address", parse_reserved)
_GATEWAY = Words("address", lambda text: parse_address(text, "gateway"))
_SERVER = Words("address", lambda text: parse_address(text, "DNS server"))


@group()
def network() -> None:
    """LAN segments with addresses that macvm gives out."""


@network.command()
@click.argument("name")
@click.option(
    "--parent", default="", metavar="DEV[.VLAN]", help="Host link, or its VLAN; default: the default route's."
)
@click.option("--mode", type=parameters.MODE, default="bridge", help="bridge (default), vepa, private or passthrough.")
@click.option(
    "--subnet", "subnets", multiple=True, type=_SUBNET, help="IPv4 or IPv6; default: the parent's own, with --ip-range."
)
@click.option("--gateway", "gateways", multiple=True, type=_GATEWAY, help="The guests' router; one for each subnet.")
@click.option("--ip-range", "ranges", multiple=True, type=_RANGE, help="Give out only these: a block, or FIRST-LAST.")
@click.option("--aux-address", "reserved", multiple=True, type=_RESERVED, help="Keep this one free.")
@click.option("--dns", multiple=True, type=_SERVER, help="A name server for the guests.")
@click.option("--mtu", type=parameters.MTU, help="The guests' MTU, at most the parent's.")
@click.option("--no-shim", is_flag=True, help="Leave the host's side alone: the host will not reach the guests.")
@_DRY_RUN
def create(name: str, mode: MacvtapMode, no_shim: bool, dry_run: bool, **given: Any) -> None:
    """Create a network: parent, mode, and the addresses that VMs and endpoints on it get.

    A gateway and a range belong to the subnet that contains them. With --parent eth0.50 the VLAN link is made where it
    is missing, and goes with the last network on it.
    """
    request = NetworkRequest(name=name, mode=mode, shim=not no_shim, **given)
    with looking(libvirt=False) if dry_run else changing(libvirt=False) as (context, _):
        if dry_run:
            click.echo("\n".join(preview.create_network(context, request)))
            return
        made = networks.create(context, request)
    _print(made)


@network.command("list")
def list_() -> None:
    """List networks, with how many of their addresses are held."""
    with looking(libvirt=False) as (context, options):
        found = networks.list_all(context)
        if options.output == "json":
            render.print_json(found)
        elif options.output == "name":
            render.print_names(one.name for one in found)
        else:
            rows = [row for one in found for row in _rows(one)]
            render.print_table(("NAME", "PARENT", "MODE", "SUBNET", "RANGE", "GATEWAY", "USED", "FREE"), rows)


def _rows(one: NetworkView) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    first = (one.name, one.parent, one.mode)
    for subnet in one.subnets:
        counts = (str(subnet.used), _count(subnet.free))
        rows.append((*first, subnet.subnet, subnet.range or "", subnet.gateway or "", *counts))
        first = (" ", " ", " ")
    return rows


def _count(number: int) -> str:
    """An IPv6 subnet's 20 digits say nothing; that a few of a /64's 2^64 are taken does not show."""
    return str(number) if number < 1_000_000 else f"2^{round(math.log2(number))}"


@network.command()
@click.argument("name", shell_complete=network_names)
def show(name: str) -> None:
    """Show one network: subnets, size, used, free, every lease with its owner, conflicts seen on the LAN."""
    with looking(libvirt=False) as (context, _):
        _print(networks.show(context, name))


def _print(one: NetworkView) -> None:
    options = options_of(click.get_current_context())
    if options.output == "json":
        render.print_json(one)
        return
    if options.output == "name":
        render.print_names([one.name])
        return
    remedy = ": macvm network up" if vlan_parent(one.parent) else ""
    missing = f" (missing{remedy})" if one.macs_on_parent is None else ""
    render.print_facts(
        [
            ("name", one.name),
            ("parent", one.parent + missing),
            ("mode", one.mode),
            ("dns", ", ".join(one.dns)),
            ("mtu", str(one.mtu or "")),
            ("shim", "" if one.shim else "no"),
            ("reserved", ", ".join(f"{name} {address}" for name, address in one.reserved.items())),
            ("MACs on the parent", "" if one.macs_on_parent is None else str(one.macs_on_parent)),
        ]
    )
    click.echo()
    rows = [
        (
            subnet.subnet,
            subnet.range or "",
            subnet.gateway or "",
            _count(subnet.size),
            str(subnet.used),
            _count(subnet.free),
        )
        for subnet in one.subnets
    ]
    render.print_table(("SUBNET", "RANGE", "GATEWAY", "SIZE", "USED", "FREE"), rows)
    if one.leases:
        click.echo()
        render.print_table(("ADDRESS", "OWNER", "MAC", "SINCE"), one.leases)
    if one.conflicts:
        click.echo()
        render.print_table(("IN USE BY OTHERS", "MAC", "SEEN"), one.conflicts)


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=network_names)
@_DRY_RUN
def delete(names: Sequence[str], dry_run: bool) -> None:
    """Delete networks that nothing is on, with the VLAN link where macvm made it."""
    with looking(libvirt=False) if dry_run else changing(libvirt=False) as (context, options):
        if dry_run:
            click.echo("\n".join(line for name in names for line in preview.delete_network(context, name)))
            return
        gone = networks.delete(context, names)
    if options.output == "json":
        render.print_json([{"name": name} for name in gone])
    elif options.output == "name":
        render.print_names(gone)
    else:
        for name in gone:
            tell(f"deleted: {name}")


@network.command()
@_DRY_RUN
def up(dry_run: bool) -> None:
    """Make the VLAN links of networks again that are missing, as after a reboot."""
    # Each start of libvirt's daemon waits for this: nothing in here may wait for libvirt, as settling old work does.
    with looking(libvirt=False) if dry_run else changing(recover=False, libvirt=False) as (context, options):
        if dry_run:
            click.echo("\n".join(preview.networks_up(context)) or "# nothing is missing")
            return
        made = networks.up(context)
    if options.output == "json":
        render.print_json({"made": made})
    elif options.output == "name":
        render.print_names(made)
    else:
        for name in made or ["nothing was missing"]:
            tell(f"made: {name}" if made else name)
