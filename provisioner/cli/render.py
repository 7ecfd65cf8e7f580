"""Renders results, as a table, as JSON or as names: to standard output, and nothing else goes there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click


def plain(value: Any) -> Any:
    """A result as JSON's own types."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(value: Any) -> None:
    click.echo(json.dumps(plain(value), indent=2))


def print_names(names: Iterable[str]) -> None:
    for name in names:
        click.echo(name)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Left-aligned columns, two blanks apart; an empty cell shows as `-`. Only the headings when there are no rows."""
    table = [tuple(cell or "-" for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in [tuple(headings), *table]) for column in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    click.echo(click.style(line(headings), bold=True))
    for row in table:
        click.echo(line(row))


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """`name   value`, a line each."""
    pairs = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")
