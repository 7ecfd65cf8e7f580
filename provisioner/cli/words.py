"""Option types that commands which only look take too: they import nothing of the model's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from provisioner.errors import Usage
from provisioner.model.names import parse_label, printable


class Words(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.3 on
    """A type made of a function that raises our own errors."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._parse(value) if isinstance(value, str) else value


def _seconds(text: str) -> float:
    digits = text.strip().removesuffix("s")
    scale = 1
    if digits.endswith("m"):
        digits, scale = digits[:-1], 60
    try:
        seconds = float(digits) * scale
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise Usage(f"{printable(text)} is no time", "seconds, such as 60 or 60s, or minutes, such as 2m")
    return seconds


SECONDS = Words("seconds", _seconds)
LABEL = Words("key=value", parse_label)

#: What of a VM may be waited for.
WAIT_FOR = ("ip", "ping", "ssh")
