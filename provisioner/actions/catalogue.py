"""The catalogue of images: the shipped one, with what the user's own files add."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from provisioner.errors import MacvmError, Problems, Usage
from provisioner.model.catalogue import CatalogueEntry, Facts, merge, parse_catalogue
from provisioner.resources import resource

#: Files of users, in the order of their names: the last one that says something of an image is right.
FOLDER = Path("/etc/macvm/catalog.d")


@cache
def catalogue(folder: Path = FOLDER) -> dict[str, CatalogueEntry]:
    """All entries by image name. Raises what is wrong with the user's files."""
    entries, problems = look(folder)
    if problems:
        raise problems[0] if len(problems) == 1 else Problems(problems)
    return entries


@cache
def look(folder: Path = FOLDER) -> tuple[dict[str, CatalogueEntry], list[MacvmError]]:
    """The entries, and what is wrong with the user's files that are then left out."""
    shipped = resource("images", "catalog.toml")
    files: list[Facts] = [parse_catalogue(shipped.read_text(), shipped.name)]
    problems: list[MacvmError] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            files.append(parse_catalogue(path.read_text(), str(path)))
        except Usage as error:
            problems.append(error)
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            problems.append(Usage(f"{path} cannot be read: {said}", "mend it, or move it away"))
    return merge(files), problems


def find_entry(name: str) -> CatalogueEntry | None:
    """How the guests of an image are used, for those whom a bad file of the user's shall not stop."""
    return look()[0].get(name)
