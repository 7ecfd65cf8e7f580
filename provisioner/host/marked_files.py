"""Files outside macvm's own folders, each of which says in its first line that macvm wrote it.

One without that line is somebody else's, and is neither written nor removed. Folders that had to be made for a file
stand in its second line, so that they can go with it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from provisioner.errors import Unable

_FOLDERS = "# Folders made for it: "


def mark(remover: str) -> str:
    """The first line; `remover` is the command that takes the file away again."""
    return f"# Written by macvm: {remover} removes it"


def is_there(path: Path) -> bool:
    return os.path.lexists(path)


def is_marked(path: Path, first_line: str) -> bool:
    """False where there is no file, and for a link: systemd masks a unit by one to /dev/null. Raises Unable."""
    return not path.is_symlink() and path.is_file() and _read(path).split("\n", 1)[0] == first_line


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise Unable(f"{path} cannot be read: {error.strerror}", "sudo macvm …") from error


def write(path: Path, first_line: str, body: str) -> None:
    """Puts a file in place at once, with the folders above it. Raises Unable, and then no folder is left behind."""
    made, text = assembled(path, first_line, body)
    try:
        for folder in made:
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        _replace(path, text)
    except OSError as error:
        _remove_folders(made)
        where = next(folder for folder in path.parents if folder.exists())
        hint = "run as root: sudo macvm …" if os.geteuid() else f"see `findmnt -T {where}`: is it read-only, or full?"
        raise Unable(f"{path} cannot be written: {error.strerror}", hint) from error


def assembled(path: Path, first_line: str, body: str, there: Collection[Path] = ()) -> tuple[list[Path], str]:
    """The folders that are to be made for a file, where those that are `there` by then exist, and its whole text."""
    made = [folder for folder in reversed(path.parents) if not (folder.exists() or folder in there)]
    noted = _folders(path) if is_marked(path, first_line) else [str(folder) for folder in made]
    return made, "\n".join([first_line, *([_FOLDERS + " ".join(noted)] if noted else []), body])


def _replace(path: Path, text: str) -> None:
    # systemd and NetworkManager read no file with such a beginning and without their ending.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".macvm-")
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """With the folders that were made for it, where nothing else has come to lie in them. Raises Unable."""
    folders = made_for(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Unable(f"{path} cannot be removed: {error.strerror}", f"see `lsattr {path}`") from error
    _remove_folders(folders)


def made_for(path: Path) -> list[Path]:
    """The folders that had to be made for a file, from the outermost on."""
    return [Path(name) for name in _folders(path)]


def _folders(path: Path) -> list[str]:
    lines = _read(path).splitlines()
    return lines[1].removeprefix(_FOLDERS).split() if len(lines) > 1 and lines[1].startswith(_FOLDERS) else []


def _remove_folders(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()
