"""`macvm lab`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli import parameters, render
from provisioner.cli.base import group
from provisioner.cli.completion import machine_names
from provisioner.cli.plugins import skip_plugins
from provisioner.cli.run import changing, confirm, looking, tell
from provisioner.errors import MacvmError, NotFound, PartlyDone, Usage
from provisioner.model.names import printable

if TYPE_CHECKING:
    from provisioner.actions.labs.changes import Change, Plan
    from provisioner.actions.labs.down import Taken
    from provisioner.actions.labs.up import Outcome
    from provisioner.actions.labs.wishes import Lab
    from provisioner.context import Context, Options

#: The lab file where none is named.
_FILE = Path("macvm.yaml")

#: The status of `plan --exit-code` where there are changes.
_CHANGES = 8

_TARGETS = click.argument("targets", nargs=-1, metavar="[FILE|NAME] [VM…]")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_JOBS = click.option("--jobs", type=click.IntRange(1, 256), default=None, help="Machines at once.")


@group()
def lab() -> None:
    """Many VMs from one file."""


def _is_file(word: str) -> bool:
    return "/" in word or word.endswith((".yaml", ".yml")) or Path(word).is_file()


def _split(context: Context, targets: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
    """The file, the lab's name where that was said, and the VMs. A lab of that name is meant before a VM."""
    if targets and _is_file(targets[0]):
        return targets[0], "", tuple(targets[1:])
    from provisioner.actions.labs import down  # which a lab file has no use for

    if targets and any(one.name == targets[0] for one in down.list_all(context)):
        return down.path_of(context, targets[0]), targets[0], tuple(targets[1:])
    return str(_FILE), "", tuple(targets)


def _read(file: str) -> Lab:
    """Raises LabMistakes, Usage."""
    skip_plugins()
    from provisioner.actions.labs.file import load

    return load(Path(file), os.environ)


def _load(context: Context, targets: Sequence[str]) -> tuple[Lab, tuple[str, ...]]:
    """The lab, and the VMs that are meant. Raises NotFound, Usage, LabMistakes."""
    file, name, chosen = _split(context, targets)
    if not file:
        raise NotFound(f"where the file of the lab {name} is, is not known", "name the file")
    if not targets and not _FILE.exists():
        raise Usage(f"there is no {_FILE} here", "name a lab file, or write one: macvm lab schema")
    found = _read(file)
    if name and found.name != name:
        raise NotFound(f"{file} is of the lab {found.name} by now, not of {name}", f"macvm lab up {file}")
    return found, chosen


@lab.command()
@_TARGETS
@click.option("--exit-code", is_flag=True, help="End with 8 when there are changes.")
def plan(targets: Sequence[str], exit_code: bool) -> None:
    """Show what `up` would do, from what there is now."""
    with looking(definitions=True) as (context, options):
        from provisioner.actions.labs import up  # while libvirt is asked

        wanted, only = _load(context, targets)
        found = up.look(context, wanted, only)
        _print_plan(found, options)
    if exit_code and found.changes:
        raise click.exceptions.Exit(_CHANGES)


def _print_plan(found: Plan, options: Options) -> None:
    if options.output == "json":
        render.print_json({"lab": found.lab, "changes": found.changes})
    elif options.output == "name":
        render.print_names(dict.fromkeys(change.machine or change.name for change in found.changes))
    else:
        click.echo("\n".join(_lines(found)))


def _lines(found: Plan) -> list[str]:
    if not found.changes:
        return [f"{found.lab}: nothing to change"]
    counts = [sum(change.what == sign for change in found.changes) for sign in "+~-"]
    head = f"{found.lab}: {counts[0]} to add, {counts[1]} to change, {counts[2]} to remove"
    return [click.style(head, bold=True), *map(_line, found.changes)]


def _line(change: Change) -> str:
    colour = {"+": "green", "~": "yellow", "-": "red"}[change.what]
    name = f"{change.machine} {change.name}".strip()
    how = {"restart": "  [--restart]", "recreate": "  [--recreate: a fresh disk]", "destroys": "  [its disk is lost]"}
    said = f"{change.words}  ({change.reason})" if change.words else f"({change.reason})"
    return f"{click.style(change.what, fg=colour)} {change.kind} {name}: {said}{how.get(change.how, '')}"


@lab.command()
@_TARGETS
@_JOBS
@click.option("--restart", is_flag=True, help="Shut guests down for what needs it.")
@click.option("--recreate", is_flag=True, help="Replace disks where that is needed; what is on them is lost.")
@parameters.wait_options
@_DRY_RUN
def up(
    targets: Sequence[str],
    jobs: int | None,
    restart: bool,
    recreate: bool,
    wait_for: str | None,
    timeout: float,
    dry_run: bool,
) -> None:
    """Make of a lab what its file says; any number of times.

    What can change while guests run, does. The rest is named, and done with --restart or --recreate.
    """
    with looking(definitions=True) if dry_run else changing(definitions=True) as (context, options):
        from provisioner.actions.labs import up as bringing  # while libvirt is asked
        from provisioner.actions.labs.changes import Leave

        wanted, only = _load(context, targets)
        leave = Leave(restart, recreate)
        if dry_run:
            from provisioner.actions.labs import preview

            click.echo("\n".join(preview.up(context, bringing.look(context, wanted, only), leave)))
            return
        from provisioner.cli.lab_progress import showing

        asked = bringing.Options(only, jobs or 0, leave)
        with showing(context, options) as watch:
            outcome = bringing.up(context, wanted, asked, watch, lambda found: _agree(found, recreate, options))
        if wait_for is not None and not outcome.stopped:
            _wait(context, wanted, only, outcome, wait_for, timeout)
        _report_up(outcome, options)


def _agree(found: Plan, recreate: bool, options: Options) -> None:
    """Asks where a disk would be lost."""
    lost = [one for one in found.changes if one.how == "destroys" or (one.how == "recreate" and recreate)]
    if not lost:
        return
    if not options.yes:
        click.echo("\n".join(_lines(found)), err=True)
    names = ", ".join(change.name for change in lost)
    confirm(f"Bring {found.lab} up, and lose what is on the disks of {names}?", options)


def _wait(context: Context, wanted: Lab, only: Sequence[str], outcome: Outcome, wait_for: str, timeout: float) -> None:
    """For the machines that are to run."""
    import contextlib
    import time

    from provisioner.actions.waiting import Waiting

    failed = {one.name for one in outcome.failed}
    waited: dict[str, list[str]] = {}
    for request in wanted.machines:
        told = [nic.addressing for nic in request.nics]
        what = wait_for or ("ping" if any(one.static or one.auto for one in told) else "ip")
        if request.start and request.name not in failed and (not only or request.name in only):
            waited.setdefault(what, []).append(request.name)
    deadline = time.monotonic() + timeout
    with contextlib.closing(Waiting(context)) as begun:
        for what, names in waited.items():
            begun.until(names, what, max(0.0, deadline - time.monotonic()))


def _report_up(outcome: Outcome, options: Options) -> None:
    if options.output == "json":
        parts = {key: getattr(outcome, key) for key in ("done", "left", "failed", "stopped")}
        render.print_json({"lab": outcome.plan.lab, "changes": outcome.plan.changes, **parts})
    elif options.output == "name":
        render.print_names(outcome.done)
    elif outcome.is_whole:
        tell(f"{outcome.plan.lab}: {'up' if outcome.plan.changes else 'nothing to change'}")
    problems = [f"{one.name}: {one.message}" for one in outcome.failed]
    problems += [f"{one.name}: {one.words} ({one.reason}) needs --{one.how}" for one in outcome.left]
    hints = [one.hint for one in outcome.failed if one.hint]
    hints += [f"macvm lab up --{how}" for how in ("restart", "recreate") if any(one.how == how for one in outcome.left)]
    # What waits for a word of the user's is no failure: the rest is as the file has it.
    fine = outcome.done or outcome.left
    _end(fine, problems, hints, outcome.stopped)


def _end(done: Sequence[object], problems: Sequence[str], hints: Sequence[str], stopped: bool) -> None:
    """Raises what the command is to end with. The last lines say which failed and why."""
    if stopped and not done:
        raise KeyboardInterrupt
    if stopped:
        raise PartlyDone("stopped; what was begun has been undone, and what was done stays", "again, and it goes on")
    if problems:
        kind = PartlyDone if done else MacvmError
        raise kind("; ".join(problems), hints[0] if hints else "")


@lab.command()
@_TARGETS
def status(targets: Sequence[str]) -> None:
    """Show each thing of a lab, as it is wanted and as it is. Of a lab whose file is gone: what there is."""
    from provisioner.actions.labs import status as looked

    with looking() as (context, options):
        file, name, only = _split(context, targets)
        if name and not (file and Path(file).exists()):
            tell(f"note: the lab's file is gone, and with it what is wanted: {file or 'none was ever named'}")
            found = looked.look(context, name, None, only)
        else:
            wanted, only = _load(context, targets)
            found = looked.look(context, wanted.name, wanted, only)
    if options.output == "json":
        return render.print_json(found)
    if options.output == "name":
        return render.print_names(one.name for one in found.things)
    rows = [
        (one.kind, one.name, one.wanted or "", one.real or "", ", ".join(one.addresses), "; ".join(one.differs))
        for one in found.things
    ]
    return render.print_table(("KIND", "NAME", "WANTED", "REAL", "ADDRESSES", "DIFFERS"), rows)


@lab.command()
@_TARGETS
@_JOBS
@click.option("--keep-disks", is_flag=True, help="Leave the disks, and say where they are.")
@_DRY_RUN
def down(targets: Sequence[str], jobs: int | None, keep_disks: bool, dry_run: bool) -> None:
    """Remove what a lab made, and nothing else. Its file is not needed where the lab is named."""
    from provisioner.actions.labs import down as taking
    from provisioner.cli.lab_progress import showing

    if dry_run:
        from provisioner.actions.labs import preview

        with looking() as (context, _):
            made, only = _find(context, targets)
            click.echo("\n".join(preview.down(context, made, only, keep_disks=keep_disks)))
        return
    with changing() as (context, options):
        made, only = _find(context, targets)
        doomed = [machine.name for machine in taking.choose(made, only)[0]]
        lost = "" if keep_disks or not doomed else f", and lose what is on the disks of {', '.join(doomed)}"
        confirm(f"Take {' '.join([made.name, *only])} down{lost}?", options)
        with showing(context, options) as watch:
            taken = taking.down(context, made.name, only, watch, jobs=jobs or 0, keep_disks=keep_disks)
    _report_taken(made.name, taken, options, "down")


def _find(context: Context, targets: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    from provisioner.actions.labs import down as taking

    file, name, only = _split(context, targets)
    if not name:
        if not Path(file).exists() and targets and not _is_file(targets[0]):
            return taking.find(context, targets[0]), only
        name = _read(file).name
        if only and targets[0] == only[0] and not any(one.name == name for one in taking.list_all(context)):
            said = f"there is no lab {printable(only[0], 70)}, nor is {name} of {file} up"
            raise NotFound(said, "`macvm lab list` shows all there are")
    return taking.find(context, name), only


def _report_taken(name: str, taken: Taken, options: Options, word: str) -> None:
    if options.output == "json":
        render.print_json({"lab": name, **taken._asdict()})
    elif options.output == "name":
        render.print_names(taken.done)
    else:
        for path in taken.kept:
            tell(f"kept: {path}")
        if not taken.failed and not taken.stopped:
            tell(f"{name}: {word}")
    problems = [f"{one.name}: {one.message}" for one in taken.failed]
    _end(taken.done, problems, [one.hint for one in taken.failed if one.hint], taken.stopped)


@lab.command(name="list")
def list_() -> None:
    """List labs: where their files are, and what there is of them."""
    from provisioner.actions.labs import down as taking

    with looking() as (context, options):
        found = taking.list_all(context)
    if options.output == "json":
        return render.print_json(found)
    if options.output == "name":
        return render.print_names(one.name for one in found)
    rows = [
        (one.name, f"{one.running}/{one.machines}", str(one.networks), str(one.endpoints), one.path) for one in found
    ]
    return render.print_table(("NAME", "RUNNING", "NETWORKS", "ENDPOINTS", "FILE"), rows)


@lab.command()
@_TARGETS
@_JOBS
@_DRY_RUN
def reset(targets: Sequence[str], jobs: int | None, dry_run: bool) -> None:
    """Give a lab's VMs a fresh disk each from their image, and lose what is on the old ones."""
    from provisioner.actions import reset_preview
    from provisioner.actions.labs import down as taking
    from provisioner.cli.lab_progress import showing

    with looking() if dry_run else changing() as (context, options):
        made, only = _find(context, targets)
        names = [machine.name for machine in taking.choose(made, only)[0]]
        if dry_run:
            click.echo("\n".join(reset_preview.reset(context, names)))
            return
        confirm(f"Reset {', '.join(names)}, and lose what is on their disks?", options)
        with showing(context, options) as watch:
            taken = taking.reset_machines(context, made.name, only, watch, jobs=jobs or 0)
    _report_taken(made.name, taken, options, "reset")


@lab.command()
@click.argument("globs", nargs=-1, metavar="[VM]…", shell_complete=machine_names)
@click.option("--lab", "of_lab", metavar="L", help="Of this lab.")
def export(globs: Sequence[str], of_lab: str | None) -> None:
    """Print a lab file of VMs that are there, with their networks, endpoints and shims.

    What guests were told at their first boot (user-data, keys, passwords) cannot be read back, and is not in it, nor
    is a template.
    """
    with looking() as (context, options):
        from provisioner.actions.labs import export as exporting
        from provisioner.actions.labs import writing

        found = exporting.look(context, globs, of_lab)
    for note in found.notes:
        tell(f"note: {note}")
    file = writing.text(found.lab)
    if options.output == "json":
        render.print_json({"lab": found.lab.name, "file": file, "notes": found.notes})
    elif options.output == "name":
        render.print_names(request.name for request in found.lab.machines)
    else:
        click.echo(file, nl=False)


@lab.command()
def schema() -> None:
    """Print the JSON schema of lab files, for editors.

    An editor with YAML's language server takes it from a file's first line: # yaml-language-server: $schema=FILE
    """
    from provisioner.actions.labs.forms import json_schema

    render.print_json(json_schema())
