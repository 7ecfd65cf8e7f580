"""What addresses a machine has, from wherever they are known, and which of them this host is to reach it by."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from provisioner.actions import views
from provisioner.actions.views import AddressView, MachineView, NicView
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound
from provisioner.host import netlink
from provisioner.host.leases import now
from provisioner.host.netlink import Link, Neighbour, Route
from provisioner.model.mode import MacvtapMode
from provisioner.model.nic import Address, Nic

#: Whole seconds that a guest agent may take to answer: libvirt takes no fractions.
_AGENT_SECONDS = 1

#: What an agent may say of one NIC: a guest is not believed any number of addresses.
_MOST = 64

#: linux/neighbour.h: entries that somebody set by hand, or that need no answer, say nothing about who is there.
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80


class Tables(NamedTuple):
    """The host's own tables, read once for any number of machines. `ages`: seconds since a neighbour was there, by its
    device and address."""

    links: tuple[Link, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]
    ages: Mapping[tuple[int, Address], float] = MappingProxyType({})

    @classmethod
    def read(cls) -> Tables:
        return cls(tuple(netlink.links()), tuple(netlink.routes()), tuple(netlink.neighbours()), netlink.confirmed())


class Known(NamedTuple):
    """An address of a machine, with the MAC of its NIC. `reachable`: this host has a way to it, as far as its routes
    tell."""

    address: str
    source: str
    seen: str
    mac: str
    reachable: bool

    @property
    def ip(self) -> Address:
        return ipaddress.ip_address(self.address)


class Reached(NamedTuple):
    """A machine, and its addresses with the one to reach it by first. `address` is that one; None where none is known
    that would do."""

    name: str
    address: str | None
    addresses: tuple[Known, ...]


class NoAddress(MacvmError):
    """No address is known of a machine."""


# the sources


def addresses_of(context: Context, machine: MachineView, tables: Tables) -> tuple[tuple[AddressView, ...], ...]:
    """Of each NIC in the machine's order, its addresses, each once: from the surest source to the loosest.

    Leases first, macvm's and then those of libvirt's own networks, what the guest's agent says next, and last what the
    host's neighbour table has under the NIC's MAC.
    """
    running = machine.kind == "machine" and machine.runs and machine.state != "unknown"
    leased = _libvirt_leases(context, machine) if running else {}
    said = _agent_says(context, machine) if running else {}
    heard = _neighbours(tables) if machine.runs else {}
    found = []
    for nic in machine.nics:
        sources = (nic.addresses, leased.get(nic.mac, ()), said.get(nic.mac, ()), heard.get(nic.mac, ()))
        once: dict[str, AddressView] = {}
        for source in sources:
            for one in source:
                once.setdefault(one.address, one)
        found.append(tuple(once.values()))
    return tuple(found)


_ByMac = Mapping[str, Sequence[AddressView]]


def _by_mac(pairs: Iterable[tuple[str, Address]], source: str) -> _ByMac:
    """What somebody tells now was seen now."""
    found: dict[str, list[AddressView]] = {}
    seen = now()
    for mac, address in pairs:
        found.setdefault(mac, []).append(AddressView(str(address), source, seen))
    return found


def _libvirt_leases(context: Context, machine: MachineView) -> _ByMac:
    if machine.uuid is None or all(nic.parent for nic in machine.nics):
        return {}
    pairs = context.hypervisor.network_leases(machine.uuid)
    return _by_mac(((mac, ipaddress.ip_address(address)) for mac, address in pairs), "lease")


def _agent_says(context: Context, machine: MachineView) -> _ByMac:
    if machine.uuid is None or machine.state != "running" or not machine.nics:
        return {}
    ask = '{"execute": "guest-network-get-interfaces"}'
    answer = context.hypervisor.agent(machine.uuid, ask, _AGENT_SECONDS)
    return _by_mac(parse_agent(answer), "agent") if answer else {}


def parse_agent(answer: str) -> list[tuple[str, Address]]:
    """MAC and address of a guest's interfaces, of those that another may speak to. The guest writes what it likes:
    what has another shape than the agent's is left out."""
    found: list[tuple[str, Address]] = []
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        for interface in json.loads(answer)["return"]:
            mac = str(interface.get("hardware-address", "")).lower()
            for entry in (interface.get("ip-addresses") or ())[:_MOST]:
                # QEMU's agent on Windows gives a link-local address with its zone.
                address = ipaddress.ip_address(str(entry["ip-address"]).partition("%")[0])
                if not (address.is_loopback or address.is_unspecified or address.is_multicast):
                    found.append((mac, address))
    return found


def _neighbours(tables: Tables) -> _ByMac:
    found: dict[str, list[AddressView]] = {}
    for one in tables.neighbours:
        if one.mac and not one.state & (_NUD_NOARP | _NUD_PERMANENT):
            seen = now(ago=tables.ages.get((one.device, one.address), 0.0))
            found.setdefault(one.mac, []).append(AddressView(str(one.address), "neighbour", seen))
    return found


# which one


def reach(context: Context, machine: MachineView, tables: Tables) -> Reached:
    """A machine's addresses, the one to reach it by first."""
    known = []
    for nic, found in zip(machine.nics, addresses_of(context, machine, tables), strict=True):
        for one in found:
            known.append(Known(*one, nic.mac, is_reachable(nic, ipaddress.ip_address(one.address), tables)))
    ordered = tuple(sorted(known, key=lambda one: (one.ip.is_link_local, not one.reachable)))
    # A link-local address is none without a link of the host's, and the shim has no such address to speak from.
    first = ordered[0].address if ordered and not ordered[0].ip.is_link_local else None
    return Reached(machine.name, first, ordered)


def is_reachable(nic: NicView, address: Address, tables: Tables) -> bool:
    """Whether the host's routes lead to a NIC's address by any way but the NIC's own parent: what the host sends there
    never comes to a macvtap on it."""
    matching = [one for one in tables.routes if one.destination.version == address.version]
    best = max(
        (one for one in matching if address in one.destination),
        key=lambda one: one.destination.prefixlen,
        default=None,
    )
    if best is None:
        return False
    through = next((link.name for link in tables.links if link.index == best.device), "")
    return through != nic.parent


def look(context: Context, name: str) -> tuple[MachineView, Reached]:
    """A machine by its name or UUID, or an endpoint by its name, and its addresses. Raises NotFound."""
    machine = find(context, name)
    return machine, reach(context, machine, Tables.read())


def find(context: Context, name: str) -> MachineView:
    """Raises NotFound."""
    try:
        return views.show(context, name)
    except NotFound:
        for endpoint in views.endpoints(context):
            if endpoint.name == name:
                return endpoint
        raise


def look_at_all(context: Context) -> Iterator[tuple[MachineView, Reached]]:
    """Every machine, and the endpoints after them. Raises HypervisorFailed."""
    listing, tables = views.look(context), Tables.read()
    if listing.problem:
        raise listing.problem
    for machine in (*listing.machines, *views.endpoints(context)):
        yield machine, reach(context, machine, tables)


def get_address(context: Context, name: str) -> tuple[MachineView, Reached]:
    """As `look`, for who needs an address. Raises NotFound, and NoAddress that says why none is known."""
    machine, reached = look(context, name)
    if reached.address is None:
        raise NoAddress(*why_none(context, machine, reached))
    return machine, reached


def why_none(context: Context, machine: MachineView, reached: Reached) -> tuple[str, str]:
    """What keeps a machine's address unknown, and what to do."""
    name = machine.name
    none = f"no address of {name} is known"
    if not machine.nics:
        return f"{none}: it has no NIC", f"give it one: macvm nic attach {name}"
    if not machine.runs:
        return f"{none}: it is {machine.state}", f"macvm start {name}, then: macvm ip {name} --wait"
    if machine.kind == "endpoint":
        return f"{none}: it was made without one", f"macvm endpoint exec {name} -- ip address"
    told = _told(context, machine)
    if all(nic.mac in told and not told[nic.mac].addressing.dhcp for nic in machine.nics):
        which = "" if len(machine.nics) == 1 else f" {machine.nics[0].mac}"
        return f"{none}: it was told none", f"macvm nic set {name}{which} --ip ADDRESS/LENGTH, or --ip dhcp"
    hint = f"`macvm ip {name} --wait` waits for one; `macvm console {name}` shows what the guest says"
    if reached.addresses:
        return f"{none} but the link-local {reached.addresses[0].address}", hint
    if mode := _unaskable(machine):
        return f"{none} yet: in mode {mode} a guest cannot be asked for it, and is heard once it speaks", hint
    return f"{none} yet: its guest takes it from the LAN's DHCP, or has set it itself", hint


def _unaskable(machine: MachineView) -> str:
    """The mode that keeps a machine from being asked; empty where some NIC of it can be."""
    modes = [nic.kernel_mode or "" for nic in machine.nics]
    away = [one.value for one in (MacvtapMode.PRIVATE, MacvtapMode.PASSTHROUGH)]
    return modes[0] if all(mode in away for mode in modes) else ""


def _told(context: Context, machine: MachineView) -> dict[str, Nic]:
    store = context.reading_store
    if store is None or machine.uuid is None:
        return {}
    return {mac: Nic.from_json(text) for mac, text in store.told_of(machine.uuid).items() if text}
