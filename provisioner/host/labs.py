"""The labs of a store: where their files are, who changes them, and what they made beside their machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from provisioner.host.leases import now

if TYPE_CHECKING:
    from provisioner.host.store import Store

_KEY = "labs.key"


class StoredLab(NamedTuple):
    """`path` is its file, "" for a lab that was put together by a program; `holder` the command that changes it, or did
    last."""

    name: str
    path: str
    holder: str
    since: str


class Thing(NamedTuple):
    """What a lab made. `kind` is `network`, `shim` (named by its parent), `to` (an address that a shim serves) or
    `endpoint`."""

    kind: str
    name: str


class Labs:
    """Those of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[StoredLab]:
        return [StoredLab(**dict(row)) for row in self._store.rows("SELECT * FROM labs ORDER BY name")]

    def find(self, name: str) -> StoredLab | None:
        rows = self._store.rows("SELECT * FROM labs WHERE name = ?", (name,))
        return StoredLab(**dict(rows[0])) if rows else None

    def hold(self, name: str, path: str, holder: str) -> None:
        """Keeps a lab, with who changes it from now on. Without a path the file stays that which it was."""
        sql = (
            "INSERT INTO labs VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,"
            " path = CASE excluded.path WHEN '' THEN path ELSE excluded.path END"
        )
        with self._store.change() as db:
            db.execute(sql, (name, path, holder, now()))

    def forget(self, name: str) -> None:
        """A lab of which nothing is left."""
        with self._store.change() as db:
            db.execute("DELETE FROM labs WHERE name = ?", (name,))

    def things(self) -> dict[Thing, str]:
        """What labs made, each with the lab's name."""
        rows = self._store.rows("SELECT * FROM lab_things ORDER BY kind, name")
        return {Thing(row["kind"], row["name"]): row["lab"] for row in rows}

    def own(self, lab: str, thing: Thing) -> None:
        """Before it is made, so that a killed macvm's is known for the lab's."""
        with self._store.change() as db:
            db.execute("INSERT OR IGNORE INTO lab_things VALUES (?, ?, ?)", (lab, *thing))

    def disown(self, thing: Thing) -> None:
        with self._store.change() as db:
            db.execute("DELETE FROM lab_things WHERE kind = ? AND name = ?", thing)


def read_key(state_dir: Path) -> bytes | None:
    """What digests of secrets are made with, so that nobody who reads them can try passwords; None where there is none
    yet. Raises PermissionError for all but root."""
    try:
        return (state_dir / _KEY).read_bytes()
    except FileNotFoundError:
        return None


def make_key(state_dir: Path) -> bytes:
    """As `read_key`; made when missing, whole or not at all."""
    while (found := read_key(state_dir)) is None:
        new = state_dir / f".{_KEY}.{os.getpid()}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(32))
                os.fsync(file.fileno())
            os.link(new, state_dir / _KEY)
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return found
