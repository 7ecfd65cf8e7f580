"""The store: what neither libvirt nor the kernel can hold. MACs, leases, images, files macvm made, unfinished work.

SQLite with WAL and `synchronous=FULL`, so that what was acknowledged survives a kill; every claim is a primary key
taken inside `BEGIN IMMEDIATE`, so that two processes cannot hold one address.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from provisioner.errors import MacvmError, Taken, Unable
from provisioner.host import locks
from provisioner.host.leases import Lease, Leases, NicClaim
from provisioner.host.schema import MIGRATIONS, migrate, newer

if TYPE_CHECKING:
    from provisioner.host.heard import HeardAddresses
    from provisioner.host.networks import Networks
    from provisioner.host.others import Others
    from provisioner.model.mode import MacvtapMode

DATABASE = "macvm.db"

#: What lies beside it.
IMAGES, MACHINES = FOLDERS = ("images", "machines")

#: File systems whose locks SQLite's WAL cannot rely on (https://sqlite.org/wal.html: "does not work over a network").
_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs"})


_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class StoreFailed(MacvmError):
    """The store cannot be read or written."""


class StoreDamaged(StoreFailed):
    """What is in its file is no store any more."""


class StoredImage(NamedTuple):
    """An image in the local store. Sizes in bytes. `stamp` is the base file's inode, size and change time when it was
    last known to match `digest`; `kernel` and `initrd` are file names, empty where the image brings none. `source` is
    the address that it was pulled from; `checksum` that of the file it was made from, as `sha256:…`."""

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
    source: str = ""
    checksum: str = ""


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


def _is_full(folder: Path) -> bool:
    """Whether there is no room for the file of 32 KiB that SQLite maps into memory: without it, it says "I/O error"."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < 1 << 15


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith("SQLITE_FULL") or (name.startswith("SQLITE_IOERR") and _is_full(path.parent)):
            raise StoreFailed(f"no space left for the store {path}", f"free some space: df -h {path.parent}") from error
        if name.startswith(_DAMAGED):
            hint = f"move it away (VMs go on running), or put a copy back: {path}.v* are the ones macvm made"
            raise StoreDamaged(f"the store {path} is damaged: {error}", hint) from error
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

    @contextlib.contextmanager
    def claiming(self) -> Iterator[Leases]:
        """One transaction over MACs, leases and pools: what is claimed in it is claimed wholly, or not at all."""
        with self.change() as db:
            yield Leases(db)

    @contextlib.contextmanager
    def looking(self, coming: Collection[str] = ()) -> Iterator[Leases]:
        """MACs, leases and pools as they are now, for looking alone; `coming` as in `Leases`."""
        with _translated(self.path):
            yield Leases(self._connection, coming)

    def rows(self, sql: str, parameters: Iterable[object] = ()) -> list[sqlite3.Row]:
        with _translated(self.path):
            try:
                return self._connection.execute(sql, tuple(parameters)).fetchall()
            except UnicodeEncodeError:
                # A byte of the command line that is no UTF-8: no text with it is stored, and so none is found.
                return []

    def check(self) -> None:
        """Reads all of it. Raises StoreDamaged."""
        said = self.rows("PRAGMA quick_check(1)")[0][0]
        if said != "ok":
            raise StoreDamaged(f"the store {self.path} is damaged: {' '.join(str(said).split())}", "")

    @cached_property
    def networks(self) -> Networks:
        from provisioner.host.networks import Networks

        return Networks(self)

    @cached_property
    def heard(self) -> HeardAddresses:
        from provisioner.host.heard import HeardAddresses

        return HeardAddresses(self)

    @cached_property
    def others(self) -> Others:
        from provisioner.host.others import Others

        return Others(self)

    # MACs and leases

    def claim(self, owner: str, machine: str, nics: Iterable[NicClaim]) -> None:
        """Claims MACs and leases for a machine: all of them or none. Raises Taken, naming the holder."""
        with self.claiming() as leases:
            leases.claim(owner, machine, nics)

    def told_of(self, owner: str) -> dict[str, str]:
        """MAC to what its guest was told, as the claim said it: the wanted set of a machine's NICs."""
        return {row["mac"]: row["told"] for row in self.rows("SELECT mac, told FROM macs WHERE owner = ?", (owner,))}

    def retell(self, owner: str, machine: str, nic: NicClaim) -> None:
        """Replaces what a NIC's guest is told, and its leases: both or neither. Nothing told is nothing held.

        Raises Taken.
        """
        with self.claiming() as leases:
            leases.give_back(nic.mac)
            if nic.told:
                leases.claim(owner, machine, [nic])

    def macs_told(self, mode: MacvtapMode) -> set[str]:
        """MACs of the NICs that are told to be in a mode."""
        # Read as JSON is only what has the word at all.
        sql = "SELECT mac FROM macs WHERE instr(told, ?) AND json_extract(told, '$.mode') = ?"
        return {row["mac"] for row in self.rows(sql, (mode.value, mode.value))}

    def release_mac(self, mac: str) -> None:
        """Gives back a MAC with its leases, and forgets what it was heard to have; not held is fine."""
        with self.change() as db:
            db.execute("DELETE FROM heard WHERE mac = ?", (mac,))
            db.execute("DELETE FROM macs WHERE mac = ?", (mac,))

    def release(self, owner: str) -> None:
        """Gives back every MAC and lease of a machine, and forgets what it was heard to have; none held is fine."""
        with self.change() as db:
            db.execute("DELETE FROM heard WHERE mac IN (SELECT mac FROM macs WHERE owner = ?)", (owner,))
            db.execute("DELETE FROM macs WHERE owner = ?", (owner,))

    def release_leases(self, owner: str) -> None:
        """Gives back a machine's addresses and takes its NICs off their networks, and keeps its MACs."""
        with self.change() as db:
            db.execute("DELETE FROM leases WHERE mac IN (SELECT mac FROM macs WHERE owner = ?)", (owner,))
            db.execute("UPDATE macs SET network = NULL WHERE owner = ?", (owner,))

    def networks_by_mac(self) -> dict[str, str]:
        """MAC to the name of its network, of those NICs that have one."""
        rows = self.rows("SELECT mac, network FROM macs WHERE network IS NOT NULL")
        return {row["mac"]: row["network"] for row in rows}

    def has_heard(self) -> bool:
        """Whether any guest was heard: for commands that else need not import what reads them."""
        return bool(self.rows("SELECT 1 FROM heard LIMIT 1"))

    def has_endpoint(self, name: str = "") -> bool:
        """Of a name, or any."""
        return bool(self.rows("SELECT 1 FROM endpoints WHERE ? IN (name, '') LIMIT 1", (name,)))

    def leases(self, *, network: str = "", owner: str = "", parent: str = "", bare: bool = False) -> list[Lease]:
        """All of them, or those of a network, a machine or a parent, or of no network: the oldest first."""
        asked = {"leases.network": network, "owner": owner, "parent": parent}
        given = {column: value for column, value in asked.items() if value}
        where = " AND ".join([*(f"{column} = ?" for column in given), *["leases.network = ''"] * bare])
        sql = "SELECT leases.*, owner, machine FROM leases JOIN macs USING (mac)"
        rows = self.rows(f"{sql}{' WHERE ' if where else ''}{where} ORDER BY since, address", given.values())
        return [Lease(**{**dict(row), "served": bool(row["served"])}) for row in rows]

    def held_behind(self, parent: str, *, served: bool) -> list[sqlite3.Row]:
        """Address and MAC of the leases on a parent that a shim serves, or does not serve; in no order."""
        return self.rows("SELECT address, mac FROM leases WHERE parent = ? AND served = ?", (parent, served))

    def holder_of(self, parent: str, address: str) -> str | None:
        """Name of the machine that holds an address on a parent's LAN."""
        with self.looking() as leases:
            return leases.holder(parent, address)

    def holder_of_mac(self, mac: str) -> str | None:
        """Name of the machine that holds a MAC."""
        found = self.rows("SELECT machine FROM macs WHERE mac = ?", (mac,))
        return found[0]["machine"] if found else None

    def machines(self) -> dict[str, str]:
        """UUID to name of every machine that holds a MAC: what is known while libvirt cannot be asked. What else holds
        one, an endpoint or a shim, has a slash in its owner's word."""
        sql = "SELECT DISTINCT owner, machine FROM macs WHERE owner NOT LIKE '%/%'"
        return {row["owner"]: row["machine"] for row in self.rows(sql)}

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

    def rememberers(self) -> list[str]:
        """For whose sake anything is remembered."""
        return [row["owner"] for row in self.rows("SELECT DISTINCT owner FROM remembered ORDER BY owner")]

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
            migrate(connection, path)
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
                raise newer(path, version)
            if version < len(MIGRATIONS):
                # The next command that changes something brings it up to date.
                connection.close()
                return None
            return Store(connection, path)
    return None
