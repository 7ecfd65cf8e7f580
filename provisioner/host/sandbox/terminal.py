"""A user's command in a node: standard streams, terminal and signals passed through."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from provisioner.host.sandbox.client import Running, start


def attach(sockets: Path, node: str, argv: Sequence[str]) -> int:
    """Run a command in a node as if it had been run here: standard streams, terminal, signals, working directory.

    Returns its exit status, 128 + n where signal n ended it. Main thread only.
    """
    terminal = os.isatty(0) and os.isatty(1)
    with _caught_signals() as caught:
        running = start(sockets, node, argv, (0, 1, 2), cwd=os.getcwd(), terminal=terminal)
        caught.pass_to(running)
        if running.terminal is not None:
            _relay(running, running.terminal)
        return running.wait()


class _Caught:
    """Signals to this process, kept until there is a command to pass them to."""

    def __init__(self) -> None:
        self._running: Running | None = None
        self._early: list[int] = []

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self._running:
            self._running.signal(number)
        else:
            self._early.append(number)

    def pass_to(self, running: Running) -> None:
        self._running = running
        for number in self._early:
            running.signal(number)


@contextmanager
def _caught_signals() -> Iterator[_Caught]:
    caught = _Caught()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    # One that is ignored, as after nohup, is ignored inside too.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, caught.handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _relay(running: Running, master: int) -> None:
    """Bytes between our terminal and the command's, until the command has ended and all that it wrote is out."""

    def same_size(*_: object) -> None:
        with suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8)))

    before = termios.tcgetattr(0)
    resized = signal.signal(signal.SIGWINCH, same_size)
    same_size()
    try:
        tty.setraw(0, termios.TCSANOW)  # at once: what was typed ahead is for the command
        sources: list[int] = [0, master, running.fileno()]
        while True:
            # Once the status has come, only the terminal's rest is waited for, briefly: the kernel brings it a moment
            # later, and a process left in the background may hold the terminal open for ever.
            ended = running.fileno() not in sources
            readable, _, _ = select.select(sources, [], [], 0.1 if ended else None)
            if ended and master not in readable:
                break
            if running.fileno() in readable:
                sources = [master]
            if master in readable:
                try:
                    os.write(1, os.read(master, 65536))
                except OSError:  # EIO: nobody holds the other end any more
                    break
            if 0 in readable and 0 in sources:
                typed = os.read(0, 65536)
                if typed:
                    os.write(master, typed)
                else:
                    sources.remove(0)
    finally:
        signal.signal(signal.SIGWINCH, resized)
        termios.tcsetattr(0, termios.TCSANOW, before)
