"""Plans an endpoint: looks at everything, changes nothing, and reports every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from provisioner.actions import shims
from provisioner.actions.addresses import Segment
from provisioner.actions.parents import check_parent, choose_parent
from provisioner.actions.request import EndpointRequest, NicRequest
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
from provisioner.errors import Taken, Usage
from provisioner.host import netns
from provisioner.host.endpoints import endpoint_exists
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
from provisioner.model.nic import Nic


class Plan(NamedTuple):
    """The endpoint with the addresses that it would get now: the claim decides."""

    endpoint: Endpoint
    segments: Mapping[str, Segment]
    notes: list[str]


def plan(context: Context, request: EndpointRequest, others: Sequence[Nic] = ()) -> Plan:
    """Changes nothing. `others` are the NICs of what is made before this one. Raises Problems."""
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
            nic = give_addresses(context, nic, there, [*others])
            check_addresses(context, nic, [*others])
        findings.notes += _notes(name, mode, nic) if nic.shim else []
    findings.finish()
    link = LINK_PREFIX + os.urandom(6).hex()
    endpoint = Endpoint(name, mode, nic, namespace, link, not request.netns, identity, request.sources)
    return Plan(endpoint, there.segments, findings.notes)


def _check_name(context: Context, name: str, there: Surroundings) -> None:
    if any(machine.name == name for machine in there.machines):
        raise Taken(f"a machine named {name} exists already", "choose another name: endpoints and machines share them")
    if context.reading_store and context.reading_store.has_endpoint(name):
        raise endpoint_exists(name)


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
