"""What `provisioner.Lab` does from Python: the commands of `macvm lab`, each with a context of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from provisioner.actions.labs import down as taking
from provisioner.actions.labs import status as looked
from provisioner.actions.labs import up as bringing
from provisioner.actions.labs.changes import Leave, Plan
from provisioner.actions.labs.down import Taken
from provisioner.actions.labs.runner import Event, Watch
from provisioner.actions.labs.status import LabStatus
from provisioner.actions.labs.up import Outcome
from provisioner.actions.labs.wishes import Lab
from provisioner.context import Context, Options, open_context
from provisioner.errors import Usage


@contextmanager
def _opened(options: Options | None, *, readonly: bool, watch: Watch | None = None) -> Iterator[Context]:
    say = (lambda text: watch(Event("", "note", text))) if watch else (lambda _: None)
    context = open_context(options or Options(), readonly=readonly, say=say)
    try:
        yield context
    finally:
        context.close()


def plan(lab: Lab, only: Sequence[str], options: Options | None) -> Plan:
    with _opened(options, readonly=True) as context:
        return bringing.look(context, lab, only)


def up(
    lab: Lab,
    only: tuple[str, ...],
    options: Options | None,
    watch: Watch | None,
    *,
    jobs: int,
    leave: Leave,
    destroy: bool,
) -> Outcome:
    def agree(found: Plan) -> None:
        if found.destroys and not destroy:
            names = ", ".join(change.name for change in found.destroys)
            raise Usage(f"the lab {lab.name} has {names} no more, whose disks would be lost", "up(destroy=True)")

    with _opened(options, readonly=False, watch=watch) as context:
        return bringing.up(context, lab, bringing.Options(only, jobs, leave), watch or _nothing, agree)


def down(
    lab: Lab, only: Sequence[str], options: Options | None, watch: Watch | None, *, jobs: int, keep_disks: bool
) -> Taken:
    with _opened(options, readonly=False, watch=watch) as context:
        return taking.down(context, lab.name, only, watch or _nothing, jobs=jobs, keep_disks=keep_disks)


def status(lab: Lab, only: Sequence[str], options: Options | None) -> LabStatus:
    with _opened(options, readonly=True) as context:
        return looked.look(context, lab.name, lab, only)


def _nothing(_: Event) -> None:
    return None
