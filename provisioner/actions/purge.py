"""Takes away all that carries macvm's mark, or all but VMs, their disks and the images.

In an order in which nothing brings back what is gone: units first, then VMs, endpoints, shims, and VLANs' links when
nothing is on them any more; the store at the very end, so that a purge that was killed can be gone on with. Domains
that stay keep macvm's `<metadata>`: libvirt reads past it, and a macvm that comes back knows its VMs by it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import endpoint_removal, install, passthrough, purge_links, recovery, removal, shims, ssh
from provisioner.actions.purge_survey import Traces, find_store, look
from provisioner.actions.wiring import Findings
from provisioner.context import Context
from provisioner.errors import MacvmError, PartlyDone, Taken, Unable
from provisioner.host import caller, disks, hosts_file, links, log, netlink, netns, pruning, routing, state_files
from provisioner.host.netlink import Link
from provisioner.host.store import DATABASE, Store, StoreDamaged
from provisioner.model import hosts
from provisioner.model.found import FoundMachine
from provisioner.model.shim import ShimSet


class Purged(NamedTuple):
    """What is gone, by name, and `restored` to what it was. `stays` says what is left on purpose, and `remains` what
    should be gone and is not."""

    machines: tuple[str, ...]
    endpoints: tuple[str, ...]
    links: tuple[str, ...]
    routes: tuple[str, ...]
    restored: tuple[str, ...]
    files: tuple[str, ...]
    stays: tuple[str, ...]
    remains: tuple[MacvmError, ...]


class _Taking:
    """Goes on past errors, and knows what is gone."""

    def __init__(self, checkpoint: Callable[[str], None]) -> None:
        self._checkpoint = checkpoint
        self.findings = Findings()
        self.gone: dict[str, list[str]] = {name: [] for name in Purged._fields}

    def take(self, kind: str, name: object, act: Callable[[], object]) -> bool:
        """Whether all went well."""
        log.step(f"purge: {name} ({kind})")
        with self.findings.checking():
            try:
                act()
            except OSError as error:
                raise Unable(f"{error.filename or name}: {error.strerror}", f"see `lsattr -d {name}`") from error
            self.gone[kind].append(str(name))
            self._checkpoint(f"purge:{kind}:after")
            return True
        return False


def prepare(context: Context) -> None:
    """To be called before anything is looked at: brings an older store up to date. Raises Unable; Taken while another
    macvm is at work."""
    context.require_local_root("taking macvm off this host")
    if not (context.state_dir / DATABASE).exists():
        return
    with suppress(StoreDamaged):
        journal = context.journal
        busy = [f"{row.action} {row.machine}" for row in journal.unfinished() if journal.is_live(row.id)]
        if busy:
            raise Taken(f"another macvm is at work: {', '.join(busy)}", "wait until it has ended")


def purge(context: Context, *, keep_vms: bool) -> Purged:
    """Any number of times; goes on past errors. Raises what `prepare` and `look` do."""
    prepare(context)
    taking = _Taking(context.checkpoint)
    _take_what_brings_back(context, look(context, keep_vms=keep_vms), taking)
    _settle(context, taking)
    traces, store = look(context, keep_vms=keep_vms), find_store(context)[0]
    left = _take_machines(context, traces, store, taking)
    _take_links(context, traces, store, taking)
    _take_files(context, traces, left, taking)
    remains = {problem.message: problem for problem in (*traces.remains, *taking.findings.problems)}
    gone = {kind: tuple(names) for kind, names in taking.gone.items()}
    return Purged(**{**gone, "stays": traces.stays, "remains": tuple(remains.values())})  # type: ignore[arg-type]


def _take_what_brings_back(context: Context, traces: Traces, taking: _Taking) -> None:
    if traces.units:
        with taking.findings.checking():
            taking.gone["files"] += install.uninstall(context).removed
    if traces.hosts_block:
        taking.take("restored", hosts_file.PATH, lambda: hosts_file.edit(lambda text: hosts.with_block(text, [])))


def _settle(context: Context, taking: _Taking) -> None:
    """What a killed macvm was about to do to VMs of others is undone, and to its own is finished or undone."""
    if find_store(context)[0] is None or not context.has_unfinished:
        return
    with taking.findings.checking():
        for line in recovery.recover(context):
            context.say(line)
            if line.startswith((recovery.UNSETTLED, recovery.UNCERTAIN)):
                taking.findings.problems.append(PartlyDone(line, "then again: macvm purge"))


def _take_machines(context: Context, traces: Traces, store: Store | None, taking: _Taking) -> set[str]:
    """UUIDs and names of those that are still there."""
    left = set[str]()
    for machine in traces.machines:
        if not taking.take("machines", machine.name, partial(_remove_machine, context, machine, store)):
            left |= {machine.uuid, machine.name}
    return left


def _remove_machine(context: Context, machine: FoundMachine, store: Store | None) -> None:
    removal.remove_domain(context, machine.name, machine.uuid)
    if store:
        removal.remove_files(context, machine.uuid)
        store.release(machine.uuid)
        passthrough.give_back(context, machine.uuid)


def _take_links(context: Context, traces: Traces, store: Store | None, taking: _Taking) -> None:
    for name in traces.endpoints:
        taking.take("endpoints", name, partial(endpoint_removal.delete, context, [name]))
    for stray in traces.strays:
        taking.take("endpoints", stray.name, partial(purge_links.remove_stray, stray))
    if traces.names_folder:
        taking.take("files", netns.FOLDER, netns.remove_folder)
    if store:
        # A `shim watch` in somebody's terminal would make them again.
        with taking.findings.checking():
            pruning.prune(store)
    for link in traces.links:
        taking.take("links", link.name, partial(_remove_link, context, link, store))
    for link, found in traces.routes:
        names = ", ".join(str(ipaddress.ip_address(one)) for one in {**found.routes, **found.neighbours})
        taking.take("routes", names, partial(routing.change, link, ShimSet(), found))
    for owner in traces.owners:
        keys = ", ".join(key for key, _ in store.remembered_of(owner)) if store else ""
        if keys:
            taking.take("restored", keys, partial(passthrough.give_back, context, owner))
    for link in traces.vlans:
        taking.take("links", link.name, partial(_remove_vlan, link))


def _remove_link(context: Context, link: Link, store: Store | None) -> None:
    parent = next((one for one in netlink.links() if one.index == link.lower), None)
    if parent and store and shims.find_shim(parent) == link:
        shims.let_go(context, parent)
    else:
        shims.remove(link)


def _remove_vlan(link: Link) -> None:
    users = purge_links.users_of(link, netlink.links())
    if users:
        raise PartlyDone(f"{link.name} stays: {', '.join(users)} is on it", f"ip link del {link.name}")
    links.remove(link)


def _take_files(context: Context, traces: Traces, left: Collection[str], taking: _Taking) -> None:
    """Whatever a machine needs that is still there stays: its files, the images, and the store that knows of it."""
    if not traces.keeps_vms:
        with taking.findings.checking():
            caller.forget_folder(ssh.KNOWN_HOSTS)
            taking.gone["files"] += map(str, traces.known_hosts)
    for path in traces.files:
        if not left or not _is_needed(context, path, left):
            taking.take("files", path, partial(_remove_file, context, path))
    if left:
        return
    # SQLite would write to it as it closes.
    context.close()
    for path in traces.store:
        taking.take("files", path, partial(_remove_file, context, path))
    for folder in traces.folders:
        state_files.remove_if_empty(folder)


def _is_needed(context: Context, path: Path, left: Collection[str]) -> bool:
    is_image = path.parent == context.images_dir and not path.name.startswith(".")
    return is_image or path.parent.name in left or any(path.name.startswith(f"{name}-serial.log") for name in left)


def _remove_file(context: Context, path: Path) -> None:
    if path.parent == context.images_dir and path.name.startswith("."):
        state_files.remove_part(path)
    else:
        disks.remove_file(path, removal.LOG_DIR if path.parent == removal.LOG_DIR else context.state_dir)
