"""What of a store is no longer true once all but the machines is taken from the host.

What stays is theirs: their MACs, addresses and files, the networks that these addresses are of, and the images. What an
endpoint holds that is still there stays too.
"""

from __future__ import annotations

from provisioner.host.store import Store

#: Who has a slash in its word is an endpoint or a shim.
_NOBODYS = "owner LIKE '%/%' AND owner NOT IN (SELECT 'endpoint/' || name FROM endpoints)"
_THEIRS = f"SELECT network FROM macs WHERE network IS NOT NULL AND NOT ({_NOBODYS})"
_UNTRUE = (
    ("others", "TRUE"),
    ("shims", "TRUE"),
    ("heard", "TRUE"),
    ("conflicts", "TRUE"),
    ("macs", _NOBODYS),
    ("networks", f"name NOT IN ({_THEIRS})"),
    ("lab_things", f"kind <> 'network' OR name NOT IN ({_THEIRS})"),
)


def untrue(store: Store) -> int:
    """How many entries `prune` would remove."""
    counts = (store.rows(f"SELECT count(*) FROM {table} WHERE {which}")[0][0] for table, which in _UNTRUE)
    return sum(counts)


def prune(store: Store) -> None:
    with store.change() as db:
        for table, which in _UNTRUE:
            db.execute(f"DELETE FROM {table} WHERE {which}")
