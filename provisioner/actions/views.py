"""Machines and NICs as users see them: libvirt's domains, the store's leases and the kernel's links put together.

One XML for each domain, one netlink dump for all of them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from provisioner.context import Context
from provisioner.errors import HypervisorFailed, NotFound
from provisioner.model.found import OFF, FoundMachine, FoundNic
from provisioner.model.names import printable

if TYPE_CHECKING:
    from provisioner.host.heard import Heard
    from provisioner.host.leases import Lease
    from provisioner.host.netlink import Link


class AddressView(NamedTuple):
    """An address, where it is known from, and since or when it was last seen."""

    address: str
    source: str
    seen: str


class NicView(NamedTuple):
    """`mode` is libvirt's, `kernel_mode` what the kernel really does; None where it is not running or not direct.

    `network` is the one of macvm's that a direct NIC is on, or libvirt's own.
    `link` is the guest's carrier as libvirt has it, `carrier` the host device's, None where there is none.
    """

    mac: str
    mode: str | None
    kernel_mode: str | None
    parent: str | None
    network: str | None
    device: str | None
    model: str | None
    link: str
    carrier: bool | None
    addresses: tuple[AddressView, ...]


class MachineView(NamedTuple):
    """`made_by_macvm` tells whether macvm may delete it. `kind` is `machine` or `endpoint`; an endpoint has no UUID.
    `firmware` is `bios` or `uefi`; None where it is not known."""

    name: str
    uuid: str | None
    state: str
    lab: str | None
    labels: dict[str, str]
    image: str | None
    nics: tuple[NicView, ...]
    made_by_macvm: bool
    kind: str = "machine"
    firmware: str | None = None

    @property
    def runs(self) -> bool:
        """Whether there is a guest; one of unknown state is taken to be."""
        return self.state not in OFF


class Listing(NamedTuple):
    """What was found; `problem` is set where libvirt could not be asked, and the machines are the store's then."""

    machines: tuple[MachineView, ...]
    problem: HypervisorFailed | None = None


def look(context: Context) -> Listing:
    """Every machine. Never raises for a libvirt that is not reachable: what the store knows is shown, state unknown."""
    leases, heard, networks = _leases_by_mac(context), _heard_by_mac(context), context.networks_by_mac()
    try:
        found = context.hypervisor.machines()
    except HypervisorFailed as problem:
        return Listing(_from_store(context, leases), problem)
    # With nothing running there is no host device to look for.
    links = _links_by_name(context) if any(nic.device for machine in found for nic in machine.nics) else {}
    return Listing(tuple(_machine_view(machine, leases, heard, networks, links) for machine in found))


def endpoints(context: Context) -> tuple[MachineView, ...]:
    """The endpoints, each as a machine with one NIC."""
    store = context.reading_store if context.is_local else None
    if store is None or not store.has_endpoint():
        return ()
    from provisioner.actions.endpoint_views import list_all

    found = []
    for one in list_all(context):
        link = {"down": "down", "up": "up", "gone": "gone"}.get(one.state, "unknown")
        nic = NicView(
            mac=one.mac or "",
            mode=one.mode,
            kernel_mode=one.mode if one.device else None,
            parent=one.parent,
            network=one.network,
            device=one.device,
            model=None,
            link=link,
            carrier=None,
            addresses=one.addresses,
        )
        found.append(MachineView(one.name, None, "endpoint", None, {}, None, (nic,), True, "endpoint"))
    return tuple(found)


def show(context: Context, name: str) -> MachineView:
    """Raises NotFound."""
    try:
        return view_of(context, context.hypervisor.get(name))
    except NotFound:
        store = context.reading_store if context.is_local else None
        if store and store.has_endpoint(name):
            raise NotFound(f"{name} is an endpoint, and no machine", "macvm endpoint list") from None
        raise


def view_of(context: Context, machine: FoundMachine) -> MachineView:
    leases, heard = _leases_by_mac(context), _heard_by_mac(context)
    return _machine_view(machine, leases, heard, context.networks_by_mac(), _links_by_name(context))


def select(
    machines: Iterable[MachineView], globs: Sequence[str], lab: str | None, labels: Sequence[tuple[str, str]]
) -> tuple[MachineView, ...]:
    """Those that match one of the globs (none: all), the lab and every label. Raises NotFound for a plain name that is
    not there."""
    everyone = list(machines)
    for glob in globs:
        if not set(glob) & set("*?[") and not any(machine.name == glob for machine in everyone):
            raise NotFound(f"no machine is named {printable(glob, 70)}", "`macvm list` shows all there are")
    return tuple(
        machine
        for machine in everyone
        if (not globs or any(fnmatch.fnmatchcase(machine.name, glob) for glob in globs))
        and (lab is None or machine.lab == lab)
        and all(machine.labels.get(key) == value for key, value in labels)
    )


def _leases_by_mac(context: Context) -> dict[str, list[Lease]]:
    store = context.reading_store if context.is_local else None
    found: dict[str, list[Lease]] = {}
    for lease in store.leases() if store else ():
        found.setdefault(lease.mac, []).append(lease)
    return found


def _heard_by_mac(context: Context) -> dict[str, list[Heard]]:
    store = context.reading_store if context.is_local else None
    found: dict[str, list[Heard]] = {}
    for one in store.heard.all() if store and store.has_heard() else ():
        found.setdefault(one.mac, []).append(one)
    return found


def _links_by_name(context: Context) -> dict[str, Link]:
    from provisioner.host import netlink

    return {link.name: link for link in netlink.links()} if context.is_local else {}


def _machine_view(
    machine: FoundMachine,
    leases: dict[str, list[Lease]],
    heard: dict[str, list[Heard]],
    networks: dict[str, str],
    links: dict[str, Link],
) -> MachineView:
    known = _known(machine, leases, heard)
    marks = machine.marks
    return MachineView(
        name=machine.name,
        uuid=machine.uuid,
        state=machine.state,
        lab=marks.lab or None if marks else None,
        labels=dict(marks.labels) if marks else {},
        image=marks.image or None if marks else None,
        nics=tuple(
            _seen(machine, _nic_view(nic, known.get(nic.mac, ()), networks.get(nic.mac), links.get(nic.device)), links)
            for nic in machine.nics
        ),
        made_by_macvm=marks is not None,
        firmware=machine.firmware or None,
    )


def _known(
    machine: FoundMachine, leases: dict[str, list[Lease]], heard: dict[str, list[Heard]]
) -> dict[str, list[AddressView]]:
    """Addresses by MAC: leases, and what a guest that runs was heard to have beside them."""
    runs, found = machine.runs, dict[str, list[AddressView]]()
    for nic in machine.nics:
        held = [AddressView(one.address, "lease", one.since) for one in leases.get(nic.mac, ())]
        leased = {one.address for one in held}
        said = [one for one in heard.get(nic.mac, ()) if runs and one.address not in leased]
        found[nic.mac] = [*held, *(AddressView(one.address, "wire", one.seen) for one in said)]
    return found


def _seen(machine: FoundMachine, nic: NicView, links: dict[str, Link]) -> NicView:
    """A running machine's host device that somebody deleted is gone, whatever libvirt says of it."""
    running = machine.state not in (*OFF, "unknown")
    if links and running and nic.parent and nic.device and nic.device not in links:
        return nic._replace(link="gone")
    return nic


def _nic_view(nic: FoundNic, known: Iterable[AddressView], network: str | None, link: Link | None) -> NicView:
    return NicView(
        mac=nic.mac,
        mode=nic.mode.value if nic.mode else None,
        kernel_mode=link.mode or None if link else None,
        parent=nic.parent or None,
        network=network or nic.network or None,
        device=nic.device or None,
        model=nic.model or None,
        link=nic.link,
        carrier=link.carrier if link else None,
        addresses=tuple(known),
    )


def _from_store(context: Context, leases: dict[str, list[Lease]]) -> tuple[MachineView, ...]:
    """What is known without libvirt: names and addresses."""
    store = context.reading_store if context.is_local else None
    views = []
    for uuid, name in sorted(store.machines().items(), key=lambda item: item[1]) if store else ():
        nics = tuple(
            NicView(mac, None, None, held[0].parent or None, None, None, None, "unknown", None,
                    tuple(AddressView(lease.address, "lease", lease.since) for lease in held))
            for mac, held in sorted(leases.items())
            if held[0].owner == uuid
        )  # fmt: skip
        views.append(MachineView(name, uuid, "unknown", None, {}, None, nics, True))
    return tuple(views)
