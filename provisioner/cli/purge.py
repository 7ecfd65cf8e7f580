"""`macvm purge`."""

from __future__ import annotations

import click

from provisioner.actions import purge as purging
from provisioner.actions import purge_preview, purge_survey
from provisioner.actions.purge import Purged
from provisioner.cli import render
from provisioner.cli.base import Command
from provisioner.cli.run import changing, confirm, looking, tell
from provisioner.context import Options
from provisioner.errors import PartlyDone, Problems

_KINDS = {"machines": "VM", "endpoints": "endpoint", "links": "link", "routes": "route to", "restored": ""}


@click.command(cls=Command)
@click.option("--keep-vms", is_flag=True, help="Leave VMs, their disks and all images; virsh starts them.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def purge(keep_vms: bool, dry_run: bool) -> None:
    """Take away all that macvm made on this host: VMs with their disks, endpoints, shims, units, images, its store.

    Whatever macvm did not make stays, and is named where it is in the way. Running VMs have their power cut. Any number
    of times: what a first one could not remove the next one tries again.
    """
    if dry_run:
        with looking() as (context, _):
            context.require_local_root("looking at all of macvm's files")
            traces = purge_survey.look(context, keep_vms=keep_vms)
            for line in purge_preview.lines(context, traces):
                click.echo(line)
        return
    with changing(recover=False) as (context, options):
        purging.prepare(context)
        traces = purge_survey.look(context, keep_vms=keep_vms)
        if not traces.is_empty:
            if not options.yes:
                click.echo("This goes from this host:", err=True)
                for line in purge_preview.summary(context, traces):
                    click.echo(f"  {line}", err=True)
            confirm("Take it all away?", options)
        try:
            done = purging.purge(context, keep_vms=keep_vms)
        except KeyboardInterrupt:
            raise PartlyDone("interrupted: some of it is gone", "macvm purge goes on from there") from None
    _print(done, options)
    if done.remains:
        raise _remains(done)


def _print(done: Purged, options: Options) -> None:
    remains = [problem.message for problem in done.remains]
    gone = {kind: names for kind, names in done._asdict().items() if kind not in ("stays", "remains")}
    if options.output == "json":
        return render.print_json({**done._asdict(), "remains": remains})
    if options.output == "name":
        return render.print_names(name for names in gone.values() for name in names)
    for kind, word in _KINDS.items():
        for name in gone[kind]:
            tell(f"{'restored' if kind == 'restored' else f'removed: {word}'} {name}")
    if done.files:
        tell(f"removed: {len(done.files)} {'file' if len(done.files) == 1 else 'files'}")
    elif not any(gone.values()) and not done.remains:
        tell(f"nothing {'else ' if done.stays else ''}of macvm's is left on this host")
    for line in done.stays:
        tell(f"note: {line}")


def _remains(done: Purged) -> Problems:
    """Status 7, whatever each of them would be by itself."""
    problems = Problems(done.remains)
    problems.status = PartlyDone.status
    return problems
