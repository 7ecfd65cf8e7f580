"""Which VMs a command is for: those named, those of quoted globs, of a lab, with a label."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from provisioner.cli import words
from provisioner.cli.completion import machine_names
from provisioner.cli.run import looking
from provisioner.errors import NotFound, Usage

_WILD = frozenset("*?[")


def select_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--lab` and `-l`."""
    function = click.option("-l", "--label", "labels", multiple=True, type=words.LABEL, help="Those with this label.")(
        function
    )
    return click.option("--lab", metavar="L", help="Those of this lab.")(function)


def machines_chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """NAME…, which may be globs, `--lab` and `-l`: the function is given `names` alone, of machines that are there
    where they were not plain names."""

    @functools.wraps(function)
    def with_names(names: Sequence[str], lab: str | None, labels: Sequence[tuple[str, str]], **rest: Any) -> Any:
        return function(names=_choose(names, lab, labels), **rest)

    argument = click.argument("names", nargs=-1, metavar="NAME…", shell_complete=machine_names)
    return argument(select_options(with_names))


def _choose(names: Sequence[str], lab: str | None, labels: Sequence[tuple[str, str]]) -> Sequence[str]:
    if lab is None and not labels:
        if not names:
            raise Usage("no VM is named", "NAME…, a quoted glob such as 'web*', --lab L, or -l KEY=VALUE")
        if not any(set(name) & _WILD for name in names):
            return names
    from provisioner.actions import views

    with looking() as (context, _):
        listing = views.look(context)
    if listing.problem:
        raise listing.problem
    chosen = [machine.name for machine in views.select(listing.machines, names, lab, labels)]
    if not chosen:
        said = [*names, *([f"--lab {lab}"] if lab else []), *(f"-l {key}={value}" for key, value in labels)]
        raise NotFound(f"no VM is meant by {' '.join(said)}", "`macvm list` takes the same words")
    return chosen
