"""Where the time of one `macvm create` goes, told by the checkpoints at its steps' boundaries."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median


def breakdown(argv: Sequence[str], afterwards: Callable[[], object], rounds: int) -> list[tuple[str, float]]:
    """Median milliseconds by step, in the order in which they come. `argv` is macvm's command line, `macvm` first."""
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        took: dict[str, float] = {}
        for step, seconds in _one(argv):
            took[step] = took.get(step, 0.0) + seconds * 1000
        for step, milliseconds in took.items():
            spent.setdefault(step, []).append(milliseconds)
        afterwards()
    return [(step, median(taken)) for step, taken in spent.items()]


def _one(argv: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Steps and the seconds they took; the journal's come between the others."""
    began = last = time.monotonic()
    command = [sys.executable, "-m", "tests.bench.clocked", *argv[1:]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    ended = time.monotonic()
    for mark, at in [*json.loads(done.stderr.splitlines()[-1]), ("exit", ended)]:
        yield spent_on(mark), at - last
        last = at
    yield "in all", ended - began


def spent_on(mark: str) -> str:
    """What the time up to a mark went into: `create:disk:before` ends a note in the journal, `create:disk:after` the
    step itself."""
    step = mark.removeprefix("create:")
    if step == "begin:after":
        return "claim"
    return "journal" if step.endswith(":before") else step.removesuffix(":after")
