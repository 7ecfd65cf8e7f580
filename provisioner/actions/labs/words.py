"""The words of a lab file: each read by the parser that reads it on the command line, and described for editors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from provisioner.actions.labs.files import Files
from provisioner.actions.labs.mistakes import guess
from provisioner.actions.labs.tree import Items, Table, Text
from provisioner.errors import Usage
from provisioner.model.names import printable

#: An option, but for those of a command that is to be typed, which is found whole.
_OPTION = re.compile(r"\bmacvm [^,;`]*|(?<![\w-])--([a-z][a-z-]*)=?")
#: Keys that are not called as their options.
_KEYS = {"ip-range": "range", "aux-address": "reserved", "ssh-key": "ssh_keys", "no-shim": "shim: false"}
#: What YAML 1.1 reads as a number to the base of sixty, and all versions as a decimal or floating one.
_NUMERIC_MAC = re.compile(r"[0-9]{1,2}(?::[0-9]{1,2})+|[0-9]+(?:e[0-9]+)?", re.IGNORECASE)


def mistake(what: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("mistake", "{what}", {"what": what, "hint": hint})


def from_usage(error: Usage) -> PydanticCustomError:
    """A parser's complaint."""
    return mistake(in_file_words(error.message), in_file_words(error.hint))


def in_file_words(text: str) -> str:
    """`text` with a file's keys in place of the command line's options."""

    def key(option: re.Match[str]) -> str:
        if option[1] is None:
            return option[0]
        said = _KEYS.get(option[1]) or option[1].replace("-", "_")
        return said + (" " if option[0].endswith("=") else "")

    return _OPTION.sub(key, text)


class Word:
    """Annotates a value that one scalar is read to. `what` it is, as in a sentence; `known` are all that it may be,
    where those are few; `read` raises Usage."""

    def __init__(
        self, what: str, read: Callable[[str], object], schema: dict[str, Any], known: Iterable[str] = ()
    ) -> None:
        self.what, self.read, self.schema, self.known = what, read, schema, tuple(known)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)

    def _validate(self, value: object) -> object:
        return self._validate_by(self.read, value)

    def _validate_by(self, read: Callable[[str], object], value: object) -> object:
        if not isinstance(value, str):
            raise mistake(f"{_kind(value)} stands where {self.what} belongs", self._expected())
        try:
            return read(value)
        except Usage as error:
            if isinstance(value, Text) and value.written:
                what = f"what {value.written} stands for is not {self.what}"
                raise mistake(what, self._expected()) from None
            if self.known:
                raise mistake(in_file_words(error.message), guess(value, self.known)) from None
            raise from_usage(error) from None

    def _expected(self) -> str:
        return f"one of {', '.join(self.known)}" if self.known else f"write {self.what}"


def _kind(value: object) -> str:
    return {Items: "a list", Table: "a mapping", type(None): "nothing"}.get(type(value), "something else")


class FileWord(Word):
    """Annotates what a file that the lab names is read to. `read` takes the lab's Files too."""

    def __init__(self, what: str, read: Callable[[Files, str], object]) -> None:
        super().__init__(what, str, {"type": "string"})
        self._read_from = read

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate_in)

    def _validate_in(self, value: object, info: ValidationInfo[Files]) -> object:
        return self._validate_by(lambda text: self._read_from(info.context, text), value)


def choice(what: str, known: Iterable[str]) -> Word:
    """One of a few words, as it is."""
    words = tuple(known)

    def read(text: str) -> str:
        if text not in words:
            raise Usage(f"{printable(text)} is not {what}", f"one of {', '.join(words)}")
        return text

    return Word(what, read, {"enum": list(words)}, words)


def quoted_mac(parse: Callable[[str], object]) -> Callable[[str], object]:
    """A MAC that other readers of YAML take for a number must stand in quotes: the file is not macvm's alone."""

    def read(text: str) -> object:
        if isinstance(text, Text) and text.plain and _NUMERIC_MAC.fullmatch(text):
            found = parse(text)
            raise Usage(f"without quotes {text} is a number to many YAML readers", f'write "{found}"')
        return parse(text)

    return read


class Several:
    """Annotates a list that may also be written as its only item."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_as_list, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class Short:
    """Annotates a mapping that may also be written as the value of its one important key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._as_table, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler(schema)
        key = handler.resolve_ref_schema(whole)["properties"][self._key]
        return {"anyOf": [key, whole]}

    def _as_table(self, value: object) -> object:
        return {self._key: value} if isinstance(value, Text) else value


class MayBeEmpty:
    """Annotates a mapping that stands for itself with nothing in it; its form takes None."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "null"}]}
