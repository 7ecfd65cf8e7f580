"""The files that a lab file names; each is read once."""

from __future__ import annotations

from pathlib import Path

from provisioner.errors import Usage
from provisioner.host.system import invoking_home
from provisioner.host.user_files import read_keys, read_user_data
from provisioner.model.names import printable


class Files:
    """Relative paths begin at `folder`, and `~` is the home of who called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: dict[Path, tuple[str, ...]] = {}
        self._user_data: dict[Path, tuple[bytes, ...]] = {}

    def path(self, text: str) -> Path:
        """Raises Usage where there is no such file."""
        if not text or "\0" in text:
            raise Usage(f"{printable(text)} names no file", "the path of one")
        given = Path(text)
        home = given.parts[:1] == ("~",)
        path = invoking_home().joinpath(*given.parts[1:]) if home else self._folder / given
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise Usage(f"the file {printable(text)} cannot be reached: {error.strerror}", "look at it") from error
        raise Usage(f"there is no file {printable(text, 100)}", f"paths begin at {self._folder}")

    def keys(self, text: str) -> tuple[str, ...]:
        """The public keys in a file. Raises Usage."""
        path = self.path(text)
        if path not in self._keys:
            self._keys[path] = read_keys([path])
        return self._keys[path]

    def user_data(self, text: str) -> tuple[bytes, ...]:
        """What stands in a file; nothing of an empty one. Raises Usage."""
        path = self.path(text)
        if path not in self._user_data:
            self._user_data[path] = read_user_data([path])
        return self._user_data[path]
