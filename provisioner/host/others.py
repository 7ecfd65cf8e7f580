"""What the user has said of shims: which are to stay, and which guests libvirt does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from provisioner.host.leases import now

if TYPE_CHECKING:
    from provisioner.host.store import Store


class Other(NamedTuple):
    """A guest that libvirt does not know, a container's macvlan say."""

    parent: str
    address: str
    mac: str
    since: str


class Others:
    """Those of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Other]:
        return [Other(**dict(row)) for row in self._store.rows("SELECT * FROM others ORDER BY parent, since, address")]

    def behind(self, parent: str) -> list[Other]:
        rows = self._store.rows("SELECT * FROM others WHERE parent = ? ORDER BY since, address", (parent,))
        return [Other(**dict(row)) for row in rows]

    def keep(self, parent: str, address: str, mac: str) -> None:
        """A guest that is known already has the new MAC."""
        with self._store.change() as db:
            db.execute("INSERT OR REPLACE INTO others VALUES (?, ?, ?, ?)", (parent, address, mac, now()))

    def forget(self, parent: str, address: str) -> None:
        with self._store.change() as db:
            db.execute("DELETE FROM others WHERE parent = ? AND address = ?", (parent, address))

    def held(self) -> list[str]:
        """Parents whose shim stays while nothing is behind it."""
        return [row["parent"] for row in self._store.rows("SELECT parent FROM shims ORDER BY parent")]

    def hold(self, parent: str) -> None:
        with self._store.change() as db:
            db.execute("INSERT OR IGNORE INTO shims VALUES (?, ?)", (parent, now()))

    def let_go(self, parent: str) -> None:
        with self._store.change() as db:
            db.execute("DELETE FROM shims WHERE parent = ?", (parent,))
