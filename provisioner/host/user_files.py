"""Files that the user names for a guest to have: public keys, and user-data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from provisioner.errors import Usage
from provisioner.model.names import printable
from provisioner.model.sizes import human_size
from provisioner.model.ssh_key import is_public_key, key_lines

#: A seed of more would be a disk of its own; and a device such as /dev/zero has no end.
MOST_BYTES = 16 << 20


def read_user_data(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """What stands in the files; an empty one says nothing. Raises Usage."""
    found = []
    for path in paths:
        try:
            found.append(_read(path))
        except OSError as error:
            raise Usage(f"the user-data {path} cannot be read: {error.strerror}", "check --user-data") from error
    return tuple(filter(None, found))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise Usage(f"{path} has more than {human_size(MOST_BYTES)}", "let the guest fetch what is large by itself")
    return content


def read_keys(paths: Sequence[Path]) -> tuple[str, ...]:
    """Lines of public key files. Raises Usage, for a private key too: it would end in the guest."""
    keys: list[str] = []
    for path in paths:
        try:
            text = _read(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            hint = "name a public key, such as ~/.ssh/id_ed25519.pub"
            raise Usage(f"the key {path} cannot be read: {said}", hint) from error
        if "PRIVATE KEY" in text:
            raise Usage(f"{path} is a private key", f"the public one goes into guests: {path}.pub")
        lines = key_lines(text)
        for line in lines:
            if not is_public_key(line):
                hint = "a line for each: ssh-ed25519 AAAA… and a comment, as ssh-keygen writes it"
                raise Usage(f"{path} has a line that is no public key: {printable(line)}", hint)
        if not lines:
            raise Usage(f"{path} has no public key", "name a public key, such as ~/.ssh/id_ed25519.pub")
        keys += lines
    return tuple(keys)
