"""Does many things at once, each in a thread with a context of its own, and tells one listener how far each is.

A store's connection belongs to one thread, and libvirt's daemon serves five calls of a connection at a time: so each
thread opens its own of both.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from provisioner.context import Context
from provisioner.errors import MacvmError

#: Each waits most of its time, for QEMU or for the LAN to answer.
_JOBS_PER_CORE = 4
_MOST_JOBS = 32

#: Objects that are new, when those among them that nobody has any more are looked for.
_COLLECT_EVERY = 5000

#: Opening a store changes the process's umask for a moment.
_opening = threading.Lock()


class Event(NamedTuple):
    """How far a thing is. `state` is begun, step, done, failed, stopped or note; `text` the step's name, the
    note, or why it failed."""

    name: str
    state: str
    text: str = ""


Watch = Callable[[Event], None]


class Task(NamedTuple):
    """One thing to do; its result is kept under its name. `last` False where more is to be done to it afterwards."""

    name: str
    act: Callable[[Context], Any]
    last: bool = True


class Stopped(BaseException):
    """The user wants no more: what is under way is undone, nothing else is begun."""


def default_jobs() -> int:
    return min(_MOST_JOBS, _JOBS_PER_CORE * len(os.sched_getaffinity(0)))


class Runner:
    """`results` has what each task returned, or the error that it raised. Once `stopped`, nothing more is begun."""

    def __init__(self, context: Context, jobs: int, watch: Watch) -> None:
        self.results: dict[str, Any] = {}
        self._context = context
        self._jobs = jobs
        self._watch = watch
        self._stop = threading.Event()
        self._broken: list[BaseException] = []

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def failed(self) -> Mapping[str, MacvmError]:
        return {name: result for name, result in self.results.items() if isinstance(result, MacvmError)}

    def run(self, tasks: Sequence[Task]) -> None:
        """Returns when all are done, or what was under way has been undone. Ctrl+C stops them at their next step; a
        second one leaves at once, and what is unfinished to the journal."""
        # A seed's writer leaves garbage in circles, which the command line's collector, tuned for short runs, lets grow
        # by 50 KB with each machine; what is there by now is looked at no more.
        gc.freeze()
        gc.set_threshold(_COLLECT_EVERY)
        left, events = deque(tasks), queue.SimpleQueue[Event | None]()
        count = 0 if self.stopped else min(self._jobs, len(tasks))
        threads = [
            threading.Thread(target=self._serve, args=(left, events), name=f"lab-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        while count:
            try:
                event = events.get()
                if event is None:
                    count -= 1
                else:
                    self._watch(event)
            except KeyboardInterrupt:
                if self.stopped:
                    raise
                self._stop.set()
        for thread in threads:
            thread.join()
        if self._broken:
            raise self._broken[0]

    def _serve(self, left: deque[Task], events: queue.SimpleQueue[Event | None]) -> None:
        worker = _Worker(self._context, self._stop, events.put)
        try:
            while left and not self.stopped:
                try:
                    task = left.popleft()
                except IndexError:
                    break
                self.results[task.name] = worker.do(task)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._broken.append(error)
            self._stop.set()
        finally:
            worker.close()
            events.put(None)


class _Worker:
    """One thread's context."""

    def __init__(self, context: Context, stop: threading.Event, tell: Watch) -> None:
        self._stop = stop
        self._tell = tell
        self._name = ""
        self._told_to_stop = False
        self._checkpoint = context.checkpoint
        self._context = replace(context, readonly=False, say=self._say, checkpoint=self._at)
        self._context.hypervisor.open_ahead()

    def _say(self, text: str) -> None:
        self._tell(Event(self._name, "note", text))

    def _at(self, boundary: str) -> None:
        self._checkpoint(boundary)
        # Once: what undoes has steps of its own.
        if self._stop.is_set() and not self._told_to_stop:
            self._told_to_stop = True
            raise Stopped
        _, step, side = boundary.split(":")
        if side == "before":
            self._tell(Event(self._name, "step", step))

    def do(self, task: Task) -> Any:
        self._name = task.name
        self._tell(Event(task.name, "begun"))
        try:
            with _opening:
                self._context.store.rows("SELECT 1")
            result = task.act(self._context)
        except MacvmError as error:
            self._tell(Event(task.name, "failed", error.message))
            return error
        except Stopped:
            self._tell(Event(task.name, "stopped"))
            return MacvmError("stopped; what was begun has been undone", "again, and it goes on")
        except OSError as error:
            self._tell(Event(task.name, "failed", str(error)))
            return MacvmError(f"{task.name}: {error}", "is the disk full?")
        if task.last:
            self._tell(Event(task.name, "done"))
        return result

    def close(self) -> None:
        self._context.close()
