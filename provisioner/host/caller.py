"""The user who called, through sudo too: what is theirs is read and made with their rights, never with root's."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from provisioner.errors import Unable
from provisioner.host.system import invoking_home
from provisioner.model.names import UUID


def through_sudo() -> bool:
    return os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") not in ("", "0")


@contextlib.contextmanager
def rights() -> Iterator[None]:
    """Theirs, for the whole process, during the block: a home may be full of symlinks that lead elsewhere, and root is
    not to follow them."""
    if not through_sudo():
        yield
        return
    user, group = int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", os.environ["SUDO_UID"]))
    groups = os.getgroups()
    os.setgroups(_groups(user, group))
    os.setegid(group)
    try:
        os.seteuid(user)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _groups(user: int, group: int) -> list[int]:
    """Theirs, and none of root's."""
    with contextlib.suppress(KeyError):
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    return [group]


def expanded(path: str) -> Path:
    """With `~` as the home of who called, which is not root's."""
    return invoking_home() / path[2:] if path.startswith("~/") else Path(path).expanduser()


def _state_path(name: str) -> Path:
    """In the place that the XDG Base Directory Specification gives it."""
    given = "" if through_sudo() else os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else invoking_home() / ".local/state"
    return base / "macvm" / name


def forget(folder: str, name: str) -> None:
    """Deletes a file of a `state_folder`; not there is fine. Raises Unable."""
    path = _state_path(folder) / name
    try:
        with rights():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise Unable(f"{path} cannot be deleted: {error.strerror}", f"rm {path}") from error


def kept(folder: str) -> list[Path]:
    """The files of a `state_folder` that are named after a machine's UUID, as ssh writes them and what it puts beside;
    none where there is no such folder."""
    path = _state_path(folder)
    try:
        with rights():
            return sorted(one for one in path.iterdir() if UUID.fullmatch(one.name.removesuffix(".old")))
    except OSError:
        return []


def forget_folder(folder: str) -> None:
    """Deletes the files of a `state_folder`, and what is empty then of what was made for it. Raises Unable."""
    for path in kept(folder):
        forget(folder, path.name)
    for empty in (_state_path(folder), _state_path(folder).parent):
        with contextlib.suppress(OSError), rights():
            empty.rmdir()


def state_folder(name: str) -> Path:
    """A folder for what is to be kept, made where it is missing. Raises Unable."""
    folder = _state_path(name)
    try:
        with rights():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unable(f"{folder} cannot be made: {error.strerror}", "name another place: XDG_STATE_HOME=DIR") from error
    return folder


def private_keys() -> list[Path]:
    """The SSH keys of who called through sudo, which ssh as root would not look for; none otherwise."""
    found: list[Path] = []
    if through_sudo():
        with contextlib.suppress(OSError), rights():
            publics = sorted((invoking_home() / ".ssh").glob("*.pub"))
            found = [path.with_suffix("") for path in publics if path.with_suffix("").is_file()]
    return found
