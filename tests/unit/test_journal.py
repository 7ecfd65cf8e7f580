"""The journal of unfinished work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.errors import Taken
from provisioner.host import journal as module
from provisioner.host.journal import Journal
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import Store, open_store

MAC = "52:54:00:00:00:01"
NIC = NicClaim(MAC, (LeaseClaim("eth0", "192.0.2.11"),))

BEGIN = """
import sys, time
from pathlib import Path
from provisioner.host.journal import Journal
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import open_store
journal = Journal(open_store(Path(sys.argv[1])), lambda _: None)
mac = sys.argv[2]
work = journal.begin("create", "web1", "uuid1", {"a": 1}, [NicClaim(mac, (LeaseClaim("eth0", "192.0.2.11"),))])
with work.step("disk"):
    pass
with work.step("define"):
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def journal(store: Store) -> Journal:
    return Journal(store, lambda _: None, lambda: 1000.0)


@pytest.fixture
def creator(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a create."""
    process = subprocess.Popen([sys.executable, "-c", BEGIN, str(tmp_path), MAC], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.wait()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_row_of_a_live_process_is_not_abandoned_and_of_a_killed_one_is(
    journal: Journal, creator: subprocess.Popen[str]
) -> None:
    row = journal.unfinished()[0]
    assert (row.action, row.machine, row.uuid, row.facts) == ("create", "web1", "uuid1", {"a": 1})
    assert row.steps == {"disk": "done", "define": "intended"}
    assert journal.abandoned() == []
    assert journal.adopt(row) is None
    kill(creator)
    assert journal.abandoned() == [row]


def test_a_row_is_adopted_once(journal: Journal, creator: subprocess.Popen[str]) -> None:
    kill(creator)
    row = journal.abandoned()[0]
    work = journal.adopt(row)
    assert work is not None
    assert journal.adopt(row) is None
    assert journal.abandoned() == []
    work.leave()
    assert len(journal.abandoned()) == 1
    again = journal.adopt(row)
    assert again is not None
    again.close()
    assert journal.unfinished() == []
    assert journal.adopt(row) is None, "settled by someone else meanwhile"


def test_names_macs_and_addresses_of_unfinished_work_are_taken(
    journal: Journal, store: Store, creator: subprocess.Popen[str]
) -> None:
    kill(creator)
    with pytest.raises(Taken, match="web1 is taken: another macvm has begun to create"):
        journal.begin("create", "web1", "uuid2", {})
    with pytest.raises(Taken, match=f"MAC {MAC} is held by machine web1"):
        journal.begin("create", "web2", "uuid2", {}, [NicClaim(MAC)])
    with pytest.raises(Taken, match=r"address 192\.0\.2\.11 is held by machine web1"):
        journal.begin("create", "web2", "uuid2", {}, [NIC._replace(mac="52:54:00:00:00:02")])
    assert [row.uuid for row in journal.unfinished()] == ["uuid1"]
    assert store.machines() == {"uuid1": "web1"}


def test_claims_and_row_come_together_or_not_at_all(journal: Journal, store: Store) -> None:
    with pytest.raises(TypeError):
        journal.begin("create", "web1", "uuid1", {"no json": object()}, [NIC])
    assert (store.machines(), store.leases(), journal.unfinished()) == ({}, [], [])


def test_the_work_of_one_machine_may_be_deleted_while_its_create_is_unfinished(journal: Journal) -> None:
    journal.begin("create", "web1", "uuid1", {}).leave()
    journal.begin("delete", "web1", "uuid1", {}).close()


def test_each_boundary_is_a_checkpoint_and_what_was_before_it_is_recorded(store: Store) -> None:
    seen: list[tuple[str, str]] = []

    def checkpoint(name: str) -> None:
        steps = {row["step"]: row["state"] for row in store.rows("SELECT step, state FROM steps")}
        seen.append((name, json.dumps(steps)))

    work = Journal(store, checkpoint).begin("create", "web1", "uuid1", {})
    with work.step("disk"):
        pass
    with work.step("define"):
        pass
    work.close()
    assert seen == [
        ("create:begin:after", "{}"),
        ("create:disk:before", '{"disk": "intended"}'),
        ("create:disk:after", '{"disk": "intended"}'),
        ("create:define:before", '{"disk": "done", "define": "intended"}'),
        ("create:define:after", '{"disk": "done", "define": "intended"}'),
    ]
    assert store.rows("SELECT * FROM steps") == []


def test_a_step_that_failed_is_never_recorded_as_done(journal: Journal) -> None:
    work = journal.begin("create", "web1", "uuid1", {})
    with pytest.raises(OSError, match="full"), work.step("disk"):
        raise OSError("full")
    with work.step("undo"):
        assert journal.unfinished()[0].steps == {"disk": "intended", "undo": "intended"}
    work.close()


def test_an_uncertain_row_keeps_the_time_of_its_first_look(journal: Journal) -> None:
    journal.begin("create", "web1", "uuid1", {}).leave()
    for clock, daemon in ((1000.0, "libvirtd 1"), (1030.0, "libvirtd 2")):
        work = journal.adopt(journal.abandoned()[0])
        assert work is not None
        work.keep_uncertain(clock, daemon)
    row = journal.abandoned()[0]
    assert (row.looked, row.daemon) == (1000.0, "libvirtd 1")


def test_times_of_another_boot_are_not_compared(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.begin("create", "web1", "uuid1", {}).leave()
    assert journal.unfinished()[0].age == 0.0
    work = journal.adopt(journal.abandoned()[0])
    assert work is not None
    work.keep_uncertain(1000.0, "libvirtd 1")
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    row = journal.unfinished()[0]
    assert row.age is None
    assert row.looked == float("-inf"), "no call of an earlier boot is in flight any more"
