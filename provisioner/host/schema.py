"""The tables of the store, and how an older store becomes a newer one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from provisioner.errors import Unable

#: Each entry leads from one schema version (its place in the list) to the next. Entries are only ever added.
MIGRATIONS = (
    """
    CREATE TABLE macs (
      mac TEXT PRIMARY KEY, owner TEXT NOT NULL, machine TEXT NOT NULL, told TEXT NOT NULL) STRICT;
    CREATE TABLE leases (
      network TEXT NOT NULL, address TEXT NOT NULL, mac TEXT NOT NULL REFERENCES macs ON DELETE CASCADE,
      parent TEXT NOT NULL, since TEXT NOT NULL, PRIMARY KEY (network, address)) STRICT;
    CREATE TABLE files (
      path TEXT PRIMARY KEY, owner TEXT NOT NULL) STRICT;
    CREATE TABLE remembered (
      key TEXT PRIMARY KEY, was TEXT NOT NULL, owner TEXT NOT NULL) STRICT;
    CREATE TABLE images (
      name TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, login TEXT NOT NULL, kernel TEXT NOT NULL,
      initrd TEXT NOT NULL, size INTEGER NOT NULL, virtual_size INTEGER NOT NULL, stamp TEXT NOT NULL,
      added TEXT NOT NULL, PRIMARY KEY (name, version)) STRICT;
    CREATE TABLE journal (
      id INTEGER PRIMARY KEY AUTOINCREMENT, action TEXT NOT NULL, machine TEXT NOT NULL, uuid TEXT NOT NULL,
      facts TEXT NOT NULL, began TEXT NOT NULL, boot TEXT NOT NULL, clock REAL NOT NULL,
      looked REAL, daemon TEXT NOT NULL DEFAULT '') STRICT;
    CREATE TABLE steps (
      journal INTEGER NOT NULL REFERENCES journal ON DELETE CASCADE, step TEXT NOT NULL, state TEXT NOT NULL,
      PRIMARY KEY (journal, step)) STRICT;
    """,
    # An address belongs to one LAN, which the parent stands for: a bare parent and the networks on it share a key.
    # `released` are addresses that were given back, in that order; what was given last waits longest.
    """
    CREATE TABLE networks (
      name TEXT PRIMARY KEY, parent TEXT NOT NULL, facts TEXT NOT NULL, since TEXT NOT NULL) STRICT;
    CREATE TABLE pools (
      network TEXT NOT NULL REFERENCES networks ON DELETE CASCADE, subnet TEXT NOT NULL, next TEXT,
      PRIMARY KEY (network, subnet)) STRICT;
    CREATE TABLE released (
      turn INTEGER PRIMARY KEY AUTOINCREMENT, network TEXT NOT NULL, subnet TEXT NOT NULL, address TEXT NOT NULL,
      UNIQUE (network, address),
      FOREIGN KEY (network, subnet) REFERENCES pools ON DELETE CASCADE) STRICT;
    CREATE INDEX released_by_turn ON released (network, subnet, turn);
    CREATE TABLE conflicts (
      network TEXT NOT NULL REFERENCES networks ON DELETE CASCADE, address TEXT NOT NULL, mac TEXT NOT NULL,
      seen TEXT NOT NULL, PRIMARY KEY (network, address)) STRICT;
    CREATE TABLE endpoints (
      name TEXT PRIMARY KEY, facts TEXT NOT NULL, since TEXT NOT NULL) STRICT;
    ALTER TABLE macs ADD COLUMN network TEXT REFERENCES networks;
    ALTER TABLE leases RENAME TO old_leases;
    CREATE TABLE leases (
      parent TEXT NOT NULL, address TEXT NOT NULL, mac TEXT NOT NULL REFERENCES macs ON DELETE CASCADE,
      network TEXT NOT NULL, subnet TEXT NOT NULL, served INTEGER NOT NULL, since TEXT NOT NULL,
      PRIMARY KEY (parent, address)) STRICT;
    CREATE INDEX leases_by_mac ON leases (mac);
    CREATE INDEX leases_by_network ON leases (network, subnet);
    CREATE INDEX macs_by_owner ON macs (owner);
    CREATE INDEX macs_by_network ON macs (network);
    CREATE INDEX journal_by_machine ON journal (machine);
    INSERT INTO leases SELECT substr(network, 8), address, mac, '', '', parent <> '', since FROM old_leases;
    DROP TABLE old_leases;
    CREATE TRIGGER lease_released AFTER DELETE ON leases WHEN OLD.subnet <> '' BEGIN
      INSERT OR REPLACE INTO released (network, subnet, address) VALUES (OLD.network, OLD.subnet, OLD.address);
    END;
    """,
    # `others` are guests that libvirt does not know, told by the user; `shims` are parents whose shim stays while
    # nothing is behind it.
    """
    CREATE TABLE others (
      parent TEXT NOT NULL, address TEXT NOT NULL, mac TEXT NOT NULL, since TEXT NOT NULL,
      PRIMARY KEY (parent, address)) STRICT;
    CREATE TABLE shims (
      parent TEXT PRIMARY KEY, since TEXT NOT NULL) STRICT;
    """,
    # What running guests were heard to have, until they are not running any more.
    """
    CREATE TABLE heard (
      mac TEXT NOT NULL, address TEXT NOT NULL, parent TEXT NOT NULL, since TEXT NOT NULL, seen TEXT NOT NULL,
      PRIMARY KEY (mac, address)) STRICT;
    """,
    # Where an image was pulled from, and the checksum of the file that it was made from.
    """
    ALTER TABLE images ADD COLUMN source TEXT NOT NULL DEFAULT '';
    ALTER TABLE images ADD COLUMN checksum TEXT NOT NULL DEFAULT '';
    """,
    # `path` is the lab's file, `holder` the command that changes the lab, or did last; `lab_things` are what a lab made
    # beside its machines, which libvirt knows as its own.
    """
    CREATE TABLE labs (
      name TEXT PRIMARY KEY, path TEXT NOT NULL, holder TEXT NOT NULL, since TEXT NOT NULL) STRICT;
    CREATE TABLE lab_things (
      lab TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (kind, name)) STRICT;
    """,
)


def newer(path: Path, version: int) -> Unable:
    """The error for a store of a later macvm's."""
    return Unable(
        f"the store {path} was written by a newer macvm (schema {version}, this one knows {len(MIGRATIONS)})",
        "install that macvm again, or name another directory with --state-dir",
    )


def _statements(script: str) -> Iterator[str]:
    """A trigger's body has semicolons of its own."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement:
        yield statement  # which SQLite refuses: a quote or a trigger without its end


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings a store up to date, all of it or not at all; a copy of the old one stays beside it. Raises Unable."""
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise newer(path, version)
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection)
    if 0 < version < len(MIGRATIONS):
        # By another connection, since one that writes does not copy; and while this one holds the write lock, so that
        # what is copied is the old store as it ends, whoever else is about to bring it up to date.
        with _connected(path) as reader, _connected(Path(f"{path}.v{version}")) as copy:
            reader.backup(copy)
    for number in range(version, len(MIGRATIONS)):
        for statement in _statements(MIGRATIONS[number]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def _connected(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(path))
