"""Files that the user names for a guest: what is no such file, or has no end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from provisioner.errors import Usage
from provisioner.host import user_files


@pytest.mark.parametrize("read", [user_files.read_user_data, user_files.read_keys])
@pytest.mark.parametrize(
    ("path", "said"),
    [("/dev/zero", "has more than 16 MiB"), ("/dev/null/key", "Not a directory"), ("/", "Is a directory")],
)
def test_what_cannot_be_a_guests_is_refused(read: Callable[[Sequence[Path]], object], path: str, said: str) -> None:
    with pytest.raises(Usage) as refused:
        read([Path(path)])
    assert refused.value.message.endswith(said)
    assert refused.value.hint


def test_user_data_comes_as_it_is_and_an_empty_one_says_nothing(tmp_path: Path) -> None:
    for name, content in (("large", b"x" * user_files.MOST_BYTES), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    assert user_files.read_user_data([tmp_path / "empty"]) == ()
    assert user_files.read_user_data([tmp_path / "large"]) == (b"x" * user_files.MOST_BYTES,)
