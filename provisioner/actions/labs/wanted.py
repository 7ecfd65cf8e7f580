"""What a lab wants, with all filled in that its file leaves to this host: parents, modes, lengths, gateways. Looks, and
changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from provisioner.actions.addresses import Segment, segment_of
from provisioner.actions.labs.digests import digests
from provisioner.actions.labs.wishes import Lab, ShimWish
from provisioner.actions.parents import Links, choose_parent
from provisioner.actions.request import CreateRequest, EndpointRequest, NicRequest
from provisioner.actions.virt_type import choose_virt_type
from provisioner.actions.wiring import Findings, complete
from provisioner.context import Context
from provisioner.errors import MacvmError, Problems, Usage
from provisioner.host.labs import read_key
from provisioner.host.networks import no_network
from provisioner.model.endpoint import MacvlanMode, Mode, stands_for
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac
from provisioner.model.network import Network
from provisioner.model.nic import Address, Addressing
from provisioner.model.vlan import vlan_parent


class WantedNic(NamedTuple):
    """A NIC as it is asked for, and as it will be. `segment` is that of its network; without one `addressing` has all
    that the guest is to be told."""

    asked: NicRequest
    mode: MacvtapMode = MacvtapMode.BRIDGE
    parent: str = ""
    mtu: int | None = None
    shim: bool = True
    addressing: Addressing = Addressing()
    segment: Segment | None = None

    @property
    def mac(self) -> Mac | None:
        return self.asked.mac


class WantedMachine(NamedTuple):
    """`wish` is None where what guests are told cannot be compared: without root's key."""

    request: CreateRequest
    nics: tuple[WantedNic, ...] = ()
    virt_type: str = ""
    wish: str | None = ""


class WantedEndpoint(NamedTuple):
    request: EndpointRequest
    mode: Mode
    nic: WantedNic


class Wanted(NamedTuple):
    name: str
    networks: tuple[Network, ...] = ()
    shims: tuple[ShimWish, ...] = ()
    machines: tuple[WantedMachine, ...] = ()
    endpoints: tuple[WantedEndpoint, ...] = ()


def wanted_by(context: Context, lab: Lab, links: Links) -> Wanted:
    """Raises Problems with all that cannot be."""
    return _Filling(context, lab, links).all()


@contextlib.contextmanager
def placed(lab: Lab, *thing: str | int) -> Iterator[None]:
    """What is wrong with a thing is said with its place in the file, and in the file's words."""
    place = lab.places.get(thing)
    try:
        yield
    except MacvmError as error:
        if place is None or lab.path is None:
            raise
        from provisioner.actions.labs.mistakes import shown
        from provisioner.actions.labs.words import in_file_words

        several = error.problems if isinstance(error, Problems) else (error,)
        at = shown(lab.path, place)
        raise Problems(
            [type(one)(f"{at}: {in_file_words(one.message)}", in_file_words(one.hint)) for one in several]
        ) from None


def _check_room(segment: Segment, asked: Sequence[Addressing]) -> None:
    """That a network's pool can hold its lab, whoever else is on it. Raises Usage."""
    name, subnets = segment.network.name, segment.network.subnets
    choosing = sum(one.auto for one in asked)
    if not choosing:
        return
    given = {address for one in asked for address in one.addresses}
    for version in (4, 6):
        pools = [segment.pool(one) for one in subnets if one.subnet.version == version]
        room = sum(pool.size for pool in pools) - sum(any(address in pool for pool in pools) for address in given)
        if pools and choosing > room:
            what = f"the pool of {name} has room for {max(0, room)} NICs in IPv{version}, and {choosing} are to choose"
            raise Usage(f"{what} from it", "give the network a larger range, or another subnet")


class _Filling:
    def __init__(self, context: Context, lab: Lab, links: Links) -> None:
        self._context = context
        self._lab = lab
        self._links = links
        self._findings = Findings()
        self._segments: dict[str, Segment] = {}
        self._held: dict[tuple[str, Address], str] = {}
        self._virt_types: dict[str, str] = {}
        try:
            self._key: bytes | None = read_key(context.state_dir) or b""
        except PermissionError:
            self._key = None

    def all(self) -> Wanted:
        lab, links, findings = self._lab, self._links, self._findings
        networks, shims, machines, endpoints = [], [], [], []
        for network in lab.networks:
            with self._at("network", network.name):
                name = self._parent(network.parent, network.mode)
                vlan = vlan_parent(name) if links.find(name) is None else None
                networks.append(network._replace(parent=vlan.link if vlan else name))
        self._networks = {network.name: network for network in networks}
        for shim in lab.shims:
            with self._at("shim", shim.parent):
                shims.append(shim._replace(parent=self._parent(shim.parent, MacvtapMode.BRIDGE)))
        for request in lab.machines:
            with findings.checking():
                machines.append(self._machine(request))
        for endpoint in lab.endpoints:
            with self._at("endpoint", endpoint.name):
                endpoints.append(self._endpoint(endpoint))
        nics = [*(nic for machine in machines for nic in machine.nics), *(endpoint.nic for endpoint in endpoints)]
        for name, segment in self._segments.items():
            with self._at("network", name):
                _check_room(segment, [nic.asked.addressing for nic in nics if nic.segment is segment])
        findings.finish()
        return Wanted(lab.name, tuple(networks), tuple(shims), tuple(machines), tuple(endpoints))

    @contextlib.contextmanager
    def _at(self, *thing: str | int) -> Iterator[None]:
        with self._findings.checking(), placed(self._lab, *thing):
            yield

    def _hold(self, name: str, nic: WantedNic) -> WantedNic:
        """That nobody else has its addresses: on the parent that it has by now, which the file need not name."""
        for address in nic.asked.addressing.addresses:
            if self._held.setdefault((nic.parent, address), name) != name:
                whose = self._held[nic.parent, address]
                raise Usage(f"the address {address} is {whose}'s already", f"give {name} another, or none")
        return nic

    def _parent(self, wanted: str, mode: MacvtapMode) -> str:
        return choose_parent(self._links, wanted or self._context.settings.parent, mode)

    def _segment(self, name: str) -> Segment:
        if name not in self._segments:
            store = self._context.reading_store
            known: Mapping[str, Network] = {one.name: one for one in store.networks.all()} if store else {}
            network = self._networks.get(name) or known.get(name)
            if network is None:
                raise no_network(name, [*self._networks, *known])
            self._segments[name] = segment_of(network)
        return self._segments[name]

    def _machine(self, request: CreateRequest) -> WantedMachine:
        nics = []
        for number, asked in enumerate(request.nics):
            with self._at("vm", request.name, number):
                nics.append(self._hold(request.name, self._nic(asked, shim=request.shim)))
        wish = None if self._key is None else digests(self._key, request)
        return WantedMachine(request, tuple(nics), self._virt_type(request.virt_type), wish)

    def _virt_type(self, asked: str) -> str:
        if asked not in self._virt_types:
            self._virt_types[asked] = choose_virt_type(asked or self._context.settings.virt_type, [])
        return self._virt_types[asked]

    def _nic(self, asked: NicRequest, *, shim: bool) -> WantedNic:
        if asked.libvirt_network:
            return WantedNic(asked, mtu=asked.mtu, shim=shim)
        if not asked.network:
            mode = asked.mode or MacvtapMode.BRIDGE
            parent = self._parent(asked.parent, mode)
            told = asked.addressing
            return WantedNic(asked, mode, parent, asked.mtu, shim, complete(told, parent) if told.static else told)
        segment = self._segment(asked.network)
        network = segment.network
        mtu = asked.mtu or network.mtu
        return WantedNic(asked, network.mode, network.parent, mtu, network.shim and shim, asked.addressing, segment)

    def _endpoint(self, request: EndpointRequest) -> WantedEndpoint:
        asked = NicRequest(
            parent=request.parent,
            mac=request.mac,
            mtu=request.mtu,
            addressing=request.addressing,
            network=request.network,
        )
        mode: Mode = request.ipvlan or request.mode or MacvlanMode.BRIDGE
        if not request.network:
            nic = self._hold(request.name, self._nic(asked._replace(mode=stands_for(mode)), shim=request.shim))
            return WantedEndpoint(request, mode, nic)
        nic = self._hold(request.name, self._nic(asked, shim=request.shim))
        if not request.ipvlan and request.mode is not MacvlanMode.SOURCE:
            mode = MacvlanMode(nic.mode.value)
        return WantedEndpoint(request, mode, nic._replace(mode=stands_for(mode)))
