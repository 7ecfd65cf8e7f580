"""Addresses that running guests were heard to have: of a store, until the guests run no more."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from provisioner.host.leases import now

if TYPE_CHECKING:
    from provisioner.host.store import Store


class Heard(NamedTuple):
    """`since` is when it was first heard, and `seen` when last."""

    mac: str
    address: str
    parent: str
    since: str
    seen: str


class HeardAddresses:
    """Those of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Heard]:
        return [Heard(**dict(row)) for row in self._store.rows("SELECT * FROM heard ORDER BY since, address")]

    def behind(self, parent: str) -> list[Heard]:
        """But those whose host's side is to be left alone. The first that was heard to have an address comes first."""
        alone = "SELECT mac FROM macs WHERE told <> '' AND json_extract(told, '$.shim') = 0"
        sql = f"SELECT * FROM heard WHERE parent = ? AND mac NOT IN ({alone}) ORDER BY since, mac"
        rows = self._store.rows(sql, (parent,))
        return [Heard(**dict(row)) for row in rows]

    def keep(self, mac: str, address: str, parent: str) -> bool:
        """Whether it is new."""
        sql = "INSERT INTO heard VALUES (?, ?, ?, ?, ?) ON CONFLICT (mac, address) DO UPDATE SET seen = excluded.seen"
        with self._store.change() as db:
            found = db.execute("SELECT 1 FROM heard WHERE mac = ? AND address = ?", (mac, address)).fetchone()
            db.execute(sql, (mac, address, parent, now(), now()))
        return not found

    def lose(self, mac: str, address: str = "") -> None:
        """One address of a guest, or all its IPv4 ones."""
        with self._store.change() as db:
            if address:
                db.execute("DELETE FROM heard WHERE mac = ? AND address = ?", (mac, address))
            else:
                db.execute("DELETE FROM heard WHERE mac = ? AND address NOT LIKE '%:%'", (mac,))

    def keep_only(self, macs: Collection[str]) -> list[str]:
        """Forgets all other guests. Returns the parents that they were behind."""
        gone = [one for one in self.all() if one.mac not in macs]
        if gone:
            with self._store.change() as db:
                db.executemany("DELETE FROM heard WHERE mac = ?", [(one.mac,) for one in gone])
        return sorted({one.parent for one in gone})
