"""How far a lab is: a live table on a terminal, else a line for each event, or its JSON; to standard error."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from provisioner.context import Context, Options

if TYPE_CHECKING:
    from rich.table import Table

    from provisioner.actions.labs.runner import Event, Watch

_DONE = {"done": "done", "failed": "failed", "stopped": "stopped"}


@contextlib.contextmanager
def showing(context: Context, options: Options) -> Iterator[Watch]:
    """Something to be told of events."""
    if options.output == "json":
        yield _json
    elif options.quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _Live(context).showing() as watch:
            yield watch
    else:
        yield _Lines()


def _json(event: Event) -> None:
    click.echo(json.dumps(event._asdict()), err=True)


class _Lines:
    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, event: Event) -> None:
        if event.state == "note":
            # What is so of every machine is said once.
            if event.text not in self._told:
                self._told.add(event.text)
                click.echo(f"note: {event.name}: {event.text}", err=True)
        elif event.state in _DONE:
            click.echo(f"{event.name}: {event.state}{f': {event.text}' if event.text else ''}", err=True)


class _Row(NamedTuple):
    step: str
    began: float
    ended: float | None = None


class _Live:
    """A row for each machine. rich is imported when there is something to show."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rows: dict[str, _Row] = {}
        self._notes: list[str] = []
        self._addresses: dict[str, str] = {}
        self._update: Callable[[Any], None] | None = None

    @contextlib.contextmanager
    def showing(self) -> Iterator[Watch]:
        live: Any = None

        def watch(event: Event) -> None:
            nonlocal live
            if live is None:
                from rich.console import Console
                from rich.live import Live

                live = Live(get_renderable=self._table, console=Console(stderr=True), refresh_per_second=8)
                live.start()
            self._take(event)

        try:
            yield watch
        finally:
            if live:
                live.stop()
            for note in self._notes:
                click.echo(f"note: {note}", err=True)

    def _take(self, event: Event) -> None:
        now, row = time.monotonic(), self._rows.get(event.name)
        if event.state == "note":
            note = f"{event.name}: {event.text}"
            self._notes += [] if any(event.text in one for one in self._notes) else [note]
        elif event.state == "begun" or row is None:
            self._rows[event.name] = _Row(event.text or event.state, row.began if row else now)
        elif event.state == "step":
            self._rows[event.name] = row._replace(step=event.text)
        else:
            self._rows[event.name] = row._replace(step=event.text or event.state, ended=now)
        if event.name not in self._addresses:
            self._look_up()

    def _look_up(self) -> None:
        for lease in self._context.store.leases():
            known = self._addresses.get(lease.machine, "")
            if lease.address not in known.split(", "):
                self._addresses[lease.machine] = f"{known}, {lease.address}".lstrip(", ")

    def _table(self) -> Table:
        from rich.table import Table

        table, now = Table(box=None, pad_edge=False), time.monotonic()
        for heading in ("NAME", "STEP", "TIME", "ADDRESS"):
            table.add_column(heading, justify="right" if heading == "TIME" else "left")
        for name, row in list(self._rows.items()):
            elapsed = (row.ended or now) - row.began
            table.add_row(name, row.step, f"{elapsed:.1f} s", self._addresses.get(name, "-"))
        return table
