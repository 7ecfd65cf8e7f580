"""How far a download is: a bar on a terminal, else a line now and then; to standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from provisioner.cli.base import options_of
from provisioner.cli.run import tell
from provisioner.model.sizes import human_size

#: Seconds between two lines.
_EVERY = 5.0

Progress = Callable[[int, int | None], None]


@contextlib.contextmanager
def showing_progress() -> Iterator[Progress]:
    """Something to be told of bytes that are done, and of bytes in all where they are known."""
    if options_of(click.get_current_context()).quiet or not sys.stderr.isatty():
        yield _Lines()
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()


class _Lines:
    """The first after a while, so that a short download is told of by nobody."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            of = f" of {human_size(total)}, {100 * done // total} %" if total else ""
            tell(f"{human_size(done)}{of}")


class _Bar:
    """rich's, imported when there is something to show: a command that downloads nothing goes without it."""

    def __init__(self) -> None:
        self._close: Callable[[], None] | None = None
        self._update: Callable[[int, int | None], None] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._update is None:
            self._open()
        assert self._update
        self._update(done, total)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task("", total=None)
        bar.start()
        self._close = bar.stop
        self._update = lambda done, total: bar.update(task, completed=done, total=total)

    def close(self) -> None:
        if self._close:
            self._close()
