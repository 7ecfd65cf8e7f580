"""What `endpoint create` and `endpoint delete` would do, as lines of `ip`, `nsenter` and `sysctl`."""

from __future__ import annotations

from collections.abc import Iterable

from provisioner.actions import endpoint_plan as plans
from provisioner.actions import passthrough, shims
from provisioner.actions.endpoint_spaces import alias_of, first_of_each_family, resolv_conf
from provisioner.actions.endpoint_views import get, list_all
from provisioner.actions.request import EndpointRequest
from provisioner.actions.shim_preview import routing_lines, unrouting_lines
from provisioner.context import Context
from provisioner.host import links
from provisioner.model.endpoint import Endpoint, IpvlanMode, MacvlanMode
from provisioner.model.nic import Interface


def create(context: Context, request: EndpointRequest) -> list[str]:
    """Raises Problems, as `create` does."""
    return planned(context, plans.plan(context, request))


def planned(context: Context, plan: plans.Plan) -> list[str]:
    endpoint, nic = plan.endpoint, plan.endpoint.nic
    inside, space = _inside(endpoint)
    lines = [f"ip netns add {endpoint.namespace}"] if endpoint.own else []
    lines += passthrough.making_lines(nic.parent, nic.mode)
    lines += [
        f"ip link add {endpoint.link} link {nic.parent} {_kind(endpoint)}",
        *(f"ip link set {endpoint.link} type macvlan macaddr add {mac}" for mac in endpoint.sources),
        f"ip link set {endpoint.link} alias {alias_of(endpoint)}",
        f"ip link set {endpoint.link} netns {space} name eth0",
        *([f"{inside} link set lo up"] if endpoint.own else []),
        *([f"{inside} link set eth0 mtu {nic.mtu}"] if nic.mtu else []),
        f"{inside} link set eth0 up",
        *(f"{inside} address add {interface} dev eth0{_nodad(interface)}" for interface in nic.addressing.static),
    ]
    for gateway in first_of_each_family(nic.addressing.gateways):
        lines.append(f"{inside} route add default via {gateway} dev eth0 proto {links.PROTOCOL}")
    if nic.addressing.dns:
        servers = ", ".join(map(str, nic.addressing.dns))
        lines.append(f"# {resolv_conf(context, endpoint)}: nameserver {servers}")
    lines += routing_lines(context, shims.guest_routes(nic), modes={nic.mac: nic.mode})
    return [*lines, *(f"# note: {note}" for note in plan.notes)]


def _nodad(interface: Interface) -> str:
    """macvm asks the LAN itself."""
    return " nodad" if interface.version == 6 else ""


def _kind(endpoint: Endpoint) -> str:
    if isinstance(endpoint.mode, IpvlanMode):
        return f"type ipvlan mode {endpoint.mode.value}"
    if endpoint.mode is MacvlanMode.PASSTHROUGH:
        return f"type macvlan mode {links.kernel_mode(endpoint.nic.mode)}"
    return f"address {endpoint.nic.mac} type macvlan mode {endpoint.mode.value}"


def _inside(endpoint: Endpoint) -> tuple[str, str]:
    """How `ip` is run in the namespace, and how it names it."""
    where = endpoint.namespace
    if where.isdigit():
        return f"nsenter --net=/proc/{where}/ns/net ip", where
    return (f"nsenter --net={where} ip" if "/" in where else f"ip -n {where}"), where


def delete(context: Context, names: Iterable[str]) -> list[str]:
    """Raises NotFound."""
    lines, routes = removal(context, names)
    return lines + unrouting_lines(context, routes)


def removal(context: Context, names: Iterable[str]) -> tuple[list[str], list[shims.GuestRoute]]:
    """The lines, and the routes that go then. Raises NotFound."""
    every, store = [get(context, name) for name in dict.fromkeys(names)], context.reading_store
    lines = [line for endpoint in every for line in _removing_lines(context, endpoint)]
    return lines, [route for endpoint in every for route in shims.routes_of(store, endpoint.owner)] if store else []


def _removing_lines(context: Context, endpoint: Endpoint) -> list[str]:
    name, store = endpoint.name, context.reading_store
    found = next(one for one in list_all(context) if one.name == name)
    inside, _ = _inside(endpoint)
    lines = [f"{inside} link del {found.device}"] if found.device else []
    lines += [f"ip netns delete {endpoint.namespace}"] if endpoint.own else []
    return lines + ([f"rm {path}" for path in store.files_of(endpoint.owner)] if store else [])
