"""Loads a lab file: all that is wrong in it is said at once, each with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from provisioner.actions.labs.building import Builder
from provisioner.actions.labs.files import Files
from provisioner.actions.labs.forms import (
    DefaultsForm,
    EndpointForm,
    Form,
    ImageForm,
    LabForm,
    NetworkForm,
    NicForm,
    ShimForm,
    SubnetForm,
    VmForm,
)
from provisioner.actions.labs.mistakes import LabMistakes, Mistake, guess
from provisioner.actions.labs.tree import LARGEST, START, Table, Text, find, read_tree, texts
from provisioner.actions.labs.wishes import Lab
from provisioner.errors import Usage
from provisioner.model.names import check_name, printable

_SECTIONS: dict[object, type[Form]] = {
    "images": ImageForm,
    "networks": NetworkForm,
    "vms": VmForm,
    "endpoints": EndpointForm,
    "shims": ShimForm,
}

#: A shorter one is more likely a word that mistakes have anyway.
_SHORTEST_SECRET = 6


def load(path: Path, environment: Mapping[str, str]) -> Lab:
    """`${NAME}` in the file is taken from `environment`, and paths begin at the file's folder.

    Raises LabMistakes, and Usage where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        hint = "name a lab file, or write ./macvm.yaml; `macvm lab schema` has all keys"
        raise Usage(f"the lab file {path} cannot be read: {error.strerror}", hint) from error
    return parse(data, path, environment)


def parse(data: bytes, path: Path, environment: Mapping[str, str]) -> Lab:
    """The lab that stands in `data`, as if it stood in the file `path`. Raises LabMistakes."""
    mistakes: list[Mistake] = []
    tree = read_tree(data, environment, mistakes)
    folder = path.absolute().parent
    files = Files(folder)
    form = _validate(tree, files, mistakes)
    name = form.lab or _folder_name(folder, tree, mistakes)
    builder = Builder(name, files, tree, form, mistakes)
    builder.check_networks()
    networks, machines, endpoints = builder.networks(), builder.machines(), builder.endpoints()
    shims = builder.shims()
    if mistakes:
        raise LabMistakes(path, _without_secrets(mistakes, tree))
    return Lab(name, path, networks, machines, endpoints, shims, builder.places)


def _without_secrets(mistakes: list[Mistake], tree: Table) -> list[Mistake]:
    """What variables hold may have come into a mistake by another way than the text that it stands in."""
    hidden = {str(text): text.written for text in texts(tree) if text.written and len(text) >= _SHORTEST_SECRET}

    def shown(said: str) -> str:
        for value, written in hidden.items():
            said = said.replace(value, written)
        return said

    return [Mistake(one.place, shown(one.what), shown(one.hint)) for one in mistakes] if hidden else mistakes


def _folder_name(folder: Path, tree: Table, mistakes: list[Mistake]) -> str:
    """A lab without a name has its folder's."""
    try:
        return check_name(folder.name)
    except Usage:
        if "lab" not in tree and not mistakes:
            what = f"the lab has no name, and its folder's, {printable(folder.name)}, cannot be one"
            mistakes.append(Mistake(START, what, "add a line such as lab: classic"))
        return "lab"


def _validate(tree: Table, files: Files, mistakes: list[Mistake]) -> LabForm:
    """What of a file is right by itself: where an entry of a section is wrong, the others are still looked at."""
    try:
        return LabForm.model_validate(tree, context=files)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    rest: dict[str, Any] = dict(tree)
    for one in found:
        location = one["loc"]
        _, node = find(tree, location)
        if not (isinstance(node, Text) and node.broken):
            mistakes.append(_mistake(tree, location, one))
        section = rest.get(str(location[0])) if location else None
        if isinstance(section, dict) and len(location) > 1:
            rest[str(location[0])] = {key: entry for key, entry in section.items() if key != location[1]}
        elif location:
            rest.pop(str(location[0]), None)
    return LabForm.model_validate(rest, context=files)


def _mistake(tree: Table, location: Sequence[str | int], error: Any) -> Mistake:
    place, _ = find(tree, location)
    match error["type"]:
        case "mistake":
            return Mistake(place, error["ctx"]["what"], error["ctx"]["hint"])
        case "extra_forbidden":
            key, place = str(location[-1]), find(tree, (*location, "[key]"))[0]
            known = _form_around(location).model_fields
            return Mistake(place, f"there is no key {printable(key)} here", guess(key, known))
        case "missing":
            return Mistake(place, f"{location[-1]} is missing here", f"add {location[-1]}: …")
        case "list_type" | "tuple_type":
            return Mistake(place, "a list belongs here", "[one, two], or a line with - for each")
    return Mistake(place, "keys and values belong here", "`macvm lab schema` has all keys")


def _form_around(location: Sequence[str | int]) -> type[Form]:
    """Of the mapping that a location's last key stands in."""
    match tuple(location[:-1]):
        case ("defaults",):
            return DefaultsForm
        case ("defaults", "nics", _) | ("vms", _, "nics", _):
            return NicForm
        case ("networks", _, "subnets", _):
            return SubnetForm
        case (section, _):
            return _SECTIONS.get(section, LabForm)
    return LabForm
