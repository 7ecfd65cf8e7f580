"""What a lab made, found without its file, and taken away: endpoints, machines, shims, networks, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from provisioner.actions import endpoint_removal, machines, recovery, reset
from provisioner.actions.labs.bringing import remove_network, remove_shim
from provisioner.actions.labs.runner import Event, Runner, Task, Watch, default_jobs
from provisioner.actions.labs.up import Failure, changing
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound
from provisioner.host.labs import Labs, StoredLab, Thing
from provisioner.model.found import FoundMachine
from provisioner.model.names import printable


class Made(NamedTuple):
    """What there is of a lab that it made."""

    name: str
    machines: tuple[FoundMachine, ...]
    things: tuple[Thing, ...]

    def of(self, kind: str) -> list[str]:
        return [thing.name for thing in self.things if thing.kind == kind]


class Listed(NamedTuple):
    """A lab as `list` shows it. `path` is "" where its file is not known."""

    name: str
    path: str
    machines: int
    running: int
    networks: int
    endpoints: int
    since: str


class Taken(NamedTuple):
    """`done` are the names of what is gone, `kept` the disks that stay."""

    done: tuple[str, ...]
    kept: tuple[Path, ...]
    failed: tuple[Failure, ...]
    stopped: bool


def list_all(context: Context) -> list[Listed]:
    context.require_local("looking at labs")
    stored, things, found = _stored(context), _things(context), _machines(context)
    names = sorted({*stored, *things, *found})
    return [_listed(name, stored.get(name), things.get(name, []), found.get(name, [])) for name in names]


def _listed(name: str, stored: StoredLab | None, things: Sequence[Thing], found: Sequence[FoundMachine]) -> Listed:
    return Listed(
        name=name,
        path=stored.path if stored else "",
        machines=len(found),
        running=sum(machine.runs for machine in found),
        networks=sum(thing.kind == "network" for thing in things),
        endpoints=sum(thing.kind == "endpoint" for thing in things),
        since=stored.since if stored else "",
    )


def _stored(context: Context) -> dict[str, StoredLab]:
    store = context.reading_store
    return {lab.name: lab for lab in Labs(store).all()} if store else {}


def _things(context: Context) -> dict[str, list[Thing]]:
    found: dict[str, list[Thing]] = {}
    store = context.reading_store
    for thing, lab in Labs(store).things().items() if store else ():
        found.setdefault(lab, []).append(thing)
    return found


def _machines(context: Context) -> dict[str, list[FoundMachine]]:
    found: dict[str, list[FoundMachine]] = {}
    for machine in context.hypervisor.machines():
        if machine.marks and machine.marks.lab:
            found.setdefault(machine.marks.lab, []).append(machine)
    return found


def find(context: Context, name: str) -> Made:
    """Raises NotFound."""
    found, things, stored = _machines(context), _things(context), _stored(context)
    if name not in {*found, *things, *stored}:
        known = ", ".join(sorted({*found, *things, *stored}))
        hint = f"there are {known}: macvm lab list" if known else "macvm lab up makes one"
        raise NotFound(f"there is no lab {printable(name, 70)}", hint)
    return Made(name, tuple(found.get(name, ())), tuple(things.get(name, ())))


def path_of(context: Context, name: str) -> str:
    """The file of a lab that was brought up before; "" where none is known."""
    stored = _stored(context).get(name)
    return stored.path if stored else ""


def choose(made: Made, only: Collection[str]) -> tuple[list[FoundMachine], list[str]]:
    """The machines and endpoints that are meant. Raises NotFound."""
    known = [*(machine.name for machine in made.machines), *made.of("endpoint")]
    for name in only:
        if name not in known:
            raise NotFound(
                f"{made.name} has no {printable(name, 70)}", f"there are {', '.join(sorted(known)) or 'none'}"
            )
    chosen = [machine for machine in made.machines if not only or machine.name in only]
    return chosen, [name for name in made.of("endpoint") if not only or name in only]


def down(
    context: Context, name: str, only: Sequence[str], watch: Watch, *, jobs: int = 0, keep_disks: bool = False
) -> Taken:
    """Goes on past a failure. Raises NotFound."""
    context.require_local_root("taking a lab down")
    find(context, name)
    with changing(context, name, "", "down"):
        for line in recovery.recover(context):
            context.say(line)
        made = find(context, name)
        return _Taking(context, made, only, watch, jobs, keep_disks).all()


class _Taking:
    def __init__(
        self, context: Context, made: Made, only: Sequence[str], watch: Watch, jobs: int, keep_disks: bool
    ) -> None:
        self._context = context
        self._made = made
        self._only = only
        self._watch = watch
        self._keep_disks = keep_disks
        self._runner = Runner(context, jobs or default_jobs(), watch)
        self._done: list[str] = []
        self._kept: list[Path] = []
        self._failed: list[Failure] = []

    def all(self) -> Taken:
        doomed, endpoints = choose(self._made, self._only)
        self._each([Task(name, _removing_endpoint(name)) for name in endpoints])
        self._each([Task(machine.name, _deleting(machine.uuid, self._keep_disks)) for machine in doomed])
        if not self._only:
            for thing in self._made.things:
                if thing.kind in ("shim", "to"):
                    self._one(thing, partial(remove_shim, self._context, thing))
            for thing in self._made.things:
                if thing.kind == "network":
                    self._one(thing, partial(self._remove_network, thing.name))
            if not self._failed and not self._runner.stopped:
                Labs(self._context.store).forget(self._made.name)
        return Taken(tuple(self._done), tuple(self._kept), tuple(self._failed), self._runner.stopped)

    def _each(self, tasks: Sequence[Task]) -> None:
        self._runner.results = {}
        self._runner.run(tasks)
        for name, result in self._runner.results.items():
            if isinstance(result, MacvmError):
                self._failed.append(Failure(name, result.message, result.hint))
            else:
                self._done.append(name)
                self._kept += result or []

    def _one(self, thing: Thing, act: Callable[[], object]) -> None:
        if self._runner.stopped:
            return
        try:
            act()
        except MacvmError as error:
            self._watch(Event(thing.name, "failed", error.message))
            self._failed.append(Failure(thing.name, error.message, error.hint))
        else:
            Labs(self._context.store).disown(thing)
            self._done.append(thing.name)

    def _remove_network(self, name: str) -> None:
        """Deleted already is fine."""
        if self._context.store.networks.find(name):
            remove_network(self._context, name)


def _deleting(uuid: str, keep_disks: bool) -> Callable[[Context], Any]:
    return lambda context: [
        path for one in machines.delete(context, [uuid], keep_disks=keep_disks) for path in one.kept
    ]


def _removing_endpoint(name: str) -> Callable[[Context], Any]:
    def act(context: Context) -> None:
        if context.store.has_endpoint(name):
            endpoint_removal.delete(context, [name])
        Labs(context.store).disown(Thing("endpoint", name))

    return act


def reset_machines(context: Context, name: str, only: Sequence[str], watch: Watch, *, jobs: int = 0) -> Taken:
    """Gives a lab's machines fresh disks, side by side. Goes on past a failure. Raises NotFound."""
    context.require_local_root("resetting a lab")
    with changing(context, name, "", "reset"):
        chosen, _ = choose(find(context, name), only)
        runner = Runner(context, jobs or default_jobs(), watch)
        runner.run([Task(machine.name, _resetting(machine.uuid)) for machine in chosen])
    failed = tuple(Failure(name, error.message, error.hint) for name, error in runner.failed.items())
    done = tuple(name for name in runner.results if name not in runner.failed)
    return Taken(done, (), failed, runner.stopped)


def _resetting(uuid: str) -> Callable[[Context], Any]:
    def act(context: Context) -> None:
        for note in reset.reset(context, [uuid])[1]:
            context.say(note)

    return act
