"""The networks of a store, with what their pools hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from provisioner.errors import NotFound, Taken
from provisioner.host.leases import now
from provisioner.model.names import printable
from provisioner.model.network import Network, check_disjoint

if TYPE_CHECKING:
    from provisioner.host.store import Store


class Conflict(NamedTuple):
    """An address of a network's that another on the LAN was seen to have."""

    address: str
    mac: str
    seen: str


class Networks:
    """Those of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Network]:
        return [Network.from_json(row["facts"]) for row in self._store.rows("SELECT facts FROM networks ORDER BY name")]

    def find(self, name: str) -> Network | None:
        rows = self._store.rows("SELECT facts FROM networks WHERE name = ?", (name,))
        return Network.from_json(rows[0]["facts"]) if rows else None

    def get(self, name: str) -> Network:
        """Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise no_network(name, self.names())
        return found

    def names(self) -> list[str]:
        return [row["name"] for row in self._store.rows("SELECT name FROM networks ORDER BY name")]

    def add(self, network: Network) -> None:
        """Raises Taken, also where another network on its parent gives out the same addresses."""
        with self._store.change() as db:
            if db.execute("SELECT 1 FROM networks WHERE name = ?", (network.name,)).fetchone():
                raise network_exists(network.name)
            rows = db.execute("SELECT facts FROM networks WHERE parent = ?", (network.parent,))
            check_disjoint(network, (Network.from_json(row["facts"]) for row in rows))
            db.execute(
                "INSERT INTO networks VALUES (?, ?, ?, ?)", (network.name, network.parent, network.to_json(), now())
            )
            for one in network.subnets:
                first = str(one.given_out.first)
                db.execute("INSERT INTO pools VALUES (?, ?, ?)", (network.name, str(one.subnet), first))

    def change(self, network: Network) -> None:
        """All but its parent and its subnets, under which its leases are. Raises Taken as `add` does."""
        with self._store.change() as db:
            sql = "SELECT facts FROM networks WHERE parent = ? AND name <> ?"
            rows = db.execute(sql, (network.parent, network.name))
            check_disjoint(network, (Network.from_json(row["facts"]) for row in rows))
            db.execute("UPDATE networks SET facts = ? WHERE name = ?", (network.to_json(), network.name))
            for one in network.subnets:
                sql = "UPDATE pools SET next = ? WHERE network = ? AND subnet = ?"
                db.execute(sql, (str(one.given_out.first), network.name, str(one.subnet)))

    def remove(self, name: str) -> None:
        """Gone already is fine. Raises Taken while NICs are on it, naming their holders."""
        with self._store.change() as db:
            rows = db.execute("SELECT DISTINCT machine FROM macs WHERE network = ? ORDER BY 1", (name,)).fetchall()
            if rows:
                raise in_use(name, [row["machine"] for row in rows])
            db.execute("DELETE FROM networks WHERE name = ?", (name,))

    def holders(self, name: str) -> list[str]:
        """Names of the machines with a NIC on a network."""
        sql = "SELECT DISTINCT machine FROM macs WHERE network = ? ORDER BY 1"
        return [row["machine"] for row in self._store.rows(sql, (name,))]

    def used(self, name: str) -> dict[str, int]:
        """Subnet to the number of its addresses that are held."""
        sql = "SELECT subnet, COUNT(*) AS used FROM leases WHERE network = ? GROUP BY subnet"
        return {row["subnet"]: row["used"] for row in self._store.rows(sql, (name,))}

    def conflicts(self, name: str) -> list[Conflict]:
        sql = "SELECT address, mac, seen FROM conflicts WHERE network = ? ORDER BY seen, address"
        return [Conflict(**dict(row)) for row in self._store.rows(sql, (name,))]


def no_network(name: str, names: list[str]) -> NotFound:
    hint = f"there are {', '.join(names)}" if names else "make one: macvm network create"
    return NotFound(f"there is no network {printable(name, 70)}", hint)


def network_exists(name: str) -> Taken:
    return Taken(f"there is a network {name} already", f"choose another name, or see it: macvm network show {name}")


def in_use(name: str, holders: list[str]) -> Taken:
    shown = ", ".join(holders[:8]) + (f" and {len(holders) - 8} more" if len(holders) > 8 else "")
    hint = f"delete those first, or detach their NICs: macvm network show {name}"
    return Taken(f"the network {name} is in use by {shown}", hint)
