"""What a killed macvm left unfinished, for commands that only look; `recovery` settles it."""

from __future__ import annotations

from provisioner.context import Context


def unfinished_lines(context: Context) -> list[str]:
    """`create web1, 3 min ago` for each abandoned row: for commands that only look, and change nothing."""
    store = context.reading_store
    if store is None or not store.rows("SELECT 1 FROM journal LIMIT 1"):
        return []
    from provisioner.host.journal import Journal

    rows = Journal(store, context.checkpoint, context.clock).abandoned()
    return [f"{row.action} {row.machine}, {_ago(row.age)}" for row in rows]


def _ago(age: float | None) -> str:
    if age is None:
        return "before the last boot"
    if age < 90:
        return f"{age:.0f} s ago"
    return f"{age / 60:.0f} min ago" if age < 5400 else f"{age / 3600:.0f} h ago"
