"""Work done in a child process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.errors import HypervisorFailed
from provisioner.host import beside
from provisioner.host.beside import Beside


def _open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def _children() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = _open_files(), _children(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert (_open_files(), _children(), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


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
        lambda: os.kill(os.getpid(), signal.SIGTERM),
        lambda: (one for one in ""),  # which cannot be pickled
    ],
    ids=["raises", "killed", "interrupted", "ended", "no value"],
)
def test_what_fails_comes_to_nothing(work: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert Beside(work).outcome() is None
    assert capfd.readouterr() == ("", "")


def test_an_answer_of_which_a_part_has_come_is_none() -> None:
    begun = Beside(lambda: "x" * 1_000_000)
    deadline = time.monotonic() + 10
    while _waiting(begun._reading) < PIPE:
        assert time.monotonic() < deadline
    os.kill(begun._child, signal.SIGKILL)
    assert begun.outcome() is None


#: Bytes that a pipe holds: pipe(7).
PIPE = 65536


def _waiting(pipe: int) -> int:
    found = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return int.from_bytes(found, sys.byteorder)


def test_libvirt_s_errors_come_over_whole() -> None:
    def work() -> None:
        raise HypervisorFailed("libvirt refused", "look there")

    with pytest.raises(HypervisorFailed) as raised:
        Beside(work).outcome()
    assert (raised.value.message, raised.value.hint) == ("libvirt refused", "look there")


@pytest.mark.parametrize("work", [signal.pause, lambda: "x" * 1_000_000, lambda: 1 / 0], ids=["waits", "ends", "fails"])
def test_nobody_waits_for_what_is_dropped(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_PATIENCE", 0.1)
    Beside(work).drop()


def test_an_interrupt_while_waiting_ends_the_child() -> None:
    begun = Beside(signal.pause)
    parent = threading.get_ident()
    threading.Timer(0.1, lambda: signal.pthread_kill(parent, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        begun.outcome()


def test_no_room_for_another_process() -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\nimport os; os.setuid(65534)\n"
    code += "from provisioner.context import Options, open_context\ncontext = open_context(Options(), readonly=True)\n"
    code += "context.look_ahead(); print(context.definitions_ahead(), sorted(os.listdir('/proc/self/fd')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("None ['0', '1', '2', '3']\n", "")


def test_where_the_kernel_reaps_children() -> None:
    """As below a program that ignores SIGCHLD."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert Beside(lambda: 7).outcome() == 7
        Beside(lambda: 7).drop()
    finally:
        signal.signal(signal.SIGCHLD, before)


ORPHAN = """
import os, sys, time
from provisioner.host.beside import Beside
def work():
    time.sleep(float(sys.argv[1]))
    return "x" * 1_000_000
print(Beside(work)._child, flush=True)
os._exit(0)
"""


def _orphan(seconds: float) -> int:
    """The PID of a child that works so long, once its parent has ended, and nobody has its output open any more."""
    argv = [sys.executable, "-c", ORPHAN, str(seconds)]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_a_child_ends_after_its_parent() -> None:
    child = _orphan(0.3)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_whoever_reads_the_parents_output_does_not_wait_for_the_child() -> None:
    os.kill(_orphan(600), signal.SIGKILL)


CONTEXT = """
import os, threading
from provisioner.context import Options, open_context

class Hypervisor:
    close = staticmethod(lambda: None)
    with_definitions = staticmethod(lambda: os.getpid())

def children():
    return len(open(f"/proc/self/task/{os.getpid()}/children").read().split())

context = open_context(Options(), readonly=True)
context.hypervisor = Hypervisor
assert context.definitions_ahead() is None, "without being told"
context.look_ahead()
assert children() == 1
assert context.definitions_ahead() not in (None, os.getpid())
assert context.definitions_ahead() is None, "a second time"
context.look_ahead()
context.forget_ahead()
assert (children(), context.definitions_ahead()) == (0, None), "forgotten"
context.look_ahead()
context.close()
assert children() == 0, "closed"
waiting = threading.Event()
other = threading.Thread(target=waiting.wait)
other.start()
context.look_ahead()
assert children() == 0, "beside another thread"
waiting.set()
other.join()
"""


def test_what_a_context_sees_ahead_is_there_once() -> None:
    subprocess.run([sys.executable, "-c", CONTEXT], check=True)
