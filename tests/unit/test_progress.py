"""How far a download is, said to standard error."""

from __future__ import annotations

import sys

import click
import pytest

from provisioner.cli import progress
from provisioner.cli.base import options_of


@pytest.fixture
def context() -> click.Context:
    return click.Context(click.Command("pull"))


def shown(context: click.Context, *steps: tuple[int, int | None]) -> None:
    with context.scope(), progress.showing_progress() as show:
        for done, total in steps:
            show(done, total)


def test_lines_now_and_then(
    context: click.Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ((5 << 20, 20 << 20), (6 << 20, None))
    shown(context, *steps)
    assert capsys.readouterr().err == "", "what is quick needs no words"
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    shown(context, *steps)
    assert capsys.readouterr() == ("", "5.0 MiB of 20 MiB, 25 %\n6.0 MiB\n")
    assert "rich" not in sys.modules
    options_of(context).quiet = True
    shown(context, *steps)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(
    context: click.Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    shown(context, (5 << 20, 20 << 20), (20 << 20, 20 << 20))
    out, err = capsys.readouterr()
    assert out == ""
    assert "20.0/20.0 MiB" in err
