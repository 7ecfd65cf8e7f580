"""Taking a machine away: what `delete` does, what undoes a failed create, and what recovery does after a kill.

Every step takes "already gone" as done, so that it can run any number of times, from any state.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from provisioner.actions import passthrough, shims
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import MacvmError, PartlyDone
from provisioner.host import disks, seeds
from provisioner.host.journal import Work

#: Where a machine's serial log may lie; virtlogd writes nowhere else.
LOG_DIR = Path("/var/log/libvirt/qemu")


class Remains(NamedTuple):
    """What there may be of a machine; kept in the journal before anything is made or removed."""

    name: str
    uuid: str
    routes: tuple[GuestRoute, ...]

    def facts(self) -> dict[str, Any]:
        return shims.as_facts(self.routes)

    @classmethod
    def read(cls, name: str, uuid: str, facts: Mapping[str, Any]) -> Remains:
        routes = tuple(GuestRoute(ipaddress.ip_address(a), mac, parent) for a, mac, parent in facts.get("routes", ()))
        return cls(name, uuid, routes)


def remove_domain(context: Context, name: str, uuid: str) -> None:
    """Undefines and cuts the power, until libvirt knows nothing of the UUID.

    In this order: a start that is still under way in libvirt then ends with a domain that is gone when it stops.
    """
    context.hypervisor.undefine(uuid, name)
    context.hypervisor.destroy(uuid, name)
    # A domain that was still starting has become transient; one that came back in between has not.
    if context.hypervisor.state(uuid) is not None:
        context.hypervisor.undefine(uuid, name)
        context.hypervisor.destroy(uuid, name)


def remove_files(context: Context, uuid: str, *, keep_disks: bool = False) -> list[Path]:
    """Deletes what the store records as made for this machine, and its folder once empty; returns the disks kept."""
    kept = []
    for path in context.store.files_of(uuid):
        if keep_disks and path.suffix == ".qcow2":
            kept.append(path)
        else:
            beside = seeds.left_beside(path) if path.suffix == ".iso" else []
            for file in (path, *beside):
                disks.remove_file(file, LOG_DIR if path.parent == LOG_DIR else context.state_dir)
        context.store.disown_file(path)
    folder = context.machines_dir / uuid
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return kept


def remove_all(context: Context, work: Work, remains: Remains, *, keep_disks: bool = False) -> list[Path]:
    """Every step, going on past errors; closes the journal row when all went well. Returns the disks kept.

    Raises PartlyDone, which names what remains; the row then stays, for the next command or `gc` to go on with.
    """
    kept: list[Path] = []

    def domain() -> None:
        remove_domain(context, remains.name, remains.uuid)

    def files() -> None:
        kept.extend(remove_files(context, remains.uuid, keep_disks=keep_disks))

    def leases() -> None:
        context.store.release(remains.uuid)
        passthrough.give_back(context, remains.uuid)

    def routes() -> None:
        shims.release(context, remains.routes)

    # A guest that may still run keeps its disk and its address.
    steps = (("domain", domain), ("files", files), ("leases", leases), ("routes", routes))
    take_all(work, remains.name, steps)
    return kept


def take_all(work: Work, name: str, steps: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Every step while all goes well, and `routes` in any case; closes the journal's row when all went well.

    Raises PartlyDone, which names what remains; the row then stays.
    """
    problems: list[MacvmError] = []
    for step, act in steps:
        if problems and step != "routes":
            continue
        try:
            with work.step(step):
                act()
        except MacvmError as error:
            problems.append(error)
    if problems:
        work.leave()
        said = "; ".join(problem.message for problem in problems)
        raise PartlyDone(f"{name} is not wholly removed: {said}", problems[0].hint or "then: macvm gc")
    work.close()
