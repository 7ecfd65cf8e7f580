"""How a start fails: as an exception in the process it happens in, and as a message to the one that waits."""

from __future__ import annotations

import json


class Failed(Exception):
    """A step of the start failed; `number` is an errno, or 0."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


def as_message(error: Exception) -> bytes:
    """JSON with `error` and `errno`, the latter 0 or null where there is none."""
    number = error.number if isinstance(error, Failed) else getattr(error, "errno", 0)
    return json.dumps({"error": str(error), "errno": number}).encode()
