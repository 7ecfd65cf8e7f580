"""Steps that are undone, last first, when a later one fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from provisioner.errors import MacvmError, PartlyDone
from provisioner.host.journal import Work

T = TypeVar("T")


class Undo(ExitStack):
    """Register each step's undo before the step begins, for it may fail half way; undoing takes "not there" as done."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[MacvmError] = []

    def then(self, action: Callable[[], object]) -> None:
        """Adds an undo, to run before those that are there."""

        def attempt() -> None:
            # What could not be removed may still need what was made before it: `gc` goes on from here.
            if self.failed:
                return
            try:
                action()
            except MacvmError as error:
                self.failed.append(error)

        self.callback(attempt)


def carry_out(work: Work, steps: Callable[[Undo], T], finish: Callable[[], object] | None = None) -> T:
    """Runs steps, and closes the journal's row when all went well or all is undone. `finish` comes after the steps, and
    is not undone.

    Raises what the steps raise; PartlyDone where the undoing or the finish failed, and then the row stays for `gc`.
    """
    undo = Undo()
    try:
        with undo:
            result = steps(undo)
            undo.pop_all()
    except BaseException as error:
        if undo.failed:
            work.leave()
            said = "; ".join(problem.message for problem in undo.failed)
            raise PartlyDone(f"{error}; undoing it failed too: {said}", "then: macvm gc") from error
        work.close()
        raise
    if finish:
        try:
            finish()
        except BaseException as error:
            work.leave()
            said = str(error) or "interrupted"
            raise PartlyDone(f"done, but for the end of it: {said}", "then: macvm gc") from error
    work.close()
    return result
