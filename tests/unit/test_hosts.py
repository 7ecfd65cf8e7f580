"""macvm's block in a hosts file: as text, and as a file with its mode, its owner and whatever it is mounted as."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import Unable, Usage
from provisioner.host import hosts_file
from provisioner.model.hosts import BEGIN, END, is_host_name, names_elsewhere, with_block

LINES = ["192.0.2.11 web", "2001:db8::11 web"]
BLOCK = f"{BEGIN}\n192.0.2.11 web\n2001:db8::11 web\n{END}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", BLOCK),
        ("127.0.0.1 localhost\n", f"127.0.0.1 localhost\n{BLOCK}"),
        ("127.0.0.1 localhost", f"127.0.0.1 localhost\n{BLOCK}"),
        (f"a\n{BEGIN}\nold\n{END}\nb\n", f"a\n{BLOCK}b\n"),
        (f"a\r\n{BEGIN}\r\nold\r\n{END}\r\nb\r\n", f"a\r\n{BLOCK}b\r\n"),
        (f"{BEGIN}\n{END}\n", BLOCK),
        (f"{BEGIN}\nold\n{END}", BLOCK),
        (f"a\n{BEGIN}\nx\n{END}\nb\n{BEGIN}\ny\n{END}\nc\n", f"a\n{BLOCK}b\nc\n"),
    ],
)
def test_the_block_comes_in_its_place_or_at_the_end(text: str, expected: str) -> None:
    assert with_block(text, LINES) == expected


@given(
    # Strings of the code are tried too: marks are the next test's.
    st.text(
        alphabet=st.characters(exclude_categories=()) | st.sampled_from("\n\r\f \x85\u2028\udc80"), max_size=60
    ).filter(lambda text: BEGIN not in text and END not in text),
    st.lists(st.sampled_from(LINES), max_size=3),
    st.lists(st.sampled_from(LINES), min_size=1, max_size=3),
)
def test_other_lines_stay_and_nothing_is_left(text: str, first: list[str], second: list[str]) -> None:
    whole = text if not text or text.endswith("\n") else f"{text}\n"
    once = with_block(text, second)
    assert once == with_block(with_block(text, first), second)
    assert once.startswith(whole)
    assert with_block(once, second) == once
    assert with_block(once, []) == whole
    assert with_block(text, []) == text


@pytest.mark.parametrize("text", [f"{BEGIN}\nx\n", f"x\n{END}\n", f"{BEGIN}\n{BEGIN}\n{END}\n", f"{END}\n{BEGIN}\n"])
def test_marks_that_are_not_in_pairs_stop_everything(text: str) -> None:
    for lines in (LINES, []):
        with pytest.raises(Usage, match="has no counterpart"):
            with_block(text, lines)


def test_names_of_other_lines() -> None:
    text = f"127.0.0.1 localhost Web # old\n192.0.2.9 web\n\n# 192.0.2.8 gone\n{BEGIN}\n192.0.2.7 mine\n{END}\n"
    assert names_elsewhere(text) == {"localhost": "127.0.0.1", "web": "127.0.0.1"}


@pytest.mark.parametrize("name", ["web", "web-1", "a.example", "9lives", "my_vm", "localhosted", "x" * 253])
def test_names_for_hosts(name: str) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name", ["", "a b", "a\nb", "a#b", "-a", "a-", "é", "localhost", "LocalHost.localdomain", "10.1", "7", "x" * 254]
)
def test_names_that_are_none(name: str) -> None:
    assert not is_host_name(name)


# --- the file ---------------------------------------------------------------------------------------------------------


def appending(line: str) -> Callable[[str], str]:
    return lambda text: f"{text}{line}\n"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_bytes(b"127.0.0.1 localhost\r\n# \xff\n")
    path.chmod(0o640)
    return path


def test_bytes_mode_owner_and_attributes_stay(hosts: Path, as_root: None) -> None:
    os.chown(hosts, 12345, 12346)
    os.setxattr(hosts, "trusted.macvm", b"label")
    hosts_file.edit(appending("x"), hosts)
    now = hosts.stat()
    assert hosts.read_bytes() == b"127.0.0.1 localhost\r\n# \xff\nx\n"
    assert (now.st_uid, now.st_gid, now.st_mode & 0o7777) == (12345, 12346, 0o640)
    assert os.getxattr(hosts, "trusted.macvm") == b"label"
    assert os.listdir(hosts.parent) == ["hosts"]


def test_a_reader_has_the_old_file_or_the_new_one(hosts: Path) -> None:
    with open(hosts, "rb") as reader:
        hosts_file.edit(appending("x"), hosts)
        assert reader.read() == b"127.0.0.1 localhost\r\n# \xff\n"


def test_no_change_writes_nothing(hosts: Path) -> None:
    before = hosts.stat()
    hosts_file.edit(lambda text: text, hosts)
    assert hosts.stat().st_ino == before.st_ino


def test_a_file_that_is_not_there_is_made(tmp_path: Path) -> None:
    hosts_file.edit(appending("x"), tmp_path / "hosts")
    assert (tmp_path / "hosts").read_text() == "x\n"
    assert (tmp_path / "hosts").stat().st_mode & 0o7777 == 0o644


def test_a_symlink_stays_one(hosts: Path) -> None:
    link = hosts.with_name("link")
    link.symlink_to("hosts")
    hosts_file.edit(appending("x"), link)
    assert link.is_symlink()
    assert hosts.read_bytes().endswith(b"x\n")


def test_several_at_once_lose_nothing(hosts: Path) -> None:
    def run(number: int) -> None:
        for turn in range(10):
            hosts_file.edit(appending(f"{number} {turn}"), hosts)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(re.findall(rb"^\d \d$", hosts.read_bytes(), re.MULTILINE)) == 40


def test_an_error_leaves_the_file_alone(hosts: Path) -> None:
    def fail(text: str) -> str:
        raise Usage("no", "no")

    before = hosts.read_bytes()
    with pytest.raises(Usage):
        hosts_file.edit(fail, hosts)
    assert hosts.read_bytes() == before
    with pytest.raises(Unable, match="cannot be written"):
        hosts_file.edit(appending("x"), hosts.parent / "none" / "hosts")


@pytest.mark.parametrize(
    "how", ["mount --bind HOSTS HOSTS", "mount --bind HOSTS HOSTS && mount -o remount,ro,bind DIR"]
)
def test_a_file_that_is_a_mount_is_written_in_place(hosts: Path, as_root: None, how: str) -> None:
    """As in a container, whose folder may be read-only besides. In a mount namespace of its own."""
    change = "from provisioner.host import hosts_file; import pathlib, sys; hosts_file.edit(lambda text: CHANGE, pathlib.Path(sys.argv[1]))"
    folder = hosts.parent
    mounts = f"mount --bind DIR DIR && {how}".replace("HOSTS", str(hosts)).replace("DIR", str(folder))
    run = f'{sys.executable} -c "$1" {hosts}'
    for told, expected in (
        ("text + 'x' * 5000", b"127.0.0.1 localhost\r\n# \xff\n" + b"x" * 5000),
        ("text.rstrip('x')", b"127.0.0.1 localhost\r\n# \xff\n"),
    ):
        script = change.replace("CHANGE", told)
        subprocess.run(["unshare", "-m", "sh", "-ec", f"{mounts}; {run}", "sh", script], check=True)
        assert hosts.read_bytes() == expected
    assert os.listdir(folder) == ["hosts"]
