"""Plans a NIC: where it is wired to, its MAC, and what its guest is told. Looks, and changes nothing."""

from __future__ import annotations

import contextlib
import enum
import ipaddress
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from provisioner.actions import addresses, shims
from provisioner.actions.addresses import Segment
from provisioner.actions.parents import Links, check_parent, choose_parent
from provisioner.actions.request import NicRequest
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, Problems, Taken, Unable, Usage
from provisioner.host import netlink, system
from provisioner.model.found import FoundMachine
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.nic import Address, Addressing, Interface, Nic, auto_needs_network, check_mtu, check_usable
from provisioner.model.reach import Place, Station, expected

if TYPE_CHECKING:
    from provisioner.model.network import Network


class Findings:
    """Collects problems and goes on."""

    def __init__(self) -> None:
        self.problems: list[MacvmError] = []
        self.notes: list[str] = []

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        try:
            yield
        except Problems as several:
            self.problems += several.problems
        except MacvmError as error:
            self.problems.append(error)

    def finish(self) -> None:
        """Raises Problems where there are any, each once."""
        if self.problems:
            unique = {problem.message: problem for problem in self.problems}
            raise Problems(list(unique.values()))


class Surroundings(NamedTuple):
    """What is there already."""

    links: Links
    machines: list[FoundMachine]
    #: By name, those that have been asked for.
    segments: dict[str, Segment]

    @classmethod
    def look(cls, context: Context) -> Surroundings:
        return cls(Links.read(), context.hypervisor.machines(), {})

    def segment(self, context: Context, name: str) -> Segment:
        """A network, with what the host has on it. Raises NotFound."""
        if name not in self.segments:
            self.segments[name] = addresses.look_at(context, name)
        return self.segments[name]


def plan_nics(
    context: Context,
    requests: Sequence[NicRequest],
    there: Surroundings,
    findings: Findings,
    others: Sequence[Nic] = (),
    *,
    start: bool = True,
    shim: bool = True,
    take_parent: bool = False,
) -> tuple[Nic, ...]:
    """The NICs as they will be; problems and notes go into `findings`. `start`: they are to work at once. `others` are
    planned too, for machines that are made before this one."""
    planned: list[Nic] = list(others)
    for wanted in requests:
        with findings.checking():
            nic = _plan_wiring(context, wanted, there, start=start, take_parent=take_parent)
            if nic.direct:
                check_endpoints(context, nic.parent, nic.mode)
            nic = nic._replace(mac=choose_mac(context, wanted.mac, nic, there, planned), shim=nic.shim and shim)
            if nic.direct:
                with findings.checking():
                    nic = give_addresses(context, nic, there, planned)
                with findings.checking():
                    check_addresses(context, nic, planned)
            planned.append(nic)
            if nic.direct and nic.shim:
                note_reachability(nic, findings.notes, nic.mac)
    return tuple(planned[len(others) :])


def _plan_wiring(context: Context, wanted: NicRequest, there: Surroundings, *, start: bool, take_parent: bool) -> Nic:
    if wanted.libvirt_network:
        networks = context.hypervisor.networks()
        if wanted.libvirt_network not in networks:
            hint = f"there are {', '.join(networks) or 'none'}: virsh net-list --all"
            raise NotFound(f"there is no libvirt network {wanted.libvirt_network}", hint)
        if start and not networks[wanted.libvirt_network]:
            hint = f"virsh net-start {wanted.libvirt_network}"
            raise Unable(f"the libvirt network {wanted.libvirt_network} is not active", hint)
        return Nic(mac=Mac.random(), libvirt_network=wanted.libvirt_network, addressing=Addressing(dhcp=True))
    if wanted.network:
        return on_network(there, wanted, there.segment(context, wanted.network).network, take_parent=take_parent)
    mode = wanted.mode or MacvtapMode.BRIDGE
    name = choose_parent(there.links, wanted.parent or context.settings.parent, mode)
    parent = check_parent(there.links, name, mode, wanted.mtu, take=take_parent)
    return Nic(mac=Mac.random(), mode=mode, parent=parent.name, mtu=wanted.mtu, addressing=wanted.addressing)


def on_network(there: Surroundings, wanted: NicRequest, network: Network, *, take_parent: bool) -> Nic:
    """Mode, parent and MTU are the network's; what is said beside it may only say the same."""
    from provisioner.model.network import check_decided  # with the network, it is there already

    check_decided(network, wanted.parent, wanted.mode)
    if there.links.find(network.parent) is None:
        hint = "macvm network up makes it again where macvm made it; otherwise `ip link` shows what there is"
        raise NotFound(f"{network.parent}, the parent of the network {network.name}, is not there", hint)
    mtu = wanted.mtu or network.mtu
    parent = check_parent(there.links, network.parent, network.mode, mtu, take=take_parent)
    return Nic(
        mac=Mac.random(),
        mode=network.mode,
        parent=parent.name,
        mtu=mtu,
        addressing=wanted.addressing,
        shim=network.shim,
        network=network.name,
    )


def check_endpoints(context: Context, parent: str, mode: enum.Enum) -> None:
    """Against the endpoints on a parent, whose links are in namespaces of their own, where no look at the host's finds
    them. `mode` is a macvtap's, a macvlan's or an ipvlan's.

    All ipvlans of a parent have one mode, and beside them there are no macvlans or macvtaps (drivers/net/ipvlan).
    Raises Taken.
    """
    store = context.reading_store
    if store is None or not store.has_endpoint():
        return
    from provisioner.host.endpoints import Endpoints
    from provisioner.model.endpoint import IpvlanMode

    for other in Endpoints(store).on(parent):
        hint = f"choose another parent, or delete it: macvm endpoint delete {other.name}"
        said = f"{parent} carries the {other.kind} of the endpoint {other.name}, in mode {other.mode.value}"
        if isinstance(mode, IpvlanMode) != isinstance(other.mode, IpvlanMode):
            raise Taken(f"{said}: a link carries macvlans and macvtaps, or ipvlans, never both", hint)
        if isinstance(mode, IpvlanMode) and mode is not other.mode:
            raise Taken(f"{said}: all ipvlans of one parent have one mode", f"--ipvlan {other.mode.value}, or: {hint}")
        if "passthrough" in (mode.value, other.mode.value):
            raise Taken(f"{said}: passthrough shares its parent with nobody", hint)


def give_addresses(context: Context, nic: Nic, there: Surroundings, planned: Sequence[Nic]) -> Nic:
    """What a NIC's guest is told, with all that can be known of it. On a network, the addresses that it would get now:
    they are claimed later, and may be others by then."""
    if not nic.network:
        if nic.addressing.auto:
            raise auto_needs_network()
        return nic._replace(addressing=complete(nic.addressing, nic.parent))
    segment = there.segment(context, nic.network)
    if nic.addressing.auto:
        return addresses.predict(context, nic, segment, planned)
    return nic._replace(addressing=addresses.told_on(segment, nic.addressing))


def choose_mac(context: Context, wanted: Mac | None, nic: Nic, there: Surroundings, planned: list[Nic]) -> Mac:
    """A free MAC: the kernel refuses the same one twice on a parent, but at start, and without saying whose it is."""
    holders: dict[str, str] = {link.mac: f"the link {link.name}" for link in there.links.all}
    holders |= {found.mac: f"machine {machine.name}" for machine in there.machines for found in machine.nics}
    holders |= {other.mac: "another NIC of this machine" for other in planned}
    store = context.reading_store
    if wanted is None:
        mac = nic.mac
        holders |= {seen.mac: "a neighbour" for seen in netlink.neighbours()}
        while mac in holders or mac.device in holders or (store and store.holder_of_mac(mac)):
            mac = Mac.random()
        return mac
    holder = holders.get(wanted)
    if holder is None and store and store.holder_of_mac(wanted):
        holder = f"machine {store.holder_of_mac(wanted)}"
    if holder:
        raise Taken(f"MAC {wanted} is in use by {holder}", "leave --mac out, and macvm chooses one")
    check_device_free(wanted.device, there.links, there.machines)
    return wanted


def check_device_free(device: str, host: Links, machines: list[FoundMachine], own: str = "") -> None:
    """Two domains that claim one host device: the failed start of the second deletes the running NIC of the first.

    `own` is the UUID of the machine that is asked for. Raises Taken.
    """
    for machine in machines:
        if machine.uuid != own and any(nic.device == device for nic in machine.nics):
            raise Taken(f"the host device {device} belongs to a NIC of machine {machine.name}", "choose another --mac")
    if host.find(device):
        hint = f"see what it is: ip -d link show {device}; macvm gc clears what macvm left"
        raise Taken(f"there is a link {device} on this host already", hint)


def complete(addressing: Addressing, parent: str) -> Addressing:
    """Fills in a length left out, and gateway and DNS of the host's own subnet."""
    own = netlink.addresses(netlink.get_link(parent).index)
    static = tuple(_with_length(interface, own, parent) for interface in addressing.static)
    for interface in static:
        check_usable(interface)
    gateways, dns = addressing.gateways, addressing.dns
    inside = [interface for interface in static if any(interface.ip in mine.network for mine in own)]
    if inside and not gateways:
        gateways = _own_gateways(parent, {interface.version for interface in inside})
    if inside and not dns:
        dns = system.name_servers()
    for gateway in gateways:
        if static and not any(gateway in interface.network or gateway.is_link_local for interface in static):
            raise Usage(f"gateway {gateway} is in no subnet of {', '.join(map(str, static))}", "check --gateway")
    return addressing._replace(static=static, gateways=gateways, dns=dns)


def _with_length(interface: Interface, own: list[Interface], parent: str) -> Interface:
    if interface.network.prefixlen < interface.max_prefixlen:
        return interface
    for mine in own:
        if mine.version == interface.version and interface.ip in mine.network:
            return ipaddress.ip_interface((interface.ip, mine.network.prefixlen))
    subnets = ", ".join(str(mine.network) for mine in own) or "none"
    raise Usage(
        f"{interface.ip} has no length, and is in no subnet of {parent} ({subnets})",
        f"say it: --ip {interface.ip}/{24 if interface.version == 4 else 64}",
    )


def _own_gateways(parent: str, versions: set[int]) -> tuple[Address, ...]:
    index = netlink.get_link(parent).index
    found: list[Address] = []
    for route in netlink.routes():
        default = route.destination.prefixlen == 0 and route.device == index
        if default and route.gateway and route.gateway.version in versions:
            versions = versions - {route.gateway.version}
            found.append(route.gateway)
    return tuple(found)


def check_addresses(context: Context, nic: Nic, planned: list[Nic]) -> None:
    names = {link.index: link.name for link in netlink.links()}
    own = {interface.ip: names.get(index, "?") for index, interface in netlink.all_addresses()}
    # A route to a guest of that address would cut the host off from its router.
    routers = {route.gateway for route in netlink.routes() if route.gateway}
    store = context.reading_store
    for address in nic.addressing.addresses:
        check_mtu(nic.mtu, address)
        if address in own:
            raise Taken(f"address {address} is this host's own, on {own[address]}", "choose another with --ip")
        if address in routers:
            raise Taken(f"address {address} is that of a router of this host's", "choose another with --ip")
        # One that a network gives out may be another's since it was foreseen: the claim then takes the next.
        holder = store.holder_of(nic.parent, str(address)) if store and not nic.addressing.auto else None
        if holder:
            raise Taken(f"address {address} is held by machine {holder}", "choose another with --ip")
        if any(address in other.addressing.addresses for other in planned):
            raise Usage(f"address {address} is given to two NICs", "give each NIC its own")


def note_reachability(nic: Nic, notes: list[str], who: str) -> None:
    """What a NIC's mode means for whom it reaches; `who` is what it is called."""
    host, guest = Station(Place.HOST, nic.parent), Station(nic.mode, nic.parent)
    if not shims.reaches_host(nic.mode):
        why = expected(host, guest, hairpin=True).reason
        notes.append(f"the host cannot reach {who} in mode {nic.mode.value}: {why}")
        return
    without_hairpin = expected(host, guest, hairpin=False)
    if not without_hairpin.unicast:
        notes.append(f"{who} reaches the host and its neighbours by way of the switch: {without_hairpin.reason}")
    for address in nic.addressing.addresses:
        if not nic.network and shims.pinned_source(nic.parent, address) is None:
            notes.append(f"no route from this host to {address}: {nic.parent} has no address in its subnet")
