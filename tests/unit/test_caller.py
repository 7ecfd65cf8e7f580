"""Files of the user who called."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.errors import Unable
from provisioner.host import caller


def test_a_file_is_forgotten_and_no_folder_is_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    caller.forget("known_hosts", "the-uuid")
    assert not (tmp_path / "state").exists()
    kept = caller.state_folder("known_hosts") / "another"
    for path in (kept, kept.with_name("the-uuid")):
        path.write_text("key")
    caller.forget("known_hosts", "the-uuid")
    assert list(kept.parent.iterdir()) == [kept]


def test_what_cannot_be_forgotten_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_UID", raising=False)
    (caller.state_folder("known_hosts") / "the-uuid").mkdir()
    with pytest.raises(Unable, match="cannot be deleted"):
        caller.forget("known_hosts", "the-uuid")
