"""Runs one command's action in a context: opened before, closed after, progress to standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from provisioner.actions import unfinished
from provisioner.cli.base import options_of
from provisioner.context import Context, Options, open_context
from provisioner.errors import Usage
from provisioner.host import log

#: A test puts a function here that changes each context before it is used.
context_hook: Callable[[Context], None] | None = None


def tell(text: str) -> None:
    """Progress and notes: standard error, unless `--quiet`."""
    if not options_of(click.get_current_context()).quiet:
        click.echo(text, err=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _open(options: Options, *, readonly: bool, libvirt: bool, definitions: bool) -> Context:
    if options.verbose and not options.quiet:
        log.listen(options.verbose, lambda text: click.echo(text, err=True))
    context = open_context(options, readonly=readonly, say=tell)
    if context_hook:
        context_hook(context)
    # What a command imports below this, it imports while libvirt answers.
    if context.is_local and definitions and not options.verbose:  # which wants to hear of calls as they are made
        context.look_ahead()
    elif context.is_local and libvirt:
        context.hypervisor.open_ahead()
    return context


@contextlib.contextmanager
def looking(
    *, libvirt: bool = True, agents: bool = False, definitions: bool = False
) -> Iterator[tuple[Context, Options]]:
    """For commands that change nothing: what is unfinished is said, and left as it is. `libvirt` False for those that
    have nothing to ask it; `agents` for those that ask guest agents, which libvirt lets nobody do who may only look;
    `definitions` for those that have nothing to do where all machines are defined as they should be."""
    options = options_of(click.get_current_context())
    context = _open(options, readonly=not (agents and os.geteuid() == 0), libvirt=libvirt, definitions=definitions)
    try:
        if context.is_local:
            lines = unfinished.unfinished_lines(context)
            for line in lines:
                tell(f"unfinished: {line}")
            if lines:
                tell("hint: macvm gc settles it, and so does every command that changes something")
        else:
            tell(f"{context.settings.connect} is another host: macvm makes no shim there, and knows no leases of it")
        yield context, options
    finally:
        context.close()


@contextlib.contextmanager
def changing(
    *, recover: bool = True, libvirt: bool = True, definitions: bool = False
) -> Iterator[tuple[Context, Options]]:
    """For commands that change something: what a killed macvm left is settled first. SIGTERM undoes, as Ctrl+C does."""
    options = options_of(click.get_current_context())
    context = _open(options, readonly=False, libvirt=libvirt, definitions=definitions)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not context.is_local:
            tell(f"{context.settings.connect} is another host: macvm makes no shim there")
        if recover and context.is_local and context.has_unfinished:
            from provisioner.actions import recovery

            context.forget_ahead()
            for line in recovery.recover(context):
                tell(line)
        with _recorded():
            yield context, options
    finally:
        context.close()


#: Statuses of errors before which something may have been changed.
_BEGUN = (1, 6, 7, 9)


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """One line of the host's log for a command whose work has written none of its own."""
    ctx, before = click.get_current_context(), log.changes()
    action = ctx.command_path.partition(" ")[2]
    given = [ctx.params.get(key) or () for key in ("name", "names", "parent", "address", "recipe")]
    what = " ".join(str(one) for value in given for one in (value if isinstance(value, tuple) else (value,)))
    log.step(f"{action} {what}".rstrip())
    try:
        yield
    except BaseException as error:
        if log.changes() == before and getattr(error, "status", 1) in _BEGUN:
            log.record(action, what, error)
        raise
    if log.changes() == before:
        log.record(action, what)


def confirm(question: str, options: Options) -> None:
    """Asks, where there is a terminal to ask at. Raises Usage without one and without `--yes`, Abort on a no."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise Usage(f"{question} There is no terminal to ask at", "say --yes")
    click.confirm(question, abort=True, err=True)
