"""Locks that end with their process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from provisioner.host import locks

HOLD = """
import sys, time
from pathlib import Path
from provisioner.host import locks
held = locks.wait_for_lock(Path(sys.argv[1]), 7)
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_once_and_by_byte(tmp_path: Path) -> None:
    held = locks.try_lock(tmp_path, 7)
    assert held is not None
    # Of the open file, not of the process: a second try of the same process fails too.
    assert locks.try_lock(tmp_path, 7) is None
    assert locks.is_locked(tmp_path, 7)
    other = locks.try_lock(tmp_path, 8)
    assert other is not None
    os.close(held)
    assert not locks.is_locked(tmp_path, 7)
    assert locks.is_locked(tmp_path, 8)
    os.close(other)


def test_asking_makes_nothing_and_takes_nothing(tmp_path: Path) -> None:
    assert not locks.is_locked(tmp_path, 7)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        assert locks.try_lock(tmp_path, 7) is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    held = locks.try_lock(tmp_path, 7)
    assert held is not None
    os.close(held)


def test_waiting_ends_when_the_lock_is_free(tmp_path: Path) -> None:
    held = locks.try_lock(tmp_path, 7)
    assert held is not None
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert waiter.stdout
        assert select.select([waiter.stdout], [], [], 0.5)[0] == [], "it does not wait"
        os.close(held)
        assert waiter.stdout.readline() == "held\n"
    finally:
        waiter.kill()
        waiter.wait()


def test_a_child_program_does_not_inherit_a_lock(tmp_path: Path) -> None:
    held = locks.try_lock(tmp_path, 7)
    assert held is not None
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        os.close(held)
        assert not locks.is_locked(tmp_path, 7)
    finally:
        child.kill()
        child.wait()
