"""Leases and pools in the store: races, kills, a full disk, what an allocation costs, and an older store's leases."""

from __future__ import annotations

import ipaddress
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.errors import NotFound, Taken
from provisioner.host import schema
from provisioner.host.leases import LeaseClaim, NicClaim, now
from provisioner.host.schema import MIGRATIONS
from provisioner.host.store import DATABASE, Store, StoreFailed, open_store
from provisioner.model.ipam import Pool, pool_of
from provisioner.model.network import Network, Subnet, parse_range, parse_subnet

BIG = "10.0.0.0/16"
MAC = "52:54:00:00:00:01"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def add_network(store: Store, subnet: str, name: str = "lan") -> Pool:
    one = Subnet(parse_subnet(subnet))
    store.networks.add(Network(name, "eth0", subnets=(one,)))
    return pool_of(one)


def reserve(store: Store, pool: Pool, subnet: str, mac: str) -> str:
    with store.claiming() as leases:
        picked = leases.pick("lan", "eth0", subnet, pool)
        assert picked
        leases.advance("lan", subnet, picked)
        leases.claim(f"owner {mac}", "vm", [NicClaim(mac, (LeaseClaim("eth0", str(picked.address)),), network="lan")])
    return str(picked.address)


# networks


def test_a_network_comes_once_and_goes_when_nobody_is_on_it(store: Store) -> None:
    pool = add_network(store, "192.0.2.0/24")
    with pytest.raises(Taken, match="there is a network lan already"):
        add_network(store, "198.51.100.0/24")
    reserve(store, pool, "192.0.2.0/24", MAC)
    assert store.networks.used("lan") == {"192.0.2.0/24": 1}
    with store.looking() as leases:
        assert (store.networks.holders("lan"), leases.holders("lan", "192.0.2.0/24", 9)) == (["vm"], ["vm"])
    with pytest.raises(Taken, match="the network lan is in use by vm"):
        store.networks.remove("lan")
    store.release_mac(MAC)
    store.networks.remove("lan")
    store.networks.remove("lan")
    assert store.networks.all() == []
    for table in ("pools", "released", "conflicts"):
        assert not store.rows(f"SELECT * FROM {table}"), table
    with pytest.raises(NotFound, match="there is no network 'lan'"):
        store.networks.get("lan")
    with pytest.raises(NotFound, match="the network lan is gone"):
        reserve(store, pool, "192.0.2.0/24", MAC)
    with pytest.raises(NotFound, match="the network lan is gone"):
        store.claim("owner", "vm", [NicClaim(MAC, network="lan")])
    assert store.holder_of_mac(MAC) is None


def test_two_networks_of_one_parent_share_no_address(store: Store) -> None:
    """Checked where it is written: of two commands that make one each, both have seen neither."""
    low, high, over = (
        Network(name, "eth0", subnets=(Subnet(parse_subnet("192.0.2.0/24"), range=parse_range(range_)),))
        for name, range_ in (("low", "192.0.2.0/27"), ("high", "192.0.2.32/27"), ("over", "192.0.2.31-192.0.2.32"))
    )
    store.networks.add(low)
    store.networks.add(high)
    with pytest.raises(Taken, match=r"both would give out 192\.0\.2\.32/32|both would give out 192\.0\.2\.31/32"):
        store.networks.add(over)
    store.networks.add(over._replace(parent="eth1"))
    assert [network.name for network in store.networks.all()] == ["high", "low", "over"]
    assert store.networks.find("low") == low


def test_a_conflict_is_kept_until_the_address_is_given_out(store: Store) -> None:
    pool = add_network(store, "192.0.2.0/24")
    with store.claiming() as leases:
        leases.record_conflict("lan", pool.first + 1, "52:54:00:00:00:aa")  # type: ignore[operator]
        leases.record_conflict("lan", pool.first + 1, "52:54:00:00:00:bb")  # type: ignore[operator]
    assert [(one.address, one.mac) for one in store.networks.conflicts("lan")] == [("192.0.2.1", "52:54:00:00:00:bb")]
    assert reserve(store, pool, "192.0.2.0/24", MAC) == "192.0.2.1"
    assert store.networks.conflicts("lan") == []


def test_what_fails_while_looking_is_an_error_of_the_stores(store: Store) -> None:
    store.rows("DROP TABLE leases")
    with pytest.raises(StoreFailed):
        store.holder_of("eth0", "192.0.2.9")


# races and kills

SUBNET = "192.0.2.0/26"

#: Reserves and releases, and says so after each; two of ten stay, so that others' are always in the way.
RESERVE = """
import sys
from pathlib import Path
from provisioner.host.leases import LeaseClaim, NicClaim
from provisioner.host.store import open_store
from provisioner.model.ipam import pool_of
folder, number, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = open_store(folder)
store.rows("PRAGMA synchronous = OFF")  # a kill is no power cut
network = store.networks.get("lan")
subnet, pool = str(network.subnets[0].subnet), pool_of(network.subnets[0])
print("ready", flush=True)
sys.stdin.readline()
kept = []
for time in range(times):
    mac = f"52:54:00:00:{number:02x}:{time:02x}"
    with store.claiming() as leases:
        picked = leases.pick("lan", "eth0", subnet, pool)
        leases.advance("lan", subnet, picked)
        leases.claim(mac, f"vm{number}", [NicClaim(mac, (LeaseClaim("eth0", str(picked.address)),), network="lan")])
    print("+", mac, picked.address, flush=True)
    kept.append(mac)
    if len(kept) > 2:
        mac = kept.pop(0)
        print("?", mac, flush=True)
        store.release_mac(mac)
        print("-", mac, flush=True)
"""


def start_reserving(folder: Path, number: int, times: int) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", RESERVE, str(folder), str(number), str(times)]
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def held_by_what_was_said(said: str) -> tuple[dict[str, str], set[str]]:
    """MAC to address of what was acknowledged and not given back, and the MACs that were being given back at the end."""
    held: dict[str, str] = {}
    unsure: set[str] = set()
    for line in said.splitlines():
        sign, mac, *address = line.split()
        if sign == "+":
            held[mac] = address[0]
        elif sign == "?":
            unsure.add(mac)
        else:
            unsure.discard(mac)
            del held[mac]
    return held, unsure


@pytest.mark.parametrize("killed", [0, 6])
def test_sixteen_processes_reserve_and_release_at_once(tmp_path: Path, killed: int) -> None:
    store = open_store(tmp_path)
    pool = add_network(store, SUBNET)
    # Those to be killed do not end by themselves.
    racers = [start_reserving(tmp_path, number, 200 if number >= killed else 1_000_000) for number in range(16)]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [""] * 16
    for number, racer in enumerate(racers[:killed]):
        assert racer.stdout
        said[number] = "".join(racer.stdout.readline() for _ in range(20 * number + 5))
        racer.send_signal(signal.SIGKILL)
    for number, racer in enumerate(racers):
        assert racer.stdout
        assert racer.stderr
        # `communicate` would lose what `readline` has read ahead.
        said[number] += racer.stdout.read()
        assert racer.stderr.read() == ""
        assert racer.wait() == (-signal.SIGKILL if number < killed else 0)
        assert said[number].count("+") == 200 or number < killed
    # A process killed right after a commit has not said so: what it held is there unsaid.
    there = {lease.mac: lease.address for lease in store.leases()}
    assert len(set(there.values())) == len(there), "an address is held twice"
    for number, words in enumerate(said):
        complete = words[: words.rfind("\n") + 1]
        held, unsure = held_by_what_was_said(complete)
        mine = {mac: address for mac, address in there.items() if mac.split(":")[4] == f"{number:02x}"}
        for mac, address in held.items():
            assert mine.get(mac) == address or (mac in unsure and mac not in mine), "an acknowledged lease is lost"
        assert len(mine.keys() - held.keys()) <= (1 if number < killed else 0)
    # What nobody holds can be had, all of it.
    free = {str(reserve_again(store, pool, number)) for number in range(pool.size - len(there))}
    assert len(free | set(there.values())) == pool.size
    with store.claiming() as leases:
        assert leases.pick("lan", "eth0", SUBNET, pool) is None
    assert store.rows("PRAGMA integrity_check")[0][0] == "ok"
    assert store.rows("PRAGMA foreign_key_check") == []
    store.close()


def reserve_again(store: Store, pool: Pool, number: int) -> str:
    return reserve(store, pool, SUBNET, f"52:54:00:01:00:{number:02x}")


FILL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.test_leases import add_network, reserve
from provisioner.errors import MacvmError
from provisioner.host.store import open_store
folder = Path(sys.argv[1])
store = open_store(folder)
pool = add_network(store, "10.0.0.0/16")
held = []
try:
    for number in range(60_000):
        held.append(reserve(store, pool, "10.0.0.0/16", f"{number:012x}"))
except MacvmError as error:
    print(type(error).__name__, error.message, "|", error.hint)
assert store.rows("PRAGMA integrity_check")[0][0] == "ok"
assert sorted(lease.address for lease in store.leases()) == sorted(held)
pointer = store.rows("SELECT next FROM pools")[0][0]
store.close()
store = open_store(folder)
assert sorted(lease.address for lease in store.leases()) == sorted(held)
assert store.rows("SELECT next FROM pools")[0][0] == pointer
print("sound", len(held), len(set(held)))
"""


def test_a_disk_that_fills_up_while_reserving(tmp_path: Path, as_root: None) -> None:
    checkout = Path(__file__).parents[2]
    code = f'mount -t tmpfs -o size=6m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path} {checkout}'
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", code, FILL]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    first, last = done.stdout.splitlines() or ["", done.stderr]
    assert first.startswith(f"StoreFailed no space left for the store {tmp_path}"), done.stderr
    assert f"| free some space: df -h {tmp_path}" in first
    word, number, different = last.split()
    assert (word, number) == ("sound", different)
    assert int(number) > 100


# what an allocation costs


def fill(store: Store, count: int, *, first_round: bool) -> Pool:
    """A /16 with so many leases. Past the first round every other address has been had, too, and waits."""
    pool = add_network(store, BIG)
    network = ipaddress.ip_network(BIG)
    with store.change() as db:
        macs = ((f"{n:012x}", f"u{n}", f"vm{n}", "lan") for n in range(count))
        db.executemany("INSERT INTO macs VALUES (?, ?, ?, '', ?)", macs)
        leases = (("eth0", str(network[n + 1]), f"{n:012x}", BIG, now()) for n in range(count))
        db.executemany("INSERT INTO leases VALUES (?, ?, ?, 'lan', ?, 1, ?)", leases)
        if first_round:
            db.execute("UPDATE pools SET next = ?", (str(network[count + 1]),))
        else:
            db.execute("UPDATE pools SET next = NULL")
            waiting = (("lan", BIG, str(network[n + 1])) for n in range(count, pool.size))
            db.executemany("INSERT INTO released (network, subnet, address) VALUES (?, ?, ?)", waiting)
    return pool


def steps_of_one(store: Store, pool: Pool, mac: str) -> int:
    """How many instructions of SQLite's machine a reservation and its release take: the same on every machine."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    store._connection.set_progress_handler(count, 1)
    reserve(store, pool, BIG, mac)
    store.release_mac(mac)
    store._connection.set_progress_handler(None, 1)
    return counted


@pytest.mark.parametrize("first_round", [True, False])
def test_an_allocation_costs_the_same_however_many_leases_there_are(tmp_path: Path, first_round: bool) -> None:
    steps = []
    for count in (10, 1_000, 60_000):
        store = open_store(tmp_path / str(count))
        pool = fill(store, count, first_round=first_round)
        store.rows("PRAGMA synchronous = OFF")
        taken = [steps_of_one(store, pool, "f00000000000")]
        for number in range(100):
            reserve(store, pool, BIG, f"e{number:011x}")
        taken += [steps_of_one(store, pool, f"f{number:011x}") for number in range(5)]
        steps += [min(taken), max(taken)]
        store.close()
    assert max(steps) < 1.2 * min(steps), steps


def test_no_statement_of_an_allocation_looks_through_a_table(store: Store) -> None:
    pool = add_network(store, SUBNET)
    ran: list[str] = []
    store._connection.set_trace_callback(ran.append)
    for number in range(pool.size):
        reserve_again(store, pool, number)
    for number in range(3):
        store.release_mac(f"52:54:00:01:00:{number:02x}")
    reserve_again(store, pool, 0)
    with store.claiming() as leases:
        assert leases.pick("lan", "eth0", SUBNET, pool, [pool.first + 2, pool.first + 3]) is None  # type: ignore[operator]
        leases.give_back("52:54:00:01:00:09")
        leases.record_conflict("lan", pool.last, MAC)
    store.holder_of("eth0", "192.0.2.9")
    store._connection.set_trace_callback(None)
    statements = {sql for sql in ran if sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")}
    kinds = {tuple(sql.split()[:4]) for sql in statements}
    assert len(kinds) > 10
    for sql in statements:
        plan = [row["detail"] for row in store.rows(f"EXPLAIN QUERY PLAN {sql}")]
        assert not [line for line in plan if "SCAN" in line or "TEMP B-TREE" in line], (sql, plan)


# an older store

OLD = """
INSERT INTO macs VALUES ('52:54:00:00:00:01', 'uuid1', 'web1', '{"mac": "52:54:00:00:00:01"}');
INSERT INTO macs VALUES ('52:54:00:00:00:02', 'uuid2', 'web2', '');
INSERT INTO leases VALUES ('parent:eth0', '192.0.2.11', '52:54:00:00:00:01', 'eth0', 'then');
INSERT INTO leases VALUES ('parent:eth0', '2001:db8::11', '52:54:00:00:00:01', 'eth0', 'then');
INSERT INTO leases VALUES ('parent:eth0.50', '192.0.2.11', '52:54:00:00:00:02', '', 'later');
INSERT INTO files VALUES ('/disk', 'uuid1');
INSERT INTO journal (action, machine, uuid, facts, began, boot, clock) VALUES ('create', 'w', 'u', '{}', 't', 'b', 1.5);
INSERT INTO steps VALUES (1, 'claim', 'done');
"""


def make_old(folder: Path) -> None:
    """A store as the first schema had it."""
    folder.mkdir(exist_ok=True)
    with sqlite3.connect(folder / DATABASE) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; {MIGRATIONS[0]} {OLD} PRAGMA user_version = 1")
    db.close()


def test_leases_of_the_first_schema_are_kept(tmp_path: Path) -> None:
    make_old(tmp_path)
    store = open_store(tmp_path)
    assert store.rows("PRAGMA user_version")[0][0] == len(MIGRATIONS)
    found = [(one.parent, one.address, one.machine, one.served, one.network, one.subnet) for one in store.leases()]
    assert sorted(found) == [
        ("eth0", "192.0.2.11", "web1", True, "", ""),
        ("eth0", "2001:db8::11", "web1", True, "", ""),
        ("eth0.50", "192.0.2.11", "web2", False, "", ""),
    ]
    assert {one.since for one in store.leases()} == {"then", "later"}
    assert store.told_of("uuid1") == {"52:54:00:00:00:01": '{"mac": "52:54:00:00:00:01"}'}
    assert store.files_of("uuid1") == [Path("/disk")]
    assert [tuple(row) for row in store.rows("SELECT * FROM steps")] == [(1, "claim", "done")]
    assert store.rows("PRAGMA foreign_key_check") == []
    with pytest.raises(Taken, match=r"192\.0\.2\.11 is held by machine web1"):
        store.claim("uuid3", "web3", [NicClaim("52:54:00:00:00:03", (LeaseClaim("eth0", "192.0.2.11"),))])
    store.release("uuid1")
    assert [one.machine for one in store.leases()] == ["web2"]
    assert not store.rows("SELECT * FROM released"), "no pool takes back what a bare parent's machine held"
    pool = add_network(store, "192.0.2.0/24")
    assert reserve(store, pool, "192.0.2.0/24", MAC) == "192.0.2.1"
    store.close()
    with sqlite3.connect(f"{tmp_path / DATABASE}.v1") as copy:
        assert copy.execute("SELECT network FROM leases ORDER BY address").fetchall()[0] == ("parent:eth0",)
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    copy.close()


OPEN = """
import sys
from pathlib import Path
from provisioner.host.store import open_store
print("ready", flush=True)
sys.stdin.readline()
print(len(open_store(Path(sys.argv[1])).leases()))
"""


def test_several_that_migrate_at_once_leave_a_copy_of_the_old_store(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", OPEN, str(tmp_path)]
    make_old(tmp_path)
    openers = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(6)]
    for opener in openers:
        assert opener.stdout
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin
        opener.stdin.write("go\n")
        opener.stdin.flush()
    assert [opener.communicate() for opener in openers] == [("3\n", "")] * 6
    with sqlite3.connect(f"{tmp_path / DATABASE}.v1") as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    copy.close()


def test_a_second_that_comes_too_late_to_migrate_leaves_the_copy_alone(tmp_path: Path) -> None:
    """The first is done between the second's look at the version and its lock."""
    make_old(tmp_path)

    class Late(sqlite3.Connection):
        looked = False

        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            found = super().execute(sql, *values)  # type: ignore[arg-type]
            if sql == "PRAGMA user_version" and not self.looked:
                self.looked = True
                open_store(tmp_path).close()
            return found

    late = sqlite3.connect(tmp_path / DATABASE, isolation_level=None, factory=Late)
    schema.migrate(late, tmp_path / DATABASE)
    assert late.looked
    late.close()
    with sqlite3.connect(f"{tmp_path / DATABASE}.v1") as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    copy.close()


def test_semicolons_in_a_trigger_a_text_and_a_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(tmp_path).close()
    script = """
    CREATE TABLE noticed (what TEXT DEFAULT 'a;b') STRICT; -- a comment; with one
    CREATE TRIGGER hear AFTER INSERT ON files BEGIN
      INSERT INTO noticed VALUES ('one;'); INSERT INTO noticed SELECT 'a;b';
    END;
    CREATE INDEX noticed_by_what ON noticed (what)
    """
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, script))
    store = open_store(tmp_path)
    store.own_file(Path("/x"), "u")
    assert [row["what"] for row in store.rows("SELECT what FROM noticed")] == ["one;", "a;b"]
    assert store.rows("SELECT 1 FROM sqlite_master WHERE name = 'noticed_by_what'")
    store.close()


@pytest.mark.parametrize(
    "script", ["CREATE TABLE t (x TEXT DEFAULT 'a", "CREATE TRIGGER t AFTER INSERT ON macs BEGIN SELECT 1;"]
)
def test_a_schema_change_that_stops_in_the_middle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    open_store(tmp_path).close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, script))
    with pytest.raises(StoreFailed):
        open_store(tmp_path)
