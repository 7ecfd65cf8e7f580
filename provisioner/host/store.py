"""The store: what neither libvirt nor the kernel can hold. MACs, leases, images, files macvm made, unfinished work.

SQLite with WAL and `synchronous=FULL`, so that what was acknowledged survives a kill; every claim is a primary key
taken inside `BEGIN IMMEDIATE`, so that two processes cannot hold one address.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from provisioner.errors import MacvmError, Taken, Unable
from provisioner.host import locks

DATABASE = "macvm.db"

#: What lies beside it.
IMAGES, MACHINES = FOLDERS = ("images", "machines")

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
)

#: File systems whose locks SQLite's WAL cannot rely on (https://sqlite.org/wal.html: "does not work over a network").
_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs"})


_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

#: `(network, address, mac, parent)`; an empty parent where the host's side is left alone.
LeaseClaim = tuple[str, str, str, str]

NOTHING_TOLD: Mapping[str, str] = MappingProxyType({})


class StoreFailed(MacvmError):
    """The store cannot be read or written."""


class Lease(NamedTuple):
    """An address held by a NIC. `network` is a network's name, or `parent:DEV` for an address on a bare parent."""

    network: str
    address: str
    mac: str
    parent: str
    owner: str
    machine: str
    since: str


class StoredImage(NamedTuple):
    """An image in the local store. Sizes in bytes. `stamp` is the base file's inode, size and change time when it was
    last known to match `digest`; `kernel` and `initrd` are file names, empty where the image brings none."""

    name: str
    version: str
    digest: str
    login: str
    kernel: str
    initrd: str
    size: int
    virtual_size: int
    stamp: str
    added: str


def now() -> str:
    """Wall-clock time for people to read; no decision hangs on it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`, as /proc/self/mountinfo names it."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            # proc(5): blanks and the like stand in octal.
            mount = left.split()[4].encode().decode("unicode_escape")
            if (str(path) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
                best, kind = mount, right.split()[0]
    return kind


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith("SQLITE_FULL"):
            raise StoreFailed(f"no space left for the store {path}", f"free some space: df -h {path.parent}") from error
        if name.startswith(_DAMAGED):
            hint = f"move it away (VMs go on running), or put a copy back: {path}.v* are the ones macvm made"
            raise StoreFailed(f"the store {path} is damaged: {error}", hint) from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN", "SQLITE_AUTH")):
            hint = "run as root, or name another directory with --state-dir"
            raise Unable(f"the store {path} cannot be written: {error}", hint) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreFailed(f"the store {path} has been held by another macvm for 30 s", "try again") from error
        raise StoreFailed(f"the store {path} failed: {error}", f"is the disk sound? df -h {path.parent}") from error


class Store:
    """One open store. Made by `open_store` or `open_for_reading`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        connection.row_factory = sqlite3.Row

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its start; rolled back when the block raises."""
        with _translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, sql: str, parameters: Iterable[object] = ()) -> list[sqlite3.Row]:
        with _translated(self.path):
            return self._connection.execute(sql, tuple(parameters)).fetchall()

    # MACs and leases

    def claim(
        self,
        owner: str,
        machine: str,
        macs: Iterable[str],
        leases: Iterable[LeaseClaim],
        told: Mapping[str, str] = NOTHING_TOLD,
    ) -> None:
        """Claims MACs and leases for a machine: all of them or none. `told` is what `told_of` gives back, by MAC.

        Raises Taken, naming the holder.
        """
        with self.change() as db:
            claim_in(db, owner, machine, macs, leases, told)

    def told_of(self, owner: str) -> dict[str, str]:
        """MAC to what its guest was told, as the claim said it: the wanted set of a machine's NICs."""
        return {row["mac"]: row["told"] for row in self.rows("SELECT mac, told FROM macs WHERE owner = ?", (owner,))}

    def retell(self, owner: str, machine: str, mac: str, told: str, leases: Iterable[LeaseClaim]) -> None:
        """Replaces what a NIC's guest is told, and its leases: both or neither. Nothing told is nothing held.

        Raises Taken.
        """
        with self.change() as db:
            db.execute("DELETE FROM macs WHERE mac = ?", (mac,))
            if told:
                claim_in(db, owner, machine, [mac], leases, {mac: told})

    def release_mac(self, mac: str) -> None:
        """Gives back a MAC with its leases; not held is fine."""
        with self.change() as db:
            db.execute("DELETE FROM macs WHERE mac = ?", (mac,))

    def release(self, owner: str) -> None:
        """Gives back every MAC and lease of a machine; none held is fine."""
        with self.change() as db:
            db.execute("DELETE FROM macs WHERE owner = ?", (owner,))

    def leases(self) -> list[Lease]:
        sql = "SELECT network, address, mac, parent, owner, machine, since FROM leases JOIN macs USING (mac) ORDER BY 2"
        return [Lease(**dict(row)) for row in self.rows(sql)]

    def holder_of_mac(self, mac: str) -> str | None:
        """Name of the machine that holds a MAC."""
        found = self.rows("SELECT machine FROM macs WHERE mac = ?", (mac,))
        return found[0]["machine"] if found else None

    def machines(self) -> dict[str, str]:
        """UUID to name of every machine that holds a MAC: what is known while libvirt cannot be asked."""
        return {row["owner"]: row["machine"] for row in self.rows("SELECT DISTINCT owner, machine FROM macs")}

    # files that macvm made

    def own_file(self, path: Path, owner: str) -> None:
        """Records a file before it is made: only recorded files are ever deleted. Raises Taken for another's."""
        with self.change() as db:
            db.execute("INSERT OR IGNORE INTO files VALUES (?, ?)", (str(path), owner))
            holder = db.execute("SELECT owner FROM files WHERE path = ?", (str(path),)).fetchone()["owner"]
            if holder != owner:
                raise Taken(f"{path} belongs to another machine, {holder}", "is there one of the same name? macvm gc")

    def files_of(self, owner: str) -> list[Path]:
        return [Path(row["path"]) for row in self.rows("SELECT path FROM files WHERE owner = ?", (owner,))]

    def disown_file(self, path: Path) -> None:
        with self.change() as db:
            db.execute("DELETE FROM files WHERE path = ?", (str(path),))

    # what was changed on links that are not macvm's

    def remember(self, key: str, was: str, owner: str) -> None:
        """Before it is changed. What was remembered first stays; the machine that changes it last gives it back."""
        sql = "INSERT INTO remembered VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET owner = excluded.owner"
        with self.change() as db:
            db.execute(sql, (key, was, owner))

    def remembered_of(self, owner: str) -> list[tuple[str, str]]:
        """What was changed for a machine's sake, and what it was."""
        return [(row["key"], row["was"]) for row in self.rows("SELECT * FROM remembered WHERE owner = ?", (owner,))]

    def forget(self, key: str) -> None:
        with self.change() as db:
            db.execute("DELETE FROM remembered WHERE key = ?", (key,))

    # images

    def images(self) -> list[StoredImage]:
        return [StoredImage(**dict(row)) for row in self.rows("SELECT * FROM images ORDER BY name, added")]

    def add_image(self, image: StoredImage) -> None:
        """Adds an image, or replaces the one of the same name and version."""
        columns = image._asdict()
        marks = ", ".join(f":{name}" for name in columns)
        with self.change() as db:
            db.execute(f"INSERT OR REPLACE INTO images ({', '.join(columns)}) VALUES ({marks})", columns)

    def remove_image(self, name: str, version: str) -> None:
        with self.change() as db:
            db.execute("DELETE FROM images WHERE name = ? AND version = ?", (name, version))


def claim_in(
    db: sqlite3.Connection,
    owner: str,
    machine: str,
    macs: Iterable[str],
    leases: Iterable[LeaseClaim],
    told: Mapping[str, str] = NOTHING_TOLD,
) -> None:
    """`Store.claim` inside a transaction that is open already."""
    since = now()
    busy = db.execute("SELECT action FROM journal WHERE machine = ? AND uuid <> ?", (machine, owner)).fetchone()
    if busy:
        hint = "choose another name; if that macvm was killed, macvm gc clears it"
        raise Taken(f"{machine} is taken: another macvm has begun to {busy['action']} a machine of that name", hint)
    for mac in macs:
        found = db.execute("SELECT machine FROM macs WHERE mac = ?", (mac,)).fetchone()
        if found:
            raise Taken(f"MAC {mac} is held by machine {found['machine']}", "leave --mac out, and macvm chooses one")
        db.execute("INSERT INTO macs VALUES (?, ?, ?, ?)", (mac, owner, machine, told.get(mac, "")))
    for network, address, mac, parent in leases:
        sql = "SELECT machine FROM leases JOIN macs USING (mac) WHERE network = ? AND address = ?"
        found = db.execute(sql, (network, address)).fetchone()
        if found:
            raise Taken(f"address {address} is held by machine {found['machine']}", "choose another with --ip")
        db.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?)", (network, address, mac, parent, since))


def _newer(path: Path, version: int) -> Unable:
    return Unable(
        f"the store {path} was written by a newer macvm (schema {version}, this one knows {len(MIGRATIONS)})",
        "install that macvm again, or name another directory with --state-dir",
    )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise _newer(path, version)
    if version == len(MIGRATIONS):
        return
    if version:
        with contextlib.closing(sqlite3.connect(f"{path}.v{version}")) as copy:
            connection.backup(copy)
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number in range(version, len(MIGRATIONS)):
        for statement in MIGRATIONS[number].split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("COMMIT")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """For a store that several processes open for the first time at once, SQLite says "busy" without waiting here."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def open_store(state_dir: Path) -> Store:
    """The store for reading and writing; made when missing. Raises Unable or StoreFailed."""
    # A strict umask of root's would lock out QEMU's user, and those who only look.
    umask = os.umask(0o022)
    try:
        return _open_store(state_dir)
    finally:
        os.umask(umask)


def _open_store(state_dir: Path) -> Store:
    path = state_dir / DATABASE
    try:
        # Others may look up names and addresses, which are no secret; they cannot list the directory.
        for folder in (state_dir, *(state_dir / name for name in FOLDERS)):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        locks.create(state_dir)
    except OSError as error:
        hint = "run as root, or name another directory with --state-dir"
        raise Unable(f"the state directory {state_dir} cannot be made: {error.strerror}", hint) from error
    kind = _file_system(state_dir.resolve())
    if kind in _NETWORK_FILE_SYSTEMS:
        raise Unable(
            f"the state directory {state_dir} is on {kind}, whose locks cannot be trusted",
            "name a directory on a local disk with --state-dir",
        )
    with _translated(path):
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            _switch_to_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
        return Store(connection, path)


def open_for_reading(state_dir: Path) -> Store | None:
    """The store for looking only, without rights to write; None where there is none yet, or where it cannot be read.
    Raises StoreFailed for a damaged one, Unable for one of a newer macvm.

    A WAL store whose last writer is gone cannot be opened by one who may not write its `-shm`: then, and only where no
    `-wal` holds newer pages, it is read as immutable; a writer may come or go between the two, hence a second round.
    """
    path = state_dir / DATABASE
    try:
        path.stat()
    except OSError:
        return None
    for _ in range(2):
        modes = ["mode=ro"]
        if not Path(f"{path}-wal").exists():
            modes.append("mode=ro&immutable=1")
        for mode in modes:
            connection = sqlite3.connect(f"file:{path}?{mode}", uri=True, timeout=5, isolation_level=None)
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                connection.execute("SELECT 1 FROM macs LIMIT 1")
            except sqlite3.Error as error:
                connection.close()
                if getattr(error, "sqlite_errorname", "").startswith(_DAMAGED):
                    with _translated(path):
                        raise
                continue
            if version > len(MIGRATIONS):
                connection.close()
                raise _newer(path, version)
            if version < len(MIGRATIONS):
                # The next command that changes something brings it up to date.
                connection.close()
                return None
            return Store(connection, path)
    return None
