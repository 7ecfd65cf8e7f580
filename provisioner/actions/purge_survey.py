"""What there is of macvm on a host: by the store where that is sound, and in any case by macvm's marks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import install, nics, passthrough, purge_links, ssh
from provisioner.actions.purge_links import Stray, Vlans
from provisioner.actions.removal import LOG_DIR
from provisioner.context import CONFIG, Context
from provisioner.errors import HypervisorFailed, MacvmError, PartlyDone, Unable
from provisioner.host import caller, disks, hosts_file, netlink, netns, pruning, state_files
from provisioner.host.endpoints import Endpoints
from provisioner.host.netlink import Link
from provisioner.host.store import DATABASE, MACHINES, Store, StoreDamaged
from provisioner.model import hosts
from provisioner.model.found import FoundMachine
from provisioner.model.shim import ShimSet


class Machines(NamedTuple):
    """`ours` are those that macvm made and keeps in this state directory, `others` all the rest; `problem` where
    libvirt cannot be asked of them."""

    ours: tuple[FoundMachine, ...] = ()
    others: tuple[FoundMachine, ...] = ()
    problem: MacvmError | None = None


class Traces(NamedTuple):
    """What a purge takes away. `keeps_vms` where VMs stay, as asked, or because libvirt cannot be asked of them.

    `links` are shims and what a killed macvm left, `routes` what leads through links that are not macvm's, `owners` for
    whose sake something is remembered that is put back; `names_folder` where that of network namespaces was made for
    endpoints, and nobody else has one in it. `files` go before those of the store, and `folders` once they
    are empty; `untrue` counts what goes of a store that stays. `stays` says what is left on purpose, and `remains` what
    should go and does not.
    """

    keeps_vms: bool
    units: tuple[Path, ...]
    hosts_block: bool
    machines: tuple[FoundMachine, ...]
    endpoints: tuple[str, ...]
    strays: tuple[Stray, ...]
    links: tuple[Link, ...]
    routes: tuple[tuple[Link, ShimSet], ...]
    names_folder: bool
    owners: tuple[str, ...]
    vlans: tuple[Link, ...]
    known_hosts: tuple[Path, ...]
    files: tuple[Path, ...]
    store: tuple[Path, ...]
    folders: tuple[Path, ...]
    untrue: int
    stays: tuple[str, ...]
    remains: tuple[MacvmError, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take away."""
        return not any(self[1:-2])


def look(context: Context, *, keep_vms: bool) -> Traces:
    """Changes nothing. Raises Unable; MacvmError for a store that cannot be read, but not for a damaged one."""
    return _Look(context, keep_vms=keep_vms).traces()


class _Look:
    def __init__(self, context: Context, *, keep_vms: bool) -> None:
        self._context = context
        self._contents = state_files.look(context.state_dir)
        self._store, self._damage = find_store(context)
        self._machines = _look_at_machines(context)
        # A libvirt that was removed before macvm has nothing to say of VMs that there is no trace of.
        traces = self._contents.machines or (self._store and self._store.machines())
        self._unknown = bool(self._machines.problem and traces)
        self._keep = keep_vms or self._unknown
        self._asked = keep_vms
        rows = self._store.rows("SELECT path FROM files") if self._store else []
        self._recorded = {Path(row["path"]) for row in rows}
        self._foreign = [path for path in self._contents.foreign if path not in self._recorded]

    def traces(self) -> Traces:
        context, contents, there = self._context, self._contents, netlink.links()
        endpoints = Endpoints(self._store).all() if self._store else []
        strays = tuple(purge_links.strays(there, {one.name for one in endpoints}))
        doomed = {one.nic.mac for one in endpoints} | {stray.link.mac for stray in strays}
        own_names = {one.namespace for one in endpoints if one.own} | {one.where for one in strays if one.own}
        vlans = self._look_at_vlans(doomed)
        # Nothing to keep is nothing to keep a store for.
        kept = self._machines.ours or contents.machines or contents.images or self._unknown
        all_goes = not (self._keep and kept)
        used = dict(_used_by_others(context, self._machines)) if all_goes else {}
        owners, given_back_later = self._owners()
        return Traces(
            keeps_vms=self._keep,
            units=tuple(install.find()[0]),
            hosts_block=any(line.strip() == hosts.BEGIN for line in hosts_file.read().splitlines()),
            machines=() if self._keep else self._machines.ours,
            endpoints=tuple(one.name for one in endpoints),
            strays=strays,
            links=tuple(purge_links.own_links(there)),
            routes=tuple(purge_links.routes(there)),
            names_folder=netns.made_folder() and own_names.issuperset(netns.names()),
            owners=tuple(owners),
            vlans=vlans.gone,
            known_hosts=() if self._keep else tuple(caller.kept(ssh.KNOWN_HOSTS)),
            files=tuple(path for path in self._files(all_goes=all_goes) if path not in used),
            store=contents.store if all_goes or self._damage else (),
            folders=tuple(self._folders(used, all_goes=all_goes)),
            untrue=pruning.untrue(self._store) if self._store and not all_goes else 0,
            stays=(*self._stays(), *vlans.needed, *given_back_later),
            remains=(*self._remains(used, all_goes=all_goes), *vlans.in_use),
        )

    def _staying(self) -> tuple[FoundMachine, ...]:
        return (*self._machines.others, *(self._machines.ours if self._keep else ()))

    def _look_at_vlans(self, doomed: set[str]) -> Vlans:
        going = () if self._keep else self._machines.ours
        doomed |= {nic.mac for machine in going for nic in machine.nics}
        needed_by: dict[str, list[str]] = {}
        for machine in self._staying():
            parents = {nic.parent for nic in (*machine.nics, *nics.saved_nics(self._context, machine))}
            for parent in parents:
                needed_by.setdefault(parent, []).append(machine.name)
        return purge_links.look_at_vlans(None if self._unknown else needed_by, doomed)

    def _owners(self) -> tuple[list[str], list[str]]:
        """For whose sake something goes back now; and in words, what a VM that stays and runs still needs."""
        running = {one.uuid: one.name for one in self._staying() if one.runs}
        now, later = list[str](), list[str]()
        for owner in self._store.rememberers() if self._store else ():
            if self._unknown or owner in running:
                name = running.get(owner, owner)
                lines = "; ".join(passthrough.giving_back_lines(self._context, owner))
                later.append(f"{name} may run in passthrough, and its parent stays as it needs it; afterwards: {lines}")
            else:
                now.append(owner)
        return now, later

    def _files(self, *, all_goes: bool) -> Iterator[Path]:
        contents = self._contents
        yield from contents.parts
        yield from contents.endpoints
        if not all_goes:
            return
        yield from contents.machines
        yield from contents.images
        logs = self._recorded | set(filter(None, map(self._log_of, self._machines.ours)))
        for log in sorted(logs - {*contents.machines, *contents.endpoints}):
            # virtlogd begins a new one at each 2 MiB, and keeps three old ones.
            yield from (path for path in (log, *log.parent.glob(f"{log.name}.[0-9]")) if path.is_file())

    def _log_of(self, machine: FoundMachine) -> Path | None:
        """A machine's serial log, by its definition: a store that is gone, or damaged, says nothing of it."""
        log = LOG_DIR / f"{machine.name}-serial.log"
        return log if f'file="{log}"' in self._text(machine) or f"file='{log}'" in self._text(machine) else None

    def _text(self, machine: FoundMachine) -> str:
        return self._context.hypervisor.live_definition(machine.uuid)

    def _folders(self, used: Collection[Path], *, all_goes: bool) -> Iterator[Path]:
        left = {*self._foreign, *used}
        endpoints = self._context.state_dir / state_files.ENDPOINTS
        for folder in self._contents.folders:
            goes = all_goes or folder.is_relative_to(endpoints)
            if goes and not any(path.is_relative_to(folder) for path in left):
                yield folder

    def _stays(self) -> Iterator[str]:
        if CONFIG.exists():
            yield f"{CONFIG} stays: macvm did not write it"
        if self._damage:
            yield f"{self._damage.message}; what it alone knew, such as sysctls of passthrough parents, stays as it is"
        if self._keep:
            yield from self._kept()
        else:
            for machine in self._machines.ours:
                away = [path for path in machine.files if not path.is_relative_to(self._context.state_dir)]
                yield from (f"{path} of {machine.name} stays: it is not in {self._context.state_dir}" for path in away)
        for machine in self._machines.others:
            told = self._store.told_of(machine.uuid) if self._store else {}
            for nic in machine.nics:
                if nic.mac in told:
                    hint = f"virsh detach-interface {machine.name} {nic.kind} --mac {nic.mac} --persistent"
                    yield f"{machine.name} keeps the NIC {nic.mac}, which is its own: {hint}"

    def _kept(self) -> Iterator[str]:
        names = [one.name for one in self._machines.ours]
        if not names:
            # Where that was not asked for, it is among what remains.
            if self._asked and (self._unknown or self._contents.images):
                what = "VMs, disks, images and the store stay" if self._unknown else "images and the store stay"
                yield f"{what}, in {self._context.state_dir}"
            return
        stay, them = ("stays", "it") if len(names) == 1 else ("stay", "them")
        yield f"{', '.join(names)} {stay}, with disks and images: virsh starts {them}"
        yield "IPv6 and multicast reach what virsh starts only after: ip link set dev DEVICE allmulticast on"

    def _remains(self, used: Mapping[Path, str], *, all_goes: bool) -> Iterator[MacvmError]:
        problem = self._machines.problem
        if problem and self._unknown and not self._asked:
            yield HypervisorFailed(f"VMs, disks, images and the store stay: {problem.message}", problem.hint)
        for path, name in used.items():
            yield PartlyDone(f"{path} stays: {name} stands on it", f"delete {name} first, or copy its disk whole")
        for path in self._foreign:
            yield PartlyDone(f"{path} stays: macvm did not make it", f"look at it, and remove it: {path}")
        for machine in self._machines.others if not self._keep else ():
            home = _home(machine)
            if machine.marks and home:
                hint = f"macvm --state-dir {home} purge"
                yield PartlyDone(f"{machine.name} stays: it is of the state directory {home}", hint)


def find_store(context: Context) -> tuple[Store | None, StoreDamaged | None]:
    """None where there is none; the error where it is damaged. Raises Unable for an older one, which has to be opened
    for writing first, and for a newer one."""
    if not (context.state_dir / DATABASE).exists():
        return None, None
    try:
        store = context.reading_store
        if store is None:
            raise Unable(f"the store in {context.state_dir} cannot be read as it is", "macvm gc brings it up to date")
        store.check()
    except StoreDamaged as error:
        return None, error
    return store, None


def _look_at_machines(context: Context) -> Machines:
    try:
        everyone = context.hypervisor.machines()
    except (HypervisorFailed, Unable) as error:
        return Machines(problem=error)
    own = context.state_dir.resolve()
    ours = [one for one in everyone if one.marks and (_home(one) or own).resolve() == own]
    return Machines(tuple(ours), tuple(one for one in everyone if one not in ours))


def _home(machine: FoundMachine) -> Path | None:
    """The state directory that a machine's disk or seed lies in."""
    for path in machine.files:
        if path.parent.name == machine.uuid and path.parent.parent.name == MACHINES:
            return path.parent.parent.parent
    return None


def _used_by_others(context: Context, machines: Machines) -> Iterator[tuple[Path, str]]:
    """Files of the state directory that VMs stand on which are not macvm's to remove."""
    inside = context.state_dir
    for machine in machines.others:
        for path in machine.files:
            for one in (path, *(disks.backing_files(path) if path.suffix != ".iso" else ())):
                if one.is_relative_to(inside):
                    yield one, machine.name
