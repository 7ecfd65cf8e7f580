"""What there is of a lab: asked of libvirt, the kernel and the store, never remembered from the last run. Only who made
a network, a shim or an endpoint is a matter of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.actions import shims
from provisioner.actions.labs import host_side
from provisioner.actions.labs.host_side import Unserved
from provisioner.actions.parents import Links
from provisioner.context import Context
from provisioner.errors import Unable
from provisioner.host import disks
from provisioner.host.endpoints import Endpoints
from provisioner.host.labs import Labs, Thing
from provisioner.host.store import Store
from provisioner.model.catalogue import CatalogueEntry
from provisioner.model.endpoint import Endpoint
from provisioner.model.found import FoundMachine, FoundNic
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.network import Network
from provisioner.model.nic import Nic
from provisioner.model.shim import OWNER_PREFIX


class RealNic(NamedTuple):
    """A NIC of a lab's machine. `mode` is the kernel's where it runs, `saved_mode` the definition's; `told` what macvm
    knows of it, None for one that somebody else attached. `live` and `saved` are the halves that have it; `link` is
    `gone` where the host has lost its macvtap."""

    mac: Mac
    kind: str
    parent: str
    network: str
    mode: MacvtapMode | None
    saved_mode: MacvtapMode | None
    link: str
    live: bool
    saved: bool
    told: Nic | None


class RealMachine(NamedTuple):
    """A lab's machine as it is `now` and as its definition has it. `disk_size` is in bytes, None where there is none to
    be seen; `base_size` is that of its image's disk."""

    now: FoundMachine
    saved: FoundMachine
    nics: tuple[RealNic, ...] = ()
    disk_size: int | None = None
    base_size: int = 0

    @property
    def least_memory(self) -> int:
        """What its image makes of an amount that nobody names."""
        entry = self._entry()
        return entry.memory if entry else 0

    @property
    def least_disk(self) -> int:
        """What its image makes of a size that nobody names."""
        entry = self._entry()
        return max(self.base_size, entry.disk if entry else 0)

    def _entry(self) -> CatalogueEntry | None:
        # Looked up where it matters: a catalogue takes 10 ms to read.
        from provisioner.actions.catalogue import find_entry

        marks = self.now.marks
        return find_entry(marks.image.partition(":")[0]) if marks and marks.image else None

    @property
    def runs(self) -> bool:
        return self.now.runs


class RealEndpoint(NamedTuple):
    """`is_there` tells whether its namespace and its link are."""

    endpoint: Endpoint
    is_there: bool


class Real(NamedTuple):
    """`machines` are the lab's by name, `strangers` the names of all others. `shims` are the parents whose shim was
    asked for, each with whether it is there; `to` the addresses told to them; `made` what labs made, with their names;
    `holders` are the machines and endpoints on each network; `unserved` what the host lacks to reach those that run."""

    machines: Mapping[str, RealMachine] = {}  # never changed, as those below
    strangers: frozenset[str] = frozenset()
    networks: Mapping[str, Network] = {}
    holders: Mapping[str, frozenset[str]] = {}
    endpoints: Mapping[str, RealEndpoint] = {}
    shims: Mapping[str, bool] = {}
    to: frozenset[tuple[str, str]] = frozenset()
    made: Mapping[Thing, str] = {}
    unserved: Mapping[str, tuple[Unserved, ...]] = {}


def look(
    context: Context, lab: str, links: Links, found: Sequence[tuple[FoundMachine, FoundMachine]] | None = None
) -> Real:
    """Changes nothing. `links` are the host's, `found` the hypervisor's `with_definitions` where those are known."""
    store = context.reading_store
    found = context.hypervisor.with_definitions() if found is None else found
    mine = [pair for pair in found if pair[0].marks and pair[0].marks.lab == lab]
    strangers = frozenset(now.name for now, _ in found) - {now.name for now, _ in mine}
    if store is None:
        return Real({now.name: RealMachine(now, saved) for now, saved in mine}, strangers)
    told = _told(store)
    modes = {link.name: link.mode for link in links.all}
    sizes = {image.digest: image.virtual_size for image in store.images()}
    folder = context.machines_dir
    machines = {now.name: _machine(folder, now, saved, told, modes, sizes) for now, saved in mine}
    with_shim = {link.name for link in shims.with_shim(links.all)}
    endpoints, made = _endpoints(store), Labs(store).things()
    held = {name: [nic.told for nic in one.nics if nic.told] for name, one in machines.items() if one.runs}
    for name, one in endpoints.items():
        if one.is_there and made.get(Thing("endpoint", name)) == lab:
            held[name] = [one.endpoint.nic]
    return Real(
        machines=machines,
        strangers=strangers,
        networks={network.name: network for network in store.networks.all()},
        holders=_holders(store),
        endpoints=endpoints,
        shims={parent: parent in with_shim for parent in store.others.held()},
        to=frozenset((one.parent, one.address) for one in store.others.all()),
        made=made,
        unserved=host_side.look(store, links, held),
    )


def _told(store: Store) -> dict[str, str]:
    return {row["mac"]: row["told"] for row in store.rows("SELECT mac, told FROM macs WHERE owner NOT LIKE '%/%'")}


def _holders(store: Store) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    # A shim has an address of its own for as long as somebody is there to be reached from it.
    sql = "SELECT DISTINCT network, machine FROM macs WHERE network IS NOT NULL AND owner NOT LIKE ?"
    for row in store.rows(sql, (f"{OWNER_PREFIX}%",)):
        found.setdefault(row["network"], set()).add(row["machine"])
    return {network: frozenset(names) for network, names in found.items()}


def _endpoints(store: Store) -> dict[str, RealEndpoint]:
    return {one.name: RealEndpoint(one, _is_there(one)) for one in Endpoints(store).all()}


def _is_there(endpoint: Endpoint) -> bool:
    from provisioner.actions import endpoint_spaces as spaces

    try:
        return spaces.is_there(endpoint)
    except Unable:
        return True  # who may not look into namespaces takes the store's word


def _machine(
    folder: Path,
    now: FoundMachine,
    saved: FoundMachine,
    told: Mapping[str, str],
    modes: Mapping[str, str],
    sizes: Mapping[str, int],
) -> RealMachine:
    marks = now.marks
    return RealMachine(
        now=now,
        saved=saved,
        nics=_nics(now, saved, told, modes),
        disk_size=disks.virtual_size(folder / now.uuid / "disk.qcow2"),
        base_size=sizes.get(marks.base, 0) if marks else 0,
    )


def _nics(
    now: FoundMachine, saved: FoundMachine, told: Mapping[str, str], modes: Mapping[str, str]
) -> tuple[RealNic, ...]:
    live, kept = ({nic.mac: nic for nic in machine.nics} for machine in (now, saved))
    found = (_nic(mac, live.get(mac), kept.get(mac), told.get(mac, ""), modes) for mac in {**kept, **live})
    if not now.runs:
        return tuple(found)
    gone = {nic.mac for nic in now.nics if nic.kind == "direct" and nic.device and nic.device not in modes}
    return tuple(nic._replace(link="gone") if nic.mac in gone else nic for nic in found)


def _nic(mac: Mac, live: FoundNic | None, saved: FoundNic | None, told: str, modes: Mapping[str, str]) -> RealNic:
    one = live or saved
    assert one is not None
    kernel = modes.get(one.device, "")
    return RealNic(
        mac=mac,
        kind=saved.kind if saved else one.kind,
        parent=one.parent,
        network=(saved or one).network,
        mode=MacvtapMode(kernel) if kernel else one.mode,
        saved_mode=saved.mode if saved else None,
        link=one.link,
        live=live is not None,
        saved=saved is not None,
        told=Nic.from_json(told) if told else None,
    )
