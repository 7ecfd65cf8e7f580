"""Mistakes in a lab file: where each one stands, and the error that names them all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from provisioner.errors import Problems, Usage
from provisioner.model.names import printable


class Place(NamedTuple):
    """Both count from 1; columns are characters."""

    line: int
    column: int


class Mistake(NamedTuple):
    place: Place
    what: str
    hint: str


#: As many mistakes are said of one file; who has more has them from one cause.
MOST_SAID = 500

_LONGEST = 400


class LabMistakes(Problems):
    """A lab file is wrong, as often as there are `problems`: each says `FILE:LINE:COLUMN: what`, and has a hint. As
    text, a line each."""

    def __init__(self, path: Path, mistakes: Iterable[Mistake]) -> None:
        found = sorted({Mistake(at, _visible(what), _visible(hint)) for at, what, hint in mistakes})
        if more := found[MOST_SAID:]:
            found[MOST_SAID:] = [Mistake(more[0].place, f"{len(more)} more mistakes follow", "mend those above first")]
        self.mistakes = tuple(found)
        super().__init__([Usage(f"{shown(path, at)}: {what}", hint) for at, what, hint in self.mistakes])
        self.message = "\n".join(f"{one.message}; {one.hint}" for one in self.problems)

    def __str__(self) -> str:
        return self.message


def shown(path: Path, at: Place) -> str:
    """`FILE:LINE:COLUMN`."""
    file = str(path) if str(path).isprintable() else printable(str(path), 200)
    return f"{file}:{at.line}:{at.column}"


def _visible(text: str) -> str:
    """`text`, of which the file may have brought in anything, as one line that a terminal shows as it is."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def guess(word: str, known: Iterable[str]) -> str:
    """`did you mean vepa?`, or all that could be meant."""
    import difflib  # most files have none

    candidates = list(known)
    near = difflib.get_close_matches(word[:100].lower(), candidates, n=1)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(candidates)}"
