"""Works something out in a child process, beside what its caller does meanwhile.

A thread would take turns with its caller at the interpreter: a hundred short answers from libvirt, waited for while
modules are imported, then end no sooner than one after the other.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from provisioner.errors import HypervisorFailed

T = TypeVar("T")

#: Seconds that a child whom nobody needs any more has to end by itself.
_PATIENCE = 0.5

#: Bytes ahead of an answer that say its length: a child that is killed may have written a part.
_LENGTH = 8

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Beside(Generic[T]):
    """`work` returns what can be pickled. To be made while the process has no other thread: fork(2) takes only one.

    Raises OSError where there can be no other process.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._reading, writing = os.pipe()
        # Until the child has its own way to end, a signal would have it undo what its parent has done.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._child = os.fork()
            if not self._child:
                _do(work, self._reading, writing, before)
        except OSError:
            os.close(self._reading)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(writing)

    def outcome(self) -> T | None:
        """Waits for what came of it, and is asked once. None where the child was killed, or failed in an unknown way:
        whoever tries again learns why. Raises HypervisorFailed where `work` did."""
        answer = self._answer()
        length = int.from_bytes(answer[:_LENGTH], "big")
        if not length or len(answer) != _LENGTH + length:
            return None
        outcome: tuple[T, HypervisorFailed | None] = pickle.loads(answer[_LENGTH:])
        found, error = outcome
        if error is not None:
            raise error
        return found

    def _answer(self) -> bytes:
        try:
            with open(self._reading, "rb") as file:
                answer = file.read()
        except BaseException:
            self._end(kill=True)
            raise
        self._end(kill=False)
        return answer

    def drop(self) -> None:
        """In place of `outcome`, where nobody wants to know any more."""
        # libvirtd notes an error for every client that ends without a word.
        if select.select([self._reading], [], [], _PATIENCE)[0]:
            self._answer()
        else:
            os.close(self._reading)
            self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        # Where the process was begun with SIGCHLD ignored, the kernel has forgotten the child already.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if kill:
                os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)


def _do(work: Callable[[], Any], reading: int, writing: int, mask: set[int | signal.Signals]) -> NoReturn:
    try:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(reading)  # so that writing fails where the parent is gone
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # whoever waits for the end of the parent's output waits for the parent alone
            os.dup2(nothing, descriptor)
        outcome: tuple[Any, HypervisorFailed | None]
        try:
            outcome = work(), None
        except HypervisorFailed as error:
            outcome = None, error
        answer = pickle.dumps(outcome)
        with open(writing, "wb") as file:
            file.write(len(answer).to_bytes(_LENGTH, "big") + answer)
    finally:
        # Whatever was raised: nothing of the caller's may be undone from here.
        os._exit(0)
