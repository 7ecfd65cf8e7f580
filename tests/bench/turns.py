"""Runs several commands in turns and times them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Side:
    """A command to time; `afterwards` puts things back, outside the timing."""

    name: str
    argv: Sequence[str]
    afterwards: Callable[[], object] = _nothing


def timed(argv: Sequence[str]) -> float:
    """Milliseconds until a command has ended. Raises CalledProcessError."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return (time.perf_counter() - began) * 1000


def take_turns(sides: Sequence[Side], rounds: int) -> list[list[float]]:
    """Milliseconds of each side in each round, after one that does not count; every other round goes backwards."""
    taken: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for place in order:
            spent = timed(sides[place].argv)
            sides[place].afterwards()
            if number:
                taken[place].append(spent)
    return taken


def line(cells: tuple[str, str, str, str, str, str]) -> str:
    """What was done, macvm's time, what is beside it, that one's time, the ratio and its goal."""
    title, ours, name, theirs, ratio, goal = cells
    return f"{title:<25}{ours:>6}   {name:<36}{theirs:>6}{ratio:>8}   {goal}".rstrip()
