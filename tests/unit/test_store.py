"""The store: claims, sound after a kill, and every way in which a disk or a file can be wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.errors import MacvmError, NotFound, Taken, Unable
from provisioner.host import schema
from provisioner.host import store as module
from provisioner.host.endpoints import Endpoints
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.schema import MIGRATIONS
from provisioner.host.store import DATABASE, Store, StoredImage, StoreFailed, open_for_reading, open_store

MAC1, MAC2 = "52:54:00:00:00:01", "52:54:00:00:00:02"
NOBODY = 65534


def nic(mac: str, *addresses: str, parent: str = "eth0") -> NicClaim:
    return NicClaim(mac, tuple(LeaseClaim(parent, address) for address in addresses))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def run_python(code: str, *words: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    argv = [*prefix, sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def as_nobody(act: Callable[[], object]) -> str:
    """What `act` says in a child process of an unprivileged user: its result's or its error's text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            said = str(act())
        except MacvmError as error:
            said = f"{type(error).__name__}: {error.message} | {error.hint}"
        except Exception as error:  # noqa: BLE001 - what it is, the test shall see
            said = f"not ours: {error!r}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def public(as_root: None) -> Iterator[Path]:
    """A state directory in a folder that every user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder, "state")


# claims


def test_claims_are_all_or_nothing_and_taken_names_the_holder(store: Store) -> None:
    store.claim("uuid1", "web1", [nic(MAC1, "192.0.2.11", "2001:db8::11")])
    with pytest.raises(Taken, match=r"192\.0\.2\.11 is held by machine web1"):
        store.claim("uuid2", "web2", [nic(MAC2, "192.0.2.12", "192.0.2.11")])
    assert store.holder_of_mac(MAC2) is None
    assert {found.address for found in store.leases()} == {"192.0.2.11", "2001:db8::11"}
    with pytest.raises(Taken, match=f"{MAC1} is held by machine web1"):
        store.claim("uuid2", "web2", [nic(MAC2), nic(MAC1)])
    assert store.machines() == {"uuid1": "web1"}


def test_the_same_address_may_be_held_on_another_lan(store: Store) -> None:
    store.claim("uuid1", "web1", [nic(MAC1, "192.0.2.11")])
    store.claim("uuid2", "web2", [nic(MAC2, "192.0.2.11", parent="eth1")])
    assert [found.machine for found in store.leases()] == ["web1", "web2"]


def test_released_claims_can_be_taken_again(store: Store) -> None:
    store.claim("uuid1", "web1", [nic(MAC1, "192.0.2.11")])
    store.release("uuid1")
    store.release("uuid1")
    assert (store.leases(), store.machines()) == ([], {})
    store.claim("uuid2", "web2", [nic(MAC1, "192.0.2.11")])
    assert store.leases()[0].owner == "uuid2"


def test_a_file_belongs_to_one_machine(store: Store) -> None:
    path = Path("/var/lib/macvm/disk.qcow2")
    store.own_file(path, "uuid1")
    store.own_file(path, "uuid1")
    with pytest.raises(Taken, match="uuid1"):
        store.own_file(path, "uuid2")
    assert (store.files_of("uuid1"), store.files_of("uuid2")) == ([path], [])
    store.disown_file(path)
    store.own_file(path, "uuid2")


def test_an_image_replaces_the_one_of_its_name_and_version(store: Store) -> None:
    first = StoredImage("tiny", "", "ab", "cirros", "", "", 1, 2, "stamp", "then")
    second = StoredImage("tiny", "", "cd", "cirros", "", "", 1, 2, "stamp", "now")
    other = StoredImage("tiny", "2", "ef", "cirros", "", "", 1, 2, "stamp", "now")
    for image in (first, second, other):
        store.add_image(image)
    assert sorted(image.digest for image in store.images()) == ["cd", "ef"]
    store.remove_image("tiny", "")
    assert store.images() == [other]


def test_a_block_that_raises_changes_nothing(store: Store) -> None:
    def begin_and_stop() -> None:
        with store.claiming() as leases:
            leases.claim("uuid1", "web1", [nic(MAC1, "192.0.2.11")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_and_stop()
    assert store.machines() == {}
    store.claim("uuid1", "web1", [nic(MAC1)])


# races and kills

CLAIM = """
import sys
from pathlib import Path
from provisioner.errors import Taken
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import open_store
folder, number, addresses = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
store = open_store(folder)
for last in range(addresses):
    mac = f"52:54:00:00:{number:02x}:{last:02x}"
    try:
        store.claim(f"u{number}-{last}", f"m{number}", [NicClaim(mac, (LeaseClaim("eth0", f"192.0.2.{last}"),))])
    except Taken:
        continue
    print(last, flush=True)
"""


@pytest.mark.parametrize("addresses", [1, 40])
def test_of_eight_processes_racing_exactly_one_gets_each_address(tmp_path: Path, addresses: int) -> None:
    argv = [sys.executable, "-c", CLAIM, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*argv, str(number), str(addresses)], **pipes) for number in range(8)]  # type: ignore[call-overload]
    # All of them are ready before one may go; the store itself is made by whoever comes first.
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 8
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    ended = [racer.communicate() for racer in racers]
    assert [said for _, said in ended if said] == []
    won = [int(line) for said, _ in ended for line in said.split()]
    assert sorted(won) == list(range(addresses))


FOREVER = """
import itertools, sys
from pathlib import Path
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import open_store
store = open_store(Path(sys.argv[1]))
for number in itertools.count():
    mac = f"{number:012x}"
    leases = (LeaseClaim("e", str(number)), LeaseClaim("e", f"{number}+"))
    store.claim(f"u{number}", "m", [NicClaim(mac, leases)])
    print(number, flush=True)
"""


def test_a_process_killed_while_it_claims_leaves_a_sound_store(tmp_path: Path) -> None:
    for round_ in range(4):
        folder = tmp_path / str(round_)
        claimer = run_python(FOREVER, folder)
        assert claimer.stdout
        claimer.stdout.readline()
        time.sleep(0.013 * round_)
        claimer.send_signal(signal.SIGKILL)
        said = claimer.communicate()[0].split()
        store = open_store(folder)
        assert store.rows("PRAGMA integrity_check")[0][0] == "ok"
        held = [found.mac for found in store.leases()]
        assert len(held) == 2 * len(store.machines()), "a claim is there by half"
        last = int(said[-1]) if said else 0
        assert f"{last:012x}" in held, "what was acknowledged is there"
        store.close()


# what can be wrong with the file


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = (tmp_path / DATABASE).read_bytes()
    for opening in (open_store, open_for_reading):
        with pytest.raises(Unable, match="newer macvm") as refused:
            opening(tmp_path)
        assert "--state-dir" in refused.value.hint
    assert (tmp_path / DATABASE).read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all\n" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_no_store_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DATABASE).write_bytes(content)
    for opening in (open_store, open_for_reading):
        with pytest.raises(StoreFailed, match="is damaged") as failed:
            opening(tmp_path)
        assert "move it away" in failed.value.hint


def test_a_store_with_a_damaged_page_is_a_clear_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(500):
        store.claim(f"u{number}", "m", [NicClaim(f"{number:012x}")])
    store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    path = tmp_path / DATABASE
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreFailed, match="is damaged"):
        open_store(tmp_path).machines()


FILL = """
import sys
from pathlib import Path
from provisioner.errors import MacvmError
from provisioner.host.journal import Journal
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import open_store
folder = Path(sys.argv[1])
store = open_store(folder)
try:
    for number in range(100_000):
        store.claim(f"u{number}", "m" * 200, [NicClaim(f"{number:012x}")])
except MacvmError as error:
    print(type(error).__name__, error.message, "|", error.hint)
(folder / "ballast").write_bytes(b"") if not (folder / "ballast").exists() else None
try:
    with open(folder / "ballast", "ab", buffering=0) as file:
        while file.write(b"x" * 512): pass
except OSError:
    pass
(folder / "macvm.lock").unlink(missing_ok=True)
try:
    Journal(store, lambda _: None).begin("create", "web1", "uuid", {"long": "x" * 100_000})
except MacvmError as error:
    print(type(error).__name__, error.message, "|", error.hint)
assert store.rows("PRAGMA integrity_check")[0][0] == "ok"
assert len(store.machines()) == number, (len(store.machines()), number)
print("sound")
"""


def test_a_full_disk_is_a_clear_error_and_the_store_stays_readable(tmp_path: Path, as_root: None) -> None:
    code = f'mount -t tmpfs -o size=768k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", code, FILL]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    first, second, last = done.stdout.splitlines() or ["", "", done.stderr]
    assert first.startswith("StoreFailed no space left for the store"), done.stderr
    assert f"df -h {tmp_path}" in first
    assert "no space left" in second.lower()
    assert last == "sound"


FULL_BEFORE = """
import sys
from pathlib import Path
from provisioner.errors import MacvmError
from provisioner.host.leases import NicClaim
from provisioner.host.store import open_store

folder = Path(sys.argv[1])
open_store(folder).close()
try:
    with open(folder / "ballast", "ab", buffering=0) as file:
        while file.write(b"x" * 512): pass
except OSError:
    pass
try:
    open_store(folder).claim("u", "web1", [NicClaim("52:54:00:00:00:01")])
except MacvmError as error:
    print(error.message, "|", error.hint)
(folder / "ballast").unlink()
assert open_store(folder).machines() == {}
print("sound")
"""


def test_a_disk_that_was_full_before_is_said(tmp_path: Path, as_root: None) -> None:
    """SQLite then cannot make the files beside the store, which it calls an I/O error."""
    code = f'mount -t tmpfs -o size=768k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", code, FULL_BEFORE]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    first, last = done.stdout.splitlines() or ["", done.stderr]
    assert first == f"no space left for the store {tmp_path}/macvm.db | free some space: df -h {tmp_path}", done
    assert last == "sound"


def test_a_read_only_directory_is_said(public: Path) -> None:
    open_store(public).close()
    said = as_nobody(lambda: open_store(public))
    assert said.startswith(f"Unable: the state directory {public} cannot be")
    assert "run as root" in said
    assert as_nobody(lambda: open_store(public / "below")).startswith("Unable: the state directory")


def test_a_file_in_the_place_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    for folder in (tmp_path / "state", tmp_path / "state" / "below"):
        with pytest.raises(Unable, match="cannot be made"):
            open_store(folder)
        assert open_for_reading(folder) is None


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(module, "_file_system", lambda _: kind)
    with pytest.raises(Unable, match=f"is on {kind}, whose locks cannot be trusted"):
        open_store(tmp_path)
    assert not (tmp_path / DATABASE).exists()


def test_the_file_system_is_the_one_of_the_longest_mount_point(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "30 22 0:40 / /var rw shared:1 - nfs4 server:/var rw\n"
        "31 30 0:41 / /var/lib/macvm rw - xfs /dev/sdb rw\n"
        "32 30 0:42 / /var/lib/mac rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda _: mounts)
    found = {
        path: module._file_system(Path(path)) for path in ("/srv", "/var/x", "/var/lib/macvm/a", "/var/lib/macvm2")
    }
    assert found == {"/srv": "ext4", "/var/x": "nfs4", "/var/lib/macvm/a": "xfs", "/var/lib/macvm2": "nfs4"}


def test_the_store_is_copied_before_its_schema_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = len(MIGRATIONS)
    store = open_store(tmp_path)
    store.claim("uuid1", "web1", [nic(MAC1, "192.0.2.11")])
    store.close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "ALTER TABLE macs ADD COLUMN note TEXT"))
    store = open_store(tmp_path)
    assert store.rows("SELECT note, machine FROM macs")[0]["machine"] == "web1"
    store.close()
    with sqlite3.connect(f"{tmp_path / DATABASE}.v{old}") as copy:
        assert copy.execute("SELECT machine FROM macs").fetchall() == [("web1",)]
        assert copy.execute("PRAGMA user_version").fetchone() == (old,)


def test_a_schema_change_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(tmp_path).close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE half (x); CREATE TABLE macs (x)"))
    with pytest.raises(StoreFailed):
        open_store(tmp_path)
    monkeypatch.undo()
    store = open_store(tmp_path)
    assert not store.rows("SELECT 1 FROM sqlite_master WHERE name = 'half'")
    store.close()


# looking, without rights


def test_there_is_nothing_to_read_before_there_is_a_store(tmp_path: Path) -> None:
    assert open_for_reading(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def _addresses(folder: Path) -> object:
    store = open_for_reading(folder)
    return store and [found.address for found in store.leases()]


@pytest.mark.parametrize("writer_lives", [True, False])
def test_any_user_may_look(public: Path, writer_lives: bool) -> None:
    umask = os.umask(0o077)
    try:
        store = open_store(public)
    finally:
        os.umask(umask)
    store.claim("uuid1", "web1", [nic(MAC1, "192.0.2.11")])
    if not writer_lives:
        store.close()
    assert Path(f"{public / DATABASE}-wal").exists() == writer_lives
    assert stat.S_IMODE(public.stat().st_mode) == 0o711
    assert stat.S_IMODE((public / DATABASE).stat().st_mode) == 0o644
    before = sorted(public.iterdir())
    assert as_nobody(lambda: _addresses(public)) == "['192.0.2.11']"
    assert sorted(public.iterdir()) == before
    assert as_nobody(lambda: list(public.iterdir())).startswith("not ours: PermissionError")


def test_a_look_cannot_change(tmp_path: Path, store: Store) -> None:
    looking = open_for_reading(tmp_path)
    assert looking
    with pytest.raises(Unable):
        looking.claim("uuid1", "web1", [nic(MAC1)])
    looking.close()


def test_a_page_limit_is_no_space(store: Store) -> None:
    store.rows("PRAGMA max_page_count = 1")

    def fill() -> None:
        for number in range(5000):
            store.claim(f"u{number}", "m" * 500, [NicClaim(f"{number:012x}")])

    with pytest.raises(StoreFailed, match="no space left"):
        fill()
    assert store.machines()


def test_text_that_cannot_be_stored_is_not_found(store: Store) -> None:
    """A byte of the command line that is no UTF-8."""
    assert not store.has_endpoint("\udcff")
    assert store.networks.find("\udcff") is None
    with pytest.raises(NotFound, match=r"there is no endpoint '\\udcff'"):
        Endpoints(store).get("\udcff")
