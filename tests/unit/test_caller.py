"""Files of the user who called."""

from __future__ import annotations

import os
import pwd
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


def test_through_sudo_a_home_is_the_callers(monkeypatch: pytest.MonkeyPatch, as_root: None) -> None:
    nobody = pwd.getpwnam("nobody")
    for name, value in (("SUDO_USER", "nobody"), ("SUDO_UID", str(nobody.pw_uid)), ("SUDO_GID", str(nobody.pw_gid))):
        monkeypatch.setenv(name, value)
    assert caller.expanded("~/.ssh/id.pub") == Path(nobody.pw_dir, ".ssh/id.pub")
    assert caller.expanded("/etc/id.pub") == Path("/etc/id.pub")
    # `sudo -u bob`: who runs is bob, and alice's home is not his.
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert caller.expanded("~/.ssh/id.pub") == Path(pwd.getpwuid(0).pw_dir, ".ssh/id.pub")


def test_the_callers_rights_are_theirs_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_root: None) -> None:
    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setenv("SUDO_GID", "65534")
    before = (os.geteuid(), os.getegid(), os.getgroups())
    with caller.rights():
        assert (os.geteuid(), os.getegid()) == (65534, 65534)
        assert 0 not in os.getgroups()
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
