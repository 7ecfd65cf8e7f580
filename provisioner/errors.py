"""Every error that macvm raises on purpose: what is wrong in one line, what to do in a hint, and an exit status.

The statuses are the command line's contract; nothing below `cli/` prints or exits.
"""

from __future__ import annotations

from collections.abc import Sequence


class MacvmError(Exception):
    """Base of the tree: something failed, and what was begun has been undone (status 1)."""

    status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Usage(MacvmError):
    """The command line or an input file is wrong."""

    status = 2


class NotFound(MacvmError):
    """No such machine, NIC, network, image or parent."""

    status = 3


class Taken(MacvmError):
    """It exists already, or the address, MAC or parent is taken, or a pool is exhausted."""

    status = 4


class Unable(MacvmError):
    """This host cannot do it, or macvm may not: no rights, impossible here, not macvm's."""

    status = 5


class NoSlot(Unable):
    """The machine has no room for another device."""


class HypervisorFailed(MacvmError):
    """libvirt refused or is not reachable."""

    status = 6


class PartlyDone(MacvmError):
    """Done in part; the message names what remains."""

    status = 7


class TimeUp(MacvmError):
    """Time is up; what was made stays."""

    status = 9


class Problems(MacvmError):
    """Several errors found at once by a plan. The status is the first one's."""

    def __init__(self, problems: Sequence[MacvmError]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(problems)
        self.status = problems[0].status
