"""Works something out in a child process, beside what its caller does meanwhile.

A thread would take turns with its caller at the interpreter: a hundred short answers from libvirt, waited for while
modules are imported, then end no sooner than one after the other.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from provisioner.errors import MacvmError

T = TypeVar("T")


class Beside(Generic[T]):
    """`work` returns what can be pickled. To be made while the process has no other thread: fork(2) takes only one."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._reading, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            _do(work, writing)
        os.close(writing)

    def outcome(self) -> T | None:
        """Waits for what came of it, and is asked once. None where the child was killed, or failed in an unknown way:
        whoever tries again learns why. Raises the MacvmError that `work` did."""
        with open(self._reading, "rb") as file:
            answer = file.read()
        _, status = os.waitpid(self._child, 0)
        outcome: tuple[T | None, MacvmError | None] = pickle.loads(answer) if status == 0 else (None, None)
        found, error = outcome
        if error is not None:
            raise error
        return found

    def drop(self) -> None:
        """In place of `outcome`, where nobody wants to know any more."""
        os.close(self._reading)
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


def _do(work: Callable[[], Any], writing: int) -> NoReturn:
    status = 1
    try:
        outcome: tuple[Any, MacvmError | None]
        try:
            outcome = work(), None
        except MacvmError as error:
            outcome = None, error
        answer = pickle.dumps(outcome)
        with open(writing, "wb") as file:
            file.write(answer)
        status = 0
    finally:
        # Whatever was raised: nothing of the caller's may be undone, or written, from here.
        os._exit(status)
