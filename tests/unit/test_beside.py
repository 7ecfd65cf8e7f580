"""Work done in a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.errors import HypervisorFailed
from provisioner.host.beside import Beside


def _open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = _open_files(), _children()
    yield
    assert (_open_files(), _children()) == before


def test_it_is_done_in_another_process() -> None:
    assert Beside(os.getpid).outcome() not in (None, os.getpid())


def test_more_than_a_pipe_holds() -> None:
    assert Beside(lambda: ["x" * 1000] * 1000).outcome() == ["x" * 1000] * 1000


@pytest.mark.parametrize(
    "work",
    [
        lambda: 1 / 0,
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        lambda: os.kill(os.getpid(), signal.SIGINT),
        lambda: (one for one in ""),  # which cannot be pickled
    ],
    ids=["raises", "killed", "interrupted", "no value"],
)
def test_what_fails_comes_to_nothing(work: object) -> None:
    assert Beside(work).outcome() is None  # type: ignore[arg-type]


def test_our_own_errors_come_over_whole() -> None:
    def work() -> None:
        raise HypervisorFailed("libvirt refused", "look there")

    with pytest.raises(HypervisorFailed) as raised:
        Beside(work).outcome()
    assert (raised.value.message, raised.value.hint) == ("libvirt refused", "look there")


def test_nobody_waits_for_what_is_dropped() -> None:
    Beside(signal.pause).drop()


CONTEXT = """
import os, sys, threading
from provisioner.context import Options, open_context

class Hypervisor:
    close = staticmethod(lambda: None)
    with_definitions = staticmethod(lambda: os.getpid())

def asked():
    return "here" if context.definitions() == os.getpid() else "ahead"

context = open_context(Options(), readonly=True)
context.hypervisor = Hypervisor
said = [asked()]
context.look_ahead()
said += [asked(), asked()]
context.look_ahead()
context.forget_ahead()
said += [asked()]
child = os.getpid
os.getpid = lambda: 1 / 0 if child() != here else here
here = child()
context.look_ahead()
said += [asked()]
os.getpid = child
wait = threading.Event()
threading.Thread(target=wait.wait).start()
context.look_ahead()
said += [asked()]
wait.set()
context.look_ahead()
context.close()
print(*said)
"""


def test_definitions_seen_ahead_are_used_once_and_only_where_they_were_seen(tmp_path: Path) -> None:
    """Asked for without, ahead and again; forgotten; failed; and beside another thread, where nothing is forked."""
    ran = subprocess.run([sys.executable, "-c", CONTEXT], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ran.stdout, ran.stderr) == ("here ahead here here here here\n", "")
