"""A lab file's text as a tree of values that know where they stand.

Every scalar stays the text that was written, as a word of a command line is: what YAML's versions make of `no`, `1e3`
or `52:54:00:12:34:56` has no say. What makes a small file large or its reading long is refused: aliases, deep nesting,
too many values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from provisioner.actions.labs.mistakes import Mistake, Place
from provisioner.model.names import printable

#: In bytes; 200 machines that share nothing take 60 KB.
LARGEST = 512 << 10
#: A lab file needs six.
DEEPEST = 16
#: Of keys and values; 200 machines that share nothing have 8,000.
MOST_VALUES = 50_000

START = Place(1, 1)

#: Characters of a text with variables in it that a mistake shows.
_SHOWN = 60

_NULL = ("", "~", "null", "Null", "NULL")
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<inside>[^}]*)(?P<end>\}?))")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class Text(str):
    """A scalar. `plain`: it stands without quotes. `written` is the file's text where variables changed it, otherwise
    "": what they hold may be secret. `broken`: a mistake has been found in it."""

    plain = False
    written = ""
    broken = False


class Table(dict[str, Any]):
    """A mapping, with the places of its keys and values."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[Place, Place]] = {}


class Items(list[Any]):
    """A sequence, with the places of its items."""

    def __init__(self) -> None:
        self.places: list[Place] = []


def find(tree: object, location: Sequence[object]) -> tuple[Place, object]:
    """Where in a tree, and what, `location` leads to: as far as it leads. The place of a key that ends it, marked
    `[key]`, is the key's own."""
    place, node = START, tree
    last: tuple[Place, Place] | None = None
    for step in location:
        if step == "[key]" and last:
            return last[0], node
        if isinstance(node, Table) and step in node:
            last = node.places[str(step)]
            place, node = last[1], node[str(step)]
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node):
            last, place, node = None, node.places[step], node[step]
    return place, node


def texts(node: object) -> Iterator[Text]:
    """All scalars below a node."""
    if isinstance(node, Text):
        yield node
    elif isinstance(node, Table | Items):
        for one in node.values() if isinstance(node, Table) else node:
            yield from texts(one)


class _TooMuch(Exception):
    """What follows is not read."""


def read_tree(data: bytes, environment: Mapping[str, str], mistakes: list[Mistake]) -> Table:
    """The tree of a file; what is wrong with it goes into `mistakes`, and leaves a hole there."""
    text = _decode(data, mistakes)
    return Table() if text is None else _Reader(text, environment, mistakes).read()


def _decode(data: bytes, mistakes: list[Mistake]) -> str | None:
    if len(data) > LARGEST:
        hint = "`count` makes many alike of one, and `defaults` holds what they share"
        mistakes.append(Mistake(START, f"more than {LARGEST >> 10} KiB are no lab file", hint))
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        what = f"byte {data[error.start]:#04x} is not UTF-8"
        mistakes.append(Mistake(_place_after(before), what, "save the file as UTF-8"))
        return None


def _place_after(before: str) -> Place:
    return Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


class _Reader:
    def __init__(self, text: str, environment: Mapping[str, str], mistakes: list[Mistake]) -> None:
        self._text, self._environment, self._mistakes = text, environment, mistakes
        self._values = 0
        self._events: Iterator[Event] = iter(())

    def read(self) -> Table:
        found: list[object] = []
        try:
            self._events = YAML(typ="safe", pure=True).parse(self._text)
            for event in self._events:
                if isinstance(event, DocumentStartEvent) and found:
                    self._complain(event, "a second document begins here", "one file is one lab: leave out the ---")
                    raise _TooMuch
                if isinstance(event, NodeEvent):
                    found.append(self._top(event))
        except _TooMuch:
            pass
        except ReaderError as error:
            what = f"the character {printable(chr(error.character))} has no place in YAML"
            self._mistakes.append(Mistake(_place_after(self._text[: error.position]), what, "take it out"))
        except MarkedYAMLError as error:
            self._mistakes.append(self._of_syntax(error))
        except (YAMLError, ValueError) as error:
            # The library's own slips over hostile text; a directive such as `%YAML x` is one.
            self._mistakes.append(Mistake(START, f"this is no YAML: {printable(str(error))}", "check its first lines"))
        top = found[0] if found else None
        if not found and not self._mistakes:
            self._mistakes.append(Mistake(START, "there is nothing in the file", _BEGIN))
        return top if isinstance(top, Table) else Table()

    def _top(self, event: NodeEvent) -> object:
        top = self._value(event, 1)
        if not isinstance(top, Table) and not (isinstance(top, Text) and top.broken):
            what = "a list" if isinstance(top, Items) else "nothing" if top is None else "a text"
            self._complain(event, f"the file holds {what}, and not the keys of a lab", _BEGIN)
        return top

    def _value(self, event: Event, depth: int) -> object:
        """None for what is empty."""
        self._values += 1
        if self._values > MOST_VALUES:
            hint = "`count` makes many alike of one, and `defaults` holds what they share"
            self._complain(event, f"there are more than {MOST_VALUES} values in the file", hint)
            raise _TooMuch
        if depth > DEEPEST:
            self._complain(event, f"this is nested more than {DEEPEST} deep", "a lab file needs no more than six")
            raise _TooMuch
        if isinstance(event, AliasEvent):
            hint = "`defaults` holds what VMs share, and `count` makes several alike"
            self._complain(event, f"*{event.anchor[:_SHOWN]} is an alias, which a lab file has none of", hint)
            return _broken()
        tag = getattr(event, "ctag", None) or getattr(event, "tag", None)
        if tag is not None and str(tag):
            self._complain(event, f"{printable(str(tag))} is a tag, which a lab file has none of", "leave it out")
        if isinstance(event, MappingStartEvent):
            return self._table(depth)
        if isinstance(event, SequenceStartEvent):
            return self._items(depth)
        assert isinstance(event, ScalarEvent)
        return self._scalar(event)

    def _table(self, depth: int) -> Table:
        table = Table()
        for event in self._events:
            if isinstance(event, MappingEndEvent):
                break
            key = self._key(event, depth)
            at, event = _place(event), next(self._events)
            value = self._value(event, depth + 1)
            if key is None:
                continue
            if key in table:
                first = table.places[key][0].line
                what = f"the key {printable(key)} is there twice, first in line {first}"
                self._mistakes.append(Mistake(at, what, "make one of them"))
                continue
            table[key], table.places[key] = value, (at, _place(event))
        return table

    def _key(self, event: Event, depth: int) -> str | None:
        """None for what cannot be one."""
        key = self._value(event, depth + 1) if not isinstance(event, ScalarEvent) else event.value
        self._values += 1
        if isinstance(key, str) and not isinstance(key, Text):
            return key if self._is_unicode(event) else None
        if not isinstance(key, Text):
            hint = "a key is a word; a text that begins with { or [ stands in quotes"
            self._complain(event, "a list or a mapping is no key", hint)
        return None

    def _items(self, depth: int) -> Items:
        items = Items()
        for event in self._events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self._value(event, depth + 1))
            items.places.append(_place(event))
        return items

    def _scalar(self, event: ScalarEvent) -> Text | None:
        plain = event.style in (None, "")
        if plain and event.value in _NULL:
            return None
        text = Text(event.value)
        if not self._is_unicode(event):
            return _broken()
        if "$" in event.value:
            text = self._expanded(event)
        text.plain = plain and not text.written
        return text

    def _is_unicode(self, event: Event) -> bool:
        """A text in quotes may say half a pair of UTF-16's, as JSON's writers do."""
        value = event.value if isinstance(event, ScalarEvent) else ""
        if any("\ud800" <= character <= "\udfff" for character in value):
            hint = "save the character itself, as UTF-8"
            self._complain(event, "half a surrogate pair of UTF-16 is no character", hint)
            return False
        return True

    def _expanded(self, event: ScalarEvent) -> Text:
        """With the environment's values in place of `${NAME}` and `${NAME:-default}`."""
        wrong, (begin, as_written) = False, self._beginning(event)

        def value(found: re.Match[str]) -> str:
            nonlocal wrong
            if found["dollar"]:
                return "$"
            inside = _INSIDE.fullmatch(found["inside"]) if found["end"] else None
            if inside is None:
                what, hint = f"{printable(found[0])} names no variable", "${NAME} or ${NAME:-default}; a $ alone is $$"
            elif here := self._environment.get(inside[1]):
                return here
            elif inside[2] is not None:
                return inside[2]
            else:
                name = inside[1]
                is_empty = name in self._environment
                what = f"the variable {name} is {'empty' if is_empty else 'not set'}"
                hint = f"{name}=… before the command, or ${{{name}:-default}} in the file"
            wrong = True
            column = begin.column + (found.start() if as_written else 0)
            self._mistakes.append(Mistake(Place(begin.line, column), what, hint))
            return ""

        text = Text(_VARIABLE.sub(value, event.value))
        text.broken = wrong
        if any(not found["dollar"] for found in _VARIABLE.finditer(event.value)):
            text.written = event.value if len(event.value) <= _SHOWN else f"{event.value[:_SHOWN]}…"
        return text

    def _beginning(self, event: ScalarEvent) -> tuple[Place, bool]:
        """Where a scalar's text begins, and whether it stands there letter by letter, in one line."""
        start, quote = event.start_mark, 0 if event.style in (None, "") else 1
        as_written = "\n" not in event.value and self._text.startswith(event.value, start.index + quote)
        return Place(start.line + 1, start.column + 1 + (quote if as_written else 0)), as_written

    def _of_syntax(self, error: MarkedYAMLError) -> Mistake:
        ends = "end of stream" in str(error.problem) or "stream end" in str(error.problem)
        # What has no end is looked for where it begins.
        mark = (error.context_mark if ends else None) or error.problem_mark or error.context_mark
        at = Place(mark.line + 1, mark.column + 1) if mark else START
        line = self._text.split("\n")[at.line - 1] if at.line <= self._text.count("\n") + 1 else ""
        if "\t" in line[: at.column]:
            return Mistake(at, "a tab cannot stand here", "YAML is indented with spaces")
        said = " ".join(str(error.problem or error.context or "it ends too soon").split())
        return Mistake(at, f"this is no YAML: {said}", _SYNTAX_HINT)

    def _complain(self, event: Event, what: str, hint: str) -> None:
        self._mistakes.append(Mistake(_place(event), what, hint))


_BEGIN = "begin with `vms:` and below it a name for each; `macvm lab schema` has all keys"
_SYNTAX_HINT = "check the indentation, the quotes and the colons there and in the line above"


def _place(event: Event) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _broken() -> Text:
    text = Text()
    text.broken = True
    return text
