"""What labs cost: brought up and taken down beside what else does that, as they grow, and where the time goes.

Sides take turns, and their order is turned round every time. Guests are left to boot before their machines are taken
down, outside the timing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench import lab_sides, sides
from tests.bench.lab_sides import Course
from tests.bench.steps import spent_on
from tests.bench.turns import Side, take_turns, timed

#: Machines that are started; labs of machines that are not have up to ten times as many.
MACHINES = 20

_THREADS = (1, 2, 4, 8, 16)


class Row(NamedTuple):
    """Median milliseconds of macvm and of what is beside it, and the median of the turns' ratios."""

    title: str
    ours: float
    name: str
    theirs: float
    ratio: float
    goal: str


class Size(NamedTuple):
    """A lab of so many machines, not started: median milliseconds of each, one after the other; of the command as it
    is used; and the most memory that this had, in KB."""

    count: int
    each: float
    command: float
    peak: float


class Box(NamedTuple):
    """What a lane did, in milliseconds since the command began. Lane 0 is the command's own thread."""

    lane: int
    step: str
    begin: float
    end: float


class Run(NamedTuple):
    boxes: tuple[Box, ...]
    peak: float


class Report(NamedTuple):
    """`spent` is the median milliseconds of the command's own steps, and `spent_each` of one machine's; `timeline` is
    the run whose time is the median."""

    machines: int
    rows: tuple[Row, ...]
    sizes: tuple[Size, ...]
    spent: dict[str, float]
    spent_each: dict[str, float]
    timeline: tuple[Box, ...]

    @property
    def flat(self) -> float:
        """The dearest machine as a multiple of the cheapest."""
        each = [size.each for size in self.sizes]
        return max(each) / min(each)

    @property
    def growth(self) -> float:
        """KB that a machine adds, from the last but one size to the last."""
        small, large = self.sizes[-2:]
        return (large.peak - small.peak) / (large.count - small.count)


def measure(rounds: int, machines: int = MACHINES) -> Report:
    """Takes a sandbox's host without domains, and leaves it so."""
    seldom = max(1, rounds // 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab_sides.prepare()
        lab_sides.take_limit(folder, machines)
        rows = (*_beside(folder, machines, rounds, seldom), _idle(folder, 5 * machines, 2 * rounds))
        sizes = _sizes(folder, (1, machines // 2, machines * 5 // 2, 10 * machines), seldom)
        runs = sorted((_clocked(folder, machines, start=True) for _ in range(seldom)), key=_length)
    spent = _medians([_spent(run, range(1)) for run in runs])
    lanes = range(1, 1 + max(box.lane for run in runs for box in run.boxes))
    summed = _medians([_spent(run, lanes) for run in runs])
    spent_each = {step: took / machines for step, took in summed.items()}
    return Report(machines, rows, sizes, spent, spent_each, runs[len(runs) // 2].boxes)


# beside others


def _beside(folder: Path, machines: int, rounds: int, seldom: int) -> tuple[Row, ...]:
    ours = lab_sides.of_macvm(lab_sides.lab_file(folder, machines, start=True))
    installed = lab_sides.of_virt_install(folder, machines)
    limit = lab_sides.of_limit(_best_threads(machines, seldom))
    ups, downs = _take_courses((ours, installed, limit), rounds)
    title = f"macvm lab up, {machines} VMs"
    return (
        _row(title, ups, ours, installed, "ratio <= 0.59: 1.7 times as fast"),
        _row("the same", ups, ours, limit, "ratio <= 1.2"),
        _row(f"macvm lab down, {machines} VMs", downs, ours, installed, "ratio <= 0.33: 3 times as fast"),
    )


def _row(title: str, spent: dict[Course, list[float]], ours: Course, other: Course, goal: str) -> Row:
    ratio = median(mine / theirs for mine, theirs in zip(spent[ours], spent[other], strict=True))
    return Row(title, median(spent[ours]), other.name, median(spent[other]), ratio, goal)


def _best_threads(machines: int, rounds: int) -> int:
    courses = [lab_sides.of_limit(threads) for threads in _THREADS if threads <= machines]
    ups, _ = _take_courses(courses, rounds)
    return _THREADS[min(range(len(courses)), key=lambda place: median(ups[courses[place]]))]


def _take_courses(
    courses: Sequence[Course], rounds: int
) -> tuple[dict[Course, list[float]], dict[Course, list[float]]]:
    """Milliseconds of each up and of each down."""
    ups: dict[Course, list[float]] = {course: [] for course in courses}
    downs: dict[Course, list[float]] = {course: [] for course in courses}
    for number in range(rounds):
        for course in courses if number % 2 else reversed(courses):
            lab_sides.renew_limit()
            ups[course].append(timed(course.up))
            lab_sides.settle()
            downs[course].append(timed(course.down))
    return ups, downs


def _idle(folder: Path, count: int, rounds: int) -> Row:
    command = lab_sides.lab_up(lab_sides.lab_file(folder, count, start=False))
    sides.output(command)
    mine = Side("macvm lab up", command)
    ours, theirs = take_turns((mine, sides.virsh_list), rounds)
    sides.output(lab_sides.LAB_DOWN)
    ratio = median(one / other for one, other in zip(ours, theirs, strict=True))
    title = f"nothing to do, {count} VMs"
    return Row(title, median(ours), sides.virsh_list.name, median(theirs), ratio, "ratio <= 8")


# as labs grow


def _sizes(folder: Path, counts: Sequence[int], rounds: int) -> tuple[Size, ...]:
    found: dict[int, list[Size]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts if number % 2 else reversed(counts):
            alone = _clocked(folder, count, "--jobs", "1", start=False)
            used = _clocked(folder, count, start=False)
            found[count].append(Size(count, _spent(alone, range(1))["machines"] / count, _length(used), used.peak))
    return tuple(Size(*map(median, zip(*found[count], strict=True)))._replace(count=count) for count in counts)


# where the time goes


def _clocked(folder: Path, count: int, *options: str, start: bool) -> Run:
    """One `up`, from nothing to nothing."""
    result = folder / "clocked.json"
    command = lab_sides.lab_up(lab_sides.lab_file(folder, count, start=start), *options)
    began = time.monotonic()
    sides.output([sys.executable, "-m", "tests.bench.clocked_lab", str(result), *command[1:]])
    ended = time.monotonic()
    sides.output(lab_sides.LAB_DOWN)
    found = json.loads(result.read_text())
    marks = [*found["marks"], ("exit", ended, 0)]
    return Run(tuple(_boxes(marks, began)), found["peak"])


def _boxes(marks: Sequence[tuple[str, float, int]], began: float) -> Iterator[Box]:
    last = {0: began}
    for mark, at, lane in marks:
        # A worker that begins with a machine has waited for one, or for nothing.
        if mark != "begun":
            yield Box(lane, spent_on(mark), (last[lane] - began) * 1000, (at - began) * 1000)
        last[lane] = at


def _length(run: Run) -> float:
    return max(box.end for box in run.boxes)


def _spent(run: Run, lanes: range) -> dict[str, float]:
    """Milliseconds by step, in the order in which they come."""
    found: dict[str, float] = {}
    for box in run.boxes:
        if box.lane in lanes:
            found[box.step] = found.get(box.step, 0.0) + box.end - box.begin
    return found


def _medians(each: Sequence[dict[str, float]]) -> dict[str, float]:
    steps = dict.fromkeys(step for one in each for step in one)
    return {step: median(one.get(step, 0.0) for one in each) for step in steps}
