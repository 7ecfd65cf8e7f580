"""Seeds as volumes: what was written reads back, and nobody else reads it."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner.errors import MacvmError, Unable
from provisioner.host import seeds


def read_iso(path: Path) -> dict[str, bytes]:
    """Every file by its Joliet name; the Rock Ridge names must agree."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    assert iso.pvd.volume_identifier.decode().strip() == "cidata"
    found: dict[str, dict[str, bytes]] = {}
    for kind in ("joliet_path", "rr_path"):
        names = found.setdefault(kind, {})
        for above, _, leaves in iso.walk(**{kind: "/"}):
            for leaf in leaves:
                name = f"{above.rstrip('/')}/{leaf}"
                content = io.BytesIO()
                iso.get_file_from_iso_fp(content, **{kind: name})
                names[name.lstrip("/")] = content.getvalue()
    iso.close()
    assert found["joliet_path"] == found["rr_path"]
    return found["joliet_path"]


NAMES = [
    "meta-data", "user-data", "network-config", "vendor-data", "files/etc/network/interfaces", "files/etc/dhcpcd.conf",
    "files/etc/ssh/sshd_config.d/a-name-of-many-more-characters-than-iso-9660-has.conf",
]  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=5000), min_size=1))
def test_a_seed_reads_back_as_written(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tmp_path / "seed.iso"
    path.unlink(missing_ok=True)
    seeds.write_seed(path, files, (os.getuid(), os.getgid()))
    assert read_iso(path) == files


def test_only_its_owner_may_read_a_seed(tmp_path: Path, as_root: None) -> None:
    path = tmp_path / "seed.iso"
    umask = os.umask(0)
    try:
        seeds.write_seed(path, {"user-data": b"secret"}, (65534, 65534))
    finally:
        os.umask(umask)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 65534, 65534)


def test_a_guest_that_has_the_seed_open_sees_the_new_one(tmp_path: Path) -> None:
    path, owner = tmp_path / "seed.iso", (os.getuid(), os.getgid())
    seeds.write_seed(path, {"meta-data": b"old"}, owner)
    with path.open("rb") as opened:
        before = opened.read()
        seeds.replace_seed(path, {"meta-data": b"new", "network-config": b"n" * 200_000}, owner)
        opened.seek(0)
        after = opened.read()
    assert len(after) == len(before)
    (tmp_path / "seen.iso").write_bytes(after)
    assert read_iso(tmp_path / "seen.iso") == {"meta-data": b"new", "network-config": b"n" * 200_000}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["seed.iso", "seen.iso"]


def test_a_seed_that_needs_more_room_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path, owner = tmp_path / "seed.iso", (os.getuid(), os.getgid())
    seeds.write_seed(path, {"meta-data": b"old"}, owner)
    seeds.replace_seed(path, {"meta-data": b"n" * 1_500_000}, owner)
    assert read_iso(path) == {"meta-data": b"n" * 1_500_000}
    assert [one.name for one in tmp_path.iterdir()] == ["seed.iso"]


def test_a_seed_that_was_being_written_when_macvm_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    path, owner = tmp_path / "seed.iso", (os.getuid(), os.getgid())
    seeds.write_seed(path, {"meta-data": b"old"}, owner)
    seeds.write_seed(tmp_path / ".seed.iso.new", {"meta-data": b"new"}, owner)
    with path.open("r+b") as torn:
        torn.write(bytes(40_000))
    assert seeds.read_seed(path) == {"meta-data": b"new"}
    (tmp_path / ".seed.iso.begun").write_bytes(b"half")
    seeds.replace_seed(path, seeds.read_seed(path), owner)
    assert read_iso(path) == {"meta-data": b"new"}
    assert [one.name for one in tmp_path.iterdir()] == ["seed.iso"]


def test_a_seed_is_never_written_over_or_through_anything(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"untouched")
    (tmp_path / "link.iso").symlink_to(other)
    (tmp_path / "dangling.iso").symlink_to(tmp_path / "new")
    for name in ("other", "link.iso", "dangling.iso"):
        with pytest.raises((OSError, MacvmError)):
            seeds.write_seed(tmp_path / name, {"meta-data": b""}, (os.getuid(), os.getgid()))
    assert other.read_bytes() == b"untouched"
    assert not (tmp_path / "new").exists()


def test_the_same_texts_give_the_same_bytes_at_any_time_and_in_any_time_zone(tmp_path: Path) -> None:
    files = {"meta-data": b"{}", "files/etc/dhcpcd.conf": b"", "files/etc/network/interfaces": b"auto lo\n"}
    began = int(time.time())
    seeds.write_seed(tmp_path / "first.iso", files, (os.getuid(), os.getgid()))
    # A directory record's date has seconds.
    while int(time.time()) == began:
        time.sleep(0.02)
    code = "import os, sys; from pathlib import Path; from provisioner.host import seeds; "
    code += f"seeds.write_seed(Path(sys.argv[1]), {files!r}, (os.getuid(), os.getgid()))"
    later = tmp_path / "later.iso"
    subprocess.run([sys.executable, "-c", code, later], check=True, env=os.environ | {"TZ": "Asia/Kolkata"})
    assert later.read_bytes() == (tmp_path / "first.iso").read_bytes()


@pytest.mark.parametrize("content", [b"", b"junk" * 20000, "cut", "zeros"])
def test_a_damaged_seed_is_said_to_be_so(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "seed.iso"
    seeds.write_seed(path, {"meta-data": b"{}"}, (os.getuid(), os.getgid()))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:40000], "zeros": whole[:32768] + bytes(32768)}.get(content, content))  # type: ignore[call-overload]
    with pytest.raises(Unable, match="is damaged"):
        seeds.read_seed(path)
