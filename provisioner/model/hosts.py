"""macvm's block in a hosts(5) file: all other lines stay as they are, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Sequence

from provisioner.errors import Usage

BEGIN, END = "# macvm begin", "# macvm end"

#: What programs take for a host's name; `_` is no letter of RFC 1123's, and yet in use.
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?", re.ASCII)


def is_host_name(name: str) -> bool:
    """Whether a machine's name can stand in the file. The loopback's own names cannot, nor can one that ends as an
    address does: `10.1` is 10.0.0.1 to many programs (RFC 1123, 2.1)."""
    lower = name.lower()
    if (
        not _NAME.fullmatch(name)
        or lower == "localhost"
        or lower.startswith(("localhost.", "localhost4", "localhost6"))
    ):
        return False
    return not lower.rpartition(".")[2].isdigit()


def with_block(text: str, lines: Sequence[str]) -> str:
    """The text with a block of these lines in place of the one it has, or at its end; without lines, with none.

    Raises Usage where the marks are not in pairs: what is between them might be anybody's.
    """
    kept, place = _without_block(text)
    if not lines:
        return "\n".join(kept)
    if place is None:
        # The empty piece behind the last line's end.
        place = len(kept) - 1 if kept[-1] == "" else len(kept)
    rest = kept[place:] or [""]
    return "\n".join([*kept[:place], BEGIN, *lines, END, *rest])


def names_elsewhere(text: str) -> dict[str, str]:
    """Name to address in the lines that are not macvm's; the first line counts, as it does for the resolver."""
    found: dict[str, str] = {}
    for line in _without_block(text)[0]:
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            found.setdefault(name.lower(), address)
    return found


def _without_block(text: str) -> tuple[list[str], int | None]:
    """The lines but for those of blocks, and where the first one was."""
    kept: list[str] = []
    place = opened = None
    for number, line in enumerate(text.split("\n"), 1):
        mark = line.strip()
        if mark == (END if opened is None else BEGIN):
            raise _unpaired(mark, number)
        if mark == BEGIN:
            opened, place = number, len(kept) if place is None else place
        elif mark == END:
            opened = None
        elif opened is None:
            kept.append(line)
    if opened is not None:
        raise _unpaired(BEGIN, opened)
    return kept, place


def _unpaired(mark: str, number: int) -> Usage:
    return Usage(
        f"line {number} of the hosts file, `{mark}`, has no counterpart: whose lines are macvm's is not to be told",
        f"remove what macvm wrote, with its marks `{BEGIN}` and `{END}`",
    )
