"""Endpoints as they are: listed, and entered. Apart from what makes them, and its imports."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from provisioner.actions import endpoint_spaces as spaces
from provisioner.actions.views import AddressView
from provisioner.context import Context
from provisioner.errors import NotFound, Unable
from provisioner.host import netlink, netns
from provisioner.host.endpoints import Endpoints, no_endpoint
from provisioner.model.endpoint import Endpoint

if TYPE_CHECKING:
    from provisioner.host.leases import Lease


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


def get(context: Context, name: str) -> Endpoint:
    """Raises NotFound."""
    if context.reading_store is None:
        raise no_endpoint(name, [])
    return Endpoints(context.reading_store).get(name)


def list_all(context: Context) -> list[EndpointView]:
    store = context.reading_store
    if store is None:
        return []
    leases = store.leases()
    return [view(endpoint, leases) for endpoint in Endpoints(store).all()]


def view(endpoint: Endpoint, leases: Sequence[Lease]) -> EndpointView:
    """`leases` are at least its own."""
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
