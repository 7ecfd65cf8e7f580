"""Addresses that running guests were heard to have: of a store, until the guests run no more."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from provisioner.host.leases import now

if TYPE_CHECKING:
    from provisioner.host.store import Store

#: Addresses of one guest: some have several, and one that makes them up does not fill the store.
_MOST = 32


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

    def learn(self, mac: str, parent: str, addresses: Iterable[str], lost: Iterable[str] = ()) -> bool:
        """Keeps addresses of a guest, the 32 heard last, and forgets others; "" in `lost` is all IPv4 ones. Whether
        anything is new."""
        addresses, lost, at = list(addresses), list(lost), now()
        rows = self._store.rows("SELECT * FROM heard WHERE mac = ?", (mac,))
        known = {row["address"]: row for row in rows}
        new = bool(lost) or not known.keys() >= set(addresses)
        if not new and all(known[address]["seen"] == at for address in addresses):
            return False  # to the second: a guest that floods costs no write for each frame
        since = {address: row["since"] for address, row in known.items()}
        latest = "SELECT rowid FROM heard WHERE mac = ? ORDER BY rowid DESC LIMIT ?"
        with self._store.change() as db:
            if "" in lost:
                db.execute("DELETE FROM heard WHERE mac = ? AND address NOT LIKE '%:%'", (mac,))
            db.executemany("DELETE FROM heard WHERE mac = ? AND address = ?", [(mac, address) for address in lost])
            # A row that is replaced is the newest by its number, whatever the clock says.
            kept = [(mac, address, parent, since.get(address, at), at) for address in addresses]
            db.executemany("INSERT OR REPLACE INTO heard VALUES (?, ?, ?, ?, ?)", kept)
            db.execute(f"DELETE FROM heard WHERE mac = ? AND rowid NOT IN ({latest})", (mac, mac, _MOST))
        return new

    def keep_only(self, macs: Collection[str]) -> list[str]:
        """Forgets all other guests. Returns the parents that they were behind."""
        gone = [one for one in self.all() if one.mac not in macs]
        if gone:
            with self._store.change() as db:
                db.executemany("DELETE FROM heard WHERE mac = ?", [(one.mac,) for one in gone])
        return sorted({one.parent for one in gone})
