"""The endpoints of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.errors import NotFound, Taken
from provisioner.host.leases import Leases, now
from provisioner.model.endpoint import Endpoint
from provisioner.model.names import printable

if TYPE_CHECKING:
    from provisioner.host.store import Store


class Endpoints:
    """Those of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Endpoint]:
        rows = self._store.rows("SELECT facts FROM endpoints ORDER BY name")
        return [Endpoint.from_json(row["facts"]) for row in rows]

    def on(self, parent: str) -> list[Endpoint]:
        """Those on a parent, of which a look at the host's links shows nothing."""
        return [endpoint for endpoint in self.all() if endpoint.nic.parent == parent]

    def get(self, name: str) -> Endpoint:
        """Raises NotFound."""
        rows = self._store.rows("SELECT facts FROM endpoints WHERE name = ?", (name,))
        if not rows:
            raise no_endpoint(name, [one.name for one in self.all()])
        return Endpoint.from_json(rows[0]["facts"])

    def remove(self, endpoint: Endpoint) -> None:
        """With its MAC and its leases; gone already is fine."""
        with self._store.change() as db:
            # A later endpoint of that name is another one.
            sql = "DELETE FROM endpoints WHERE name = ? AND json_extract(facts, '$.link') = ?"
            if db.execute(sql, (endpoint.name, endpoint.link)).rowcount:
                db.execute("DELETE FROM macs WHERE owner = ?", (endpoint.owner,))


def add(leases: Leases, endpoint: Endpoint) -> None:
    """In an open transaction, so that name, MAC and addresses are claimed together or not at all. Raises Taken."""
    if leases.db.execute("SELECT 1 FROM endpoints WHERE name = ?", (endpoint.name,)).fetchone():
        raise endpoint_exists(endpoint.name)
    leases.db.execute("INSERT INTO endpoints VALUES (?, ?, ?)", (endpoint.name, endpoint.to_json(), now()))


def change(leases: Leases, endpoint: Endpoint) -> None:
    """In an open transaction."""
    leases.db.execute("UPDATE endpoints SET facts = ? WHERE name = ?", (endpoint.to_json(), endpoint.name))


def no_endpoint(name: str, names: list[str]) -> NotFound:
    hint = f"there are {', '.join(names)}" if names else "make one: macvm endpoint create"
    return NotFound(f"there is no endpoint {printable(name, 70)}", hint)


def endpoint_exists(name: str) -> Taken:
    hint = f"choose another name, or delete that one: macvm endpoint delete {name}"
    return Taken(f"there is an endpoint {name} already", hint)
