"""The journal of unfinished work: what was intended and what was done, so that a killed macvm can be cleaned up after.

A row belongs to the process that holds the lock with its number (`host.locks`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from provisioner.host import locks, log
from provisioner.host.leases import Leases, NicClaim, now
from provisioner.host.store import Store

#: The bytes below are for named locks.
_FIRST_BYTE = 1024

#: A hook that a test sets to stop, or kill, at a named boundary such as `create:disk:before`.
Checkpoint = Callable[[str], None]

#: Claims inside an open transaction, and returns the facts that the row is to keep.
Claim = Callable[[Leases], Mapping[str, Any]]


class Unfinished(NamedTuple):
    """A row as it was found. `began` is for people; `age` is in seconds of this boot, None when it is of another boot.

    `looked` is when a recovery first found no effect of an intended call, in seconds of this boot's monotonic clock,
    and `daemon` the libvirt daemon that was asked.
    """

    id: int
    action: str
    machine: str
    uuid: str
    facts: Mapping[str, Any]
    began: str
    age: float | None
    looked: float | None
    daemon: str
    steps: Mapping[str, str]


def boot_id() -> str:
    """Changes with every boot of the host: monotonic times of two boots cannot be compared."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Subject(NamedTuple):
    """Whom work is done on."""

    machine: str
    uuid: str


class Work:
    """One open row. A step is recorded as intended before it begins; that it is done, together with the next one."""

    def __init__(
        self, journal: Journal, row: int, action: str, lock: int, facts: Mapping[str, Any], of: Subject
    ) -> None:
        self.facts = facts
        self._of = of
        self._journal = journal
        self.number = row
        self._action = action
        self._lock = lock
        self._last = ""
        self._fresh = True

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        if self._fresh:
            self._fresh = False
            self._journal.checkpoint(f"{self._action}:begin:after")
        with self._journal.store.change() as db:
            if self._last:
                sql = "UPDATE steps SET state = 'done' WHERE journal = ? AND step = ?"
                db.execute(sql, (self.number, self._last))
            db.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, 'intended')", (self.number, name))
        self._last = ""
        log.step(f"{self._action} {self._of.machine}: {name}")
        self._journal.checkpoint(f"{self._action}:{name}:before")
        yield
        self._last = name
        self._journal.checkpoint(f"{self._action}:{name}:after")

    def claim_again(self, claim: Claim) -> None:
        """Changes what is claimed, and the row's facts with it: both or neither."""
        with self._journal.store.change() as db:
            facts = claim(Leases(db))
            self.facts = facts
            db.execute("UPDATE journal SET facts = ? WHERE id = ?", (json.dumps(facts), self.number))

    def close(self) -> None:
        """The work is finished, or wholly undone."""
        with self._journal.store.change() as db:
            db.execute("DELETE FROM journal WHERE id = ?", (self.number,))
        # Closed while an error is on its way: all of it was undone.
        error = log.pending()
        self._let_go()
        log.record(self._action, self._of.machine, error, result="undone" if error else "", uuid=self._of.uuid)

    def leave(self) -> None:
        """Lets go of the row without closing it: somebody must look at it later."""
        self._let_go()
        log.record(self._action, self._of.machine, log.pending(), result="unfinished", uuid=self._of.uuid)

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def keep_uncertain(self, clock: float, daemon: str) -> None:
        """Keeps the row for a later look; the first look's time and daemon stay."""
        with self._journal.store.change() as db:
            sql = "UPDATE journal SET looked = ?, daemon = ?, boot = ? WHERE id = ? AND looked IS NULL"
            db.execute(sql, (clock, daemon, boot_id(), self.number))
        self.leave()


class Journal:
    """The rows of one store. `clock` gives seconds of this boot's monotonic clock."""

    def __init__(self, store: Store, checkpoint: Checkpoint, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.checkpoint = checkpoint
        self.clock = clock

    def begin(
        self, action: str, machine: str, uuid: str, facts: Mapping[str, Any], nics: Iterable[NicClaim] = ()
    ) -> Work:
        """Opens a row, together with the claims that the work begins with: both or neither. Raises Taken."""

        def claim(leases: Leases) -> Mapping[str, Any]:
            leases.claim(uuid, machine, nics)
            return facts

        return self.begin_claiming(action, machine, uuid, claim)

    def begin_claiming(self, action: str, machine: str, uuid: str, claim: Claim) -> Work:
        """As `begin`, where what is claimed, and so the row's facts, come out of the transaction itself."""
        with self.store.change() as db:
            facts = claim(Leases(db))
            sql = "INSERT INTO journal (action, machine, uuid, facts, began, boot, clock) VALUES (?, ?, ?, ?, ?, ?, ?)"
            values = (action, machine, uuid, json.dumps(facts), now(), boot_id(), self.clock())
            row = db.execute(sql, values).lastrowid
            assert row is not None
            # Before the commit makes the row visible: nobody can find it unlocked.
            lock = self._try_lock(row)
            assert lock is not None
        log.step(f"{action} {machine}", {"uuid": uuid, **facts})
        return Work(self, row, action, lock, facts, Subject(machine, uuid))

    def unfinished(self) -> list[Unfinished]:
        """Every row, locked or not."""
        steps: dict[int, dict[str, str]] = {}
        for row in self.store.rows("SELECT * FROM steps"):
            steps.setdefault(row["journal"], {})[row["step"]] = row["state"]
        boot, clock = boot_id(), self.clock()
        return [
            Unfinished(
                id=row["id"],
                action=row["action"],
                machine=row["machine"],
                uuid=row["uuid"],
                facts=json.loads(row["facts"]),
                began=row["began"],
                age=max(0.0, clock - row["clock"]) if row["boot"] == boot else None,
                looked=row["looked"] if row["boot"] == boot else (None if row["looked"] is None else float("-inf")),
                daemon=row["daemon"],
                steps=steps.get(row["id"], {}),
            )
            for row in self.store.rows("SELECT * FROM journal ORDER BY id")
        ]

    def abandoned(self) -> list[Unfinished]:
        """Rows whose process is gone."""
        return [row for row in self.unfinished() if not self.is_live(row.id)]

    def is_live(self, number: int) -> bool:
        """Whether a process works on the row of that number."""
        return locks.is_locked(self.store.path.parent, _FIRST_BYTE + number)

    def adopt(self, row: Unfinished) -> Work | None:
        """Takes an abandoned row over; None when its process lives after all, or someone else has settled it."""
        lock = self._try_lock(row.id)
        if lock is None:
            return None
        if not self.store.rows("SELECT 1 FROM journal WHERE id = ?", (row.id,)):
            os.close(lock)
            return None
        return Work(self, row.id, f"recover-{row.action}", lock, row.facts, Subject(row.machine, row.uuid))

    def _try_lock(self, row: int) -> int | None:
        return locks.try_lock(self.store.path.parent, _FIRST_BYTE + row)
