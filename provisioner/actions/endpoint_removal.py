"""Taking endpoints away: what `endpoint delete` does, what recovery does after a kill, and `gc` after a reboot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from provisioner.actions import endpoint_spaces as spaces
from provisioner.actions import passthrough, shims
from provisioner.actions.endpoint_views import get
from provisioner.actions.removal import Remains, take_all
from provisioner.actions.shims import GuestRoute
from provisioner.context import Context
from provisioner.errors import MacvmError, PartlyDone
from provisioner.host import netns
from provisioner.host.endpoints import Endpoints
from provisioner.model.endpoint import Endpoint

if TYPE_CHECKING:
    from provisioner.host.journal import Unfinished, Work
    from provisioner.host.store import Store


def facts(endpoint: Endpoint, routes: Iterable[GuestRoute]) -> dict[str, Any]:
    """What the journal is to keep, for `settle`."""
    return {"endpoint": endpoint.to_json(), **Remains(endpoint.name, endpoint.owner, tuple(routes)).facts()}


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
    routes = shims.routes_of(context.store, endpoint.owner)
    work = context.journal.begin("endpoint-delete", endpoint.name, endpoint.owner, facts(endpoint, routes))
    _take_away(context, work, endpoint, routes)


def _take_away(context: Context, work: Work, endpoint: Endpoint, routes: Sequence[GuestRoute]) -> None:
    """Every step, any number of times, from any state; closes the journal's row when all went well.

    Raises PartlyDone, and the row then stays.
    """

    def namespace() -> None:
        if endpoint.own:
            netns.remove(endpoint.namespace)

    def leases() -> None:
        Endpoints(context.store).remove(endpoint)
        passthrough.give_back(context, endpoint.owner)

    # A link that is still there keeps its address.
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("link", lambda: spaces.remove_link(endpoint)),
        ("namespace", namespace),
        ("files", lambda: spaces.remove_files(context, endpoint)),
        ("leases", leases),
        ("routes", lambda: shims.release(context, routes)),
    )
    take_all(work, endpoint.name, steps)


def settle(context: Context, row: Unfinished, work: Work) -> None:
    """What a killed macvm left of an endpoint goes, whether it was being made or deleted. Raises PartlyDone."""
    endpoint = Endpoint.from_json(row.facts["endpoint"])
    _take_away(context, work, endpoint, Remains.read(row.machine, row.uuid, row.facts).routes)


def release_gone(context: Context) -> list[str]:
    """Gives back what endpoints hold whose namespace or link is gone, as after a reboot, and says so."""
    gone = find_gone(context.store)
    for endpoint in gone:
        _delete(context, endpoint)
    return [f"released: {held_by(endpoint)}" for endpoint in gone]


def find_gone(store: Store) -> list[Endpoint]:
    """Those whose namespace or link is gone. The journal is read last: what is stored by then, and under way, has its
    row there. Raises Unable without the right to look into namespaces."""
    everyone = Endpoints(store).all()
    busy = {row["uuid"] for row in store.rows("SELECT uuid FROM journal")}
    return [endpoint for endpoint in everyone if endpoint.owner not in busy and not spaces.is_there(endpoint)]


def held_by(endpoint: Endpoint) -> str:
    """What `gc` says that it gives back."""
    return f"what the endpoint {endpoint.name} held, which is gone"
