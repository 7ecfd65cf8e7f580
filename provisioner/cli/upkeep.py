"""Commands that keep the host tidy."""

from __future__ import annotations

import click

from provisioner.actions import recovery, unfinished
from provisioner.cli import render
from provisioner.cli.base import Command
from provisioner.cli.run import changing, looking, tell
from provisioner.errors import PartlyDone


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
def gc(dry_run: bool) -> None:
    """Finish or undo what was left unfinished by a macvm that was killed.

    What VMs and NICs hold that libvirt no longer has is given back.
    """
    if dry_run:
        with looking() as (context, _):
            for line in unfinished.unfinished_lines(context):
                click.echo(f"# would settle: {line}")
            for held in recovery.foresee_releases(context):
                click.echo(f"# would release: {held}")
        return
    with changing(recover=False) as (context, options):
        context.require_local_root("cleaning up")
        settled = [*recovery.recover(context), *recovery.release_orphans(context)]
    if options.output == "json":
        render.print_json({"settled": settled})
    elif options.output == "name":
        render.print_names(settled)
    else:
        for line in settled or ["nothing was left unfinished"]:
            tell(line)
    left = [line.removeprefix(recovery.UNSETTLED) for line in settled if line.startswith(recovery.UNSETTLED)]
    if left:
        raise PartlyDone(f"not settled: {'; '.join(left)}", "put right what it names, then: macvm gc")
