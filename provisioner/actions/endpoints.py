"""Making endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from provisioner.actions import addresses, passthrough, shims
from provisioner.actions import endpoint_spaces as spaces
from provisioner.actions.endpoint_plan import Plan, plan
from provisioner.actions.endpoint_removal import facts
from provisioner.actions.endpoint_views import EndpointView, view
from provisioner.actions.request import EndpointRequest
from provisioner.actions.undo import Undo, carry_out
from provisioner.context import Context
from provisioner.errors import NotFound
from provisioner.host import endpoints as stored
from provisioner.host import netns
from provisioner.host.endpoints import Endpoints
from provisioner.model.endpoint import IpvlanMode
from provisioner.model.nic import Address, Nic

if TYPE_CHECKING:
    from provisioner.actions.probing import InUse
    from provisioner.host.journal import Work
    from provisioner.host.leases import Leases


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
    return view(making.endpoint, context.store.leases(owner=owner)), [*made.notes, *notes]


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
        return facts(self.endpoint, shims.guest_routes(nic))

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
