"""Words as systemd reads them in a unit file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from provisioner.errors import Usage
from provisioner.model.names import printable

_PLAIN = re.compile(r"[A-Za-z0-9_./:=@,+-]+")


def word(text: str) -> str:
    """`text` as one word of a setting that takes paths (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers").

    Raises Usage for control characters, which systemd refuses in a program's path, and for bytes that are no UTF-8.
    """
    if not text.isprintable():
        raise Usage(f"{printable(text, 100)} cannot stand in a systemd unit", "give it a name of printable characters")
    # Letters beyond ASCII are read as they are, but need no rule of their own between quotes.
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def argument(text: str) -> str:
    """`text` as an argument in `ExecStart=`: there `$` begins a variable too, but not in the program's own path
    (systemd.service(5), "Command lines")."""
    return word(text).replace("$", "$$")


def command(program: str, arguments: Sequence[str]) -> str:
    """What stands after `ExecStart=`. Raises Usage, also for a program that systemd refuses to run: one with a quote or
    backslash in its path ("Executable name contains special characters", seen with version 252)."""
    if set(program) & set("\"'\\"):
        hint = "put macvm where no quote or backslash is in its path"
        raise Usage(f"systemd runs no program with such a name: {printable(program, 100)}", hint)
    return " ".join((word(program), *map(argument, arguments)))
