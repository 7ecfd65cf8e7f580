"""Endpoints: made, listed, entered and deleted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from provisioner.actions import addresses, passthrough, shims
from provisioner.actions import endpoint_spaces as spaces
from provisioner.actions.parents import check_parent, choose_parent
from provisioner.actions.removal import Remains
from provisioner.actions.request import NicRequest
from provisioner.actions.shims import GuestRoute
from provisioner.actions.undo import Undo, carry_out
from provisioner.actions.views import AddressView
from provisioner.actions.wiring import (
    Findings,
    Surroundings,
    check_addresses,
    check_endpoints,
    choose_mac,
    give_addresses,
    note_reachability,
    on_network,
)
from provisioner.context import Context
from provisioner.errors import MacvmError, NotFound, PartlyDone, Taken, Unable, Usage
from provisioner.host import endpoints as stored
from provisioner.host import netlink, netns
from provisioner.host.endpoints import Endpoints
from provisioner.model.endpoint import (
    LINK_PREFIX,
    Endpoint,
    IpvlanMode,
    MacvlanMode,
    Mode,
    check_mode,
    namespace_name,
    stands_for,
    store_key,
)
from provisioner.model.mode import MacvtapMode
from provisioner.model.names import Mac, printable
from provisioner.model.nic import Address, Addressing, Nic

if TYPE_CHECKING:
    from provisioner.actions.addresses import Segment
    from provisioner.actions.probing import InUse
    from provisioner.host.journal import Unfinished, Work
    from provisioner.host.leases import Lease, Leases


class EndpointRequest(NamedTuple):
    """What `endpoint create` is asked for; what is left empty the plan chooses, or the network decides. `netns` names a
    namespace that exists: a process, a name or a path."""

    name: str
    mode: MacvlanMode | None = None
    ipvlan: IpvlanMode | None = None
    parent: str = ""
    network: str = ""
    addressing: Addressing = Addressing()
    mac: Mac | None = None
    mtu: int | None = None
    sources: tuple[Mac, ...] = ()
    netns: str = ""
    shim: bool = True
    take_parent: bool = False
    probe: str = "fast"


class EndpointView(NamedTuple):
    """`state` is `up`, `down`, `gone` where its namespace or its link is, or `unknown` without the right to look.
    `device` is the link's name in there, and `type` macvlan or ipvlan."""

    name: str
    state: str
    type: str
    mode: str
    parent: str
    network: str | None
    namespace: str
    device: str | None
    mac: str | None
    addresses: tuple[AddressView, ...]
    allow_source: tuple[str, ...]


class Plan(NamedTuple):
    """The endpoint with the addresses that it would get now: the claim decides."""

    endpoint: Endpoint
    segments: Mapping[str, Segment]
    notes: list[str]


def plan(context: Context, request: EndpointRequest) -> Plan:
    """Changes nothing. Raises Problems."""
    context.require_local("making an endpoint")
    findings, there = Findings(), Surroundings.look(context)
    name = request.name
    namespace, identity = "", (0, 0)
    with findings.checking():
        namespace = namespace_name(name)
        _check_name(context, name, there)
        if request.netns:
            namespace, identity = _foreign(request.netns)
        elif namespace in netns.names():
            hint = f"another name, or --netns {namespace}; ip netns delete {namespace} removes it"
            raise Taken(f"there is a network namespace {namespace} already, and no endpoint has it", hint)
    mode: Mode = request.ipvlan or request.mode or MacvlanMode.BRIDGE
    nic = Nic(Mac.random())
    with findings.checking():
        check_mode(request.mode, request.ipvlan, request.sources)
        _check_addressing(request)
        mode, nic = _wire(context, request, there)
        with findings.checking():
            nic = nic._replace(mac=_choose_mac(context, request, mode, nic, there))
        with findings.checking():
            nic = give_addresses(context, nic, there, [])
            check_addresses(context, nic, [])
        findings.notes += _notes(name, mode, nic) if nic.shim else []
    findings.finish()
    link = LINK_PREFIX + os.urandom(6).hex()
    endpoint = Endpoint(name, mode, nic, namespace, link, not request.netns, identity, request.sources)
    return Plan(endpoint, there.segments, findings.notes)


def _check_name(context: Context, name: str, there: Surroundings) -> None:
    if any(machine.name == name for machine in there.machines):
        raise Taken(f"a machine named {name} exists already", "choose another name: endpoints and machines share them")
    if context.reading_store and context.reading_store.has_endpoint(name):
        raise stored.endpoint_exists(name)


def _foreign(where: str) -> tuple[str, tuple[int, int]]:
    """A namespace that somebody else made, and what tells it from another of that name later. Raises NotFound, Usage
    for the host's own."""
    where = os.path.abspath(where) if "/" in where else where
    fd, own = netns.open_namespace(where), netns.own()
    try:
        if netns.identity(fd) == netns.identity(own):
            hint = "name another one, or leave --netns out, and macvm makes one"
            raise Usage(f"the network namespace of {printable(where)} is this host's own", hint)
        return where, netns.identity(fd)
    finally:
        os.close(fd)
        os.close(own)


def _check_addressing(request: EndpointRequest) -> None:
    told, name = request.addressing, request.name
    if told.dhcp:
        hint = f"--ip none, and then a client of yours: macvm endpoint exec {name} -- dhclient eth0"
        raise Usage("macvm runs no DHCP client in an endpoint", hint)
    if told.gateways and not (told.static or told.auto):
        raise Usage("--gateway goes with an address, and there is none", "say --ip too")
    if request.mac and (request.ipvlan or request.mode is MacvlanMode.PASSTHROUGH):
        what = "an ipvlan" if request.ipvlan else "a passthrough macvlan"
        raise Usage(f"--mac is not possible here: {what} has its parent's MAC", "leave --mac out")


def _wire(context: Context, request: EndpointRequest, there: Surroundings) -> tuple[Mode, Nic]:
    """Mode, parent and MTU; a network's are its own, but for what no network can say."""
    beyond: Mode | None = request.ipvlan or (request.mode if request.mode is MacvlanMode.SOURCE else None)
    said = MacvtapMode(request.mode.value) if request.mode and not beyond else None
    if request.network:
        network = there.segment(context, request.network).network
        if beyond and network.mode is not MacvtapMode.BRIDGE:
            what = f"--ipvlan {beyond.value}" if request.ipvlan else "--mode source"
            hint = f"{what} is possible on a network in mode bridge; make one for it: macvm network create"
            raise Usage(f"--mode is decided by the network {network.name}: {network.mode.value}", hint)
        asked = NicRequest(said, request.parent, mtu=request.mtu, addressing=request.addressing, network=network.name)
        nic = on_network(there, asked, network, take_parent=request.take_parent)
        mode = beyond or MacvlanMode(network.mode.value)
    else:
        mode = beyond or request.mode or MacvlanMode.BRIDGE
        name = choose_parent(there.links, request.parent or context.settings.parent, stands_for(mode))
        parent = check_parent(
            there.links,
            name,
            stands_for(mode),
            request.mtu,
            take=request.take_parent,
            wireless=isinstance(mode, IpvlanMode),
        )
        nic = Nic(Mac.random(), parent=parent.name, mtu=request.mtu, addressing=request.addressing)
    check_endpoints(context, nic.parent, mode)
    if isinstance(mode, IpvlanMode):
        _check_ipvlan(there, nic.parent)
    if mode is MacvlanMode.PASSTHROUGH and request.mac:
        raise Usage("--mac is not possible here: a passthrough macvlan has its parent's MAC", "leave --mac out")
    return mode, nic._replace(mode=stands_for(mode), shim=nic.shim and request.shim)


def _check_ipvlan(there: Surroundings, name: str) -> None:
    """As the kernel would refuse it; macvm's idle shim gives way."""
    parent = there.links.find(name)
    shim = shims.find_shim(parent) if parent else None
    holders = [f"{link.name} ({link.kind})" for link in there.links.on(parent) if link != shim] if parent else []
    if holders:
        hint = "a link carries macvlans and macvtaps, or ipvlans, never both: choose another parent"
        raise Taken(f"{name} is in use by {', '.join(holders)}", hint)


def _choose_mac(context: Context, request: EndpointRequest, mode: Mode, nic: Nic, there: Surroundings) -> Mac:
    return store_key(request.name, mode, choose_mac(context, request.mac, nic, there, []))


def _notes(name: str, mode: Mode, nic: Nic) -> list[str]:
    """What the mode means for reachability."""
    if isinstance(mode, IpvlanMode):
        return [f"the host cannot reach {name}: an ipvlan and the link it sits on do not talk to one another"]
    if mode is MacvlanMode.SOURCE:
        return [f"the host cannot reach {name}: what a source macvlan asks comes back to itself alone"]
    notes: list[str] = []
    note_reachability(nic, notes, name)
    return notes


def create(context: Context, request: EndpointRequest) -> tuple[EndpointView, list[str]]:
    """Makes an endpoint, or leaves nothing behind. Returns notes too.

    Raises Problems from the plan; Taken, Unable and what else the kernel refuses.
    """
    context.require_local_root("making an endpoint")
    made = plan(context, request)
    making = _Making(context, made, request.probe)
    owner = made.endpoint.owner
    work = context.journal.begin_claiming("endpoint-create", request.name, owner, making.claim)
    notes = carry_out(work, lambda undo: making.steps(work, undo))
    return _view(making.endpoint, context.store.leases()), [*made.notes, *notes]


class _Making:
    """A create under way. `endpoint` gets its addresses when they are claimed."""

    def __init__(self, context: Context, made: Plan, probe: str) -> None:
        self.endpoint = made.endpoint
        self._context = context
        self._segments = made.segments
        self._probe = probe

    def claim(self, leases: Leases) -> Mapping[str, Any]:
        endpoint = self.endpoint
        stored.add(leases, endpoint)
        nic = addresses.claim(leases, endpoint.owner, endpoint.name, [endpoint.nic], self._segments)[0]
        return self._claimed(leases, nic)

    def _claim_others(self, leases: Leases, found: Sequence[InUse], avoid: Collection[Address]) -> Mapping[str, Any]:
        from provisioner.actions import probing

        owner, name, nic = self.endpoint.owner, self.endpoint.name, self.endpoint.nic
        return self._claimed(leases, probing.take_others(leases, owner, name, [nic], self._segments, found, avoid)[0])

    def _claimed(self, leases: Leases, nic: Nic) -> Mapping[str, Any]:
        self.endpoint = self.endpoint._replace(nic=nic)
        stored.change(leases, self.endpoint)
        return _facts(self.endpoint, shims.guest_routes(nic))

    def steps(self, work: Work, undo: Undo) -> list[str]:
        context, owner = self._context, self.endpoint.owner
        undo.then(lambda: shims.release(context, shims.guest_routes(self.endpoint.nic)))
        undo.then(lambda: passthrough.give_back(context, owner))
        undo.then(lambda: Endpoints(context.store).remove(self.endpoint))
        undo.then(lambda: spaces.remove_files(context, self.endpoint))
        notes = self._settle_addresses(work, undo)
        with spaces.opened(self.endpoint) as fd:
            if fd is None:
                hint = "is the container still running? name a process that is in it"
                raise NotFound(f"the network namespace {self.endpoint.namespace} is gone", hint)
            notes += self._move_in(work, undo, fd)
        if self.endpoint.nic.addressing.dns:
            with work.step("files"):
                spaces.write_files(context, self.endpoint)
        routes = shims.guest_routes(self.endpoint.nic)
        if routes:
            with work.step("routes"):
                notes += shims.ensure(context, routes)
        return notes

    def _settle_addresses(self, work: Work, undo: Undo) -> list[str]:
        """The LAN is asked while the namespace is made, and before the link: passthrough and ipvlan leave no room on
        the parent to ask from."""
        if not self.endpoint.nic.network:
            self._make_namespace(work, undo)
            return []
        from provisioner.actions import probing

        context, probe = self._context, self._probe
        with contextlib.closing(probing.Question(context, work, [self.endpoint.nic], probe)) as question:
            self._make_namespace(work, undo)
            return probing.hear(context, work, question, lambda: [self.endpoint.nic], self._claim_others, probe)

    def _make_namespace(self, work: Work, undo: Undo) -> None:
        if not self.endpoint.own:
            return
        name = self.endpoint.namespace
        # One of that name that came since the plan is somebody else's; making it then fails.
        foreign = name in netns.names()
        undo.then(lambda: None if foreign else netns.remove(name))
        with work.step("namespace"):
            netns.create(name)

    def _move_in(self, work: Work, undo: Undo, fd: int) -> list[str]:
        context, endpoint = self._context, self.endpoint
        with work.step("link"):
            undo.then(lambda: spaces.remove_link(endpoint))
            passthrough.take(context, endpoint.owner, endpoint.nic.parent, endpoint.nic.mode)
            if isinstance(endpoint.mode, IpvlanMode):
                shims.give_way(context, endpoint.nic.parent)
            link = spaces.make_link(endpoint, fd)
        with work.step("inside"):
            return spaces.furnish(endpoint, fd, link)


def _facts(endpoint: Endpoint, routes: Iterable[GuestRoute]) -> dict[str, Any]:
    return {"endpoint": endpoint.to_json(), **Remains(endpoint.name, endpoint.owner, tuple(routes)).facts()}


def get(context: Context, name: str) -> Endpoint:
    """Raises NotFound."""
    if context.reading_store is None:
        raise stored.no_endpoint(name, [])
    return Endpoints(context.reading_store).get(name)


def list_all(context: Context) -> list[EndpointView]:
    store = context.reading_store
    if store is None:
        return []
    leases = store.leases()
    return [_view(endpoint, leases) for endpoint in Endpoints(store).all()]


def _view(endpoint: Endpoint, leases: Sequence[Lease]) -> EndpointView:
    link, state = None, "unknown"
    with contextlib.suppress(Unable), spaces.opened(endpoint) as fd:
        link = spaces.find_link(endpoint, fd) if fd is not None else None
        state = ("up" if link.up else "down") if link else "gone"
    nic = endpoint.nic
    parent = netlink.find_link(nic.parent) if endpoint.shares_mac else None
    mac = (parent.mac if parent else None) if endpoint.shares_mac else nic.mac
    held = (lease for lease in leases if lease.owner == endpoint.owner)
    return EndpointView(
        name=endpoint.name,
        state=state,
        type=endpoint.kind,
        mode=endpoint.mode.value,
        parent=nic.parent,
        network=nic.network or None,
        namespace=endpoint.namespace,
        device=link.name if link else None,
        mac=mac,
        addresses=tuple(AddressView(lease.address, "lease", lease.since) for lease in held),
        allow_source=endpoint.sources,
    )


def enter(context: Context, name: str, argv: Sequence[str]) -> NoReturn:
    """Replaces this process by a program in an endpoint. Raises NotFound, CannotRun, Unable."""
    endpoint = get(context, name)
    with spaces.opened(endpoint) as fd:
        if fd is None or spaces.find_link(endpoint, fd) is None:
            what = "link" if fd is not None else "network namespace"
            hint = f"delete it, and make it again: macvm endpoint delete {name}"
            raise NotFound(f"the endpoint {name} has no {what} any more", hint)
        servers = spaces.resolv_conf(context, endpoint)
        netns.enter(fd, argv, servers if servers.exists() else None)


def delete(context: Context, names: Sequence[str]) -> list[str]:
    """Takes away what `create` made, and nothing else; a namespace that somebody else made stays.

    Goes on past an error. Returns the names of those that are gone. Raises NotFound, PartlyDone.
    """
    context.require_local_root("deleting an endpoint")
    doomed = [get(context, name) for name in dict.fromkeys(names)]
    gone: list[str] = []
    problems: list[MacvmError] = []
    for endpoint in doomed:
        try:
            _delete(context, endpoint)
        except MacvmError as error:
            problems.append(error)
        else:
            gone.append(endpoint.name)
    if problems:
        raise PartlyDone("; ".join(problem.message for problem in problems), problems[0].hint)
    return gone


def _delete(context: Context, endpoint: Endpoint) -> None:
    routes = shims.routes_of(context.store.leases(), endpoint.owner)
    facts = _facts(endpoint, routes)
    work = context.journal.begin("endpoint-delete", endpoint.name, endpoint.owner, facts)
    _take_away(context, work, endpoint, routes)


def _take_away(context: Context, work: Work, endpoint: Endpoint, routes: Sequence[GuestRoute]) -> None:
    """Every step, any number of times, from any state; closes the journal's row when all went well.

    Raises PartlyDone, and the row then stays.
    """
    problems: list[MacvmError] = []

    def namespace() -> None:
        if endpoint.own:
            netns.remove(endpoint.namespace)

    def leases() -> None:
        Endpoints(context.store).remove(endpoint)
        passthrough.give_back(context, endpoint.owner)

    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("link", lambda: spaces.remove_link(endpoint)),
        ("namespace", namespace),
        ("files", lambda: spaces.remove_files(context, endpoint)),
        ("leases", leases),
        ("routes", lambda: shims.release(context, routes)),
    )
    for name, act in steps:
        # A link that is still there keeps its address.
        if problems and name != "routes":
            continue
        try:
            with work.step(name):
                act()
        except MacvmError as error:
            problems.append(error)
    if problems:
        work.leave()
        said = "; ".join(problem.message for problem in problems)
        raise PartlyDone(f"{endpoint.name} is not wholly removed: {said}", problems[0].hint or "then: macvm gc")
    work.close()


def settle(context: Context, row: Unfinished, work: Work) -> None:
    """What a killed macvm left of an endpoint goes, whether it was being made or deleted. Raises PartlyDone."""
    endpoint = Endpoint.from_json(row.facts["endpoint"])
    _take_away(context, work, endpoint, Remains.read(row.machine, row.uuid, row.facts).routes)


def release_gone(context: Context) -> list[str]:
    """Gives back what endpoints hold whose namespace or link is gone, as after a reboot, and says so."""
    everyone = Endpoints(context.store).all()
    busy = {row.uuid for row in context.journal.unfinished()}
    gone = [endpoint for endpoint in everyone if endpoint.owner not in busy and not spaces.is_there(endpoint)]
    for endpoint in gone:
        _delete(context, endpoint)
    return [f"released: what the endpoint {endpoint.name} held, which is gone" for endpoint in gone]
