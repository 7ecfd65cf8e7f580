"""Every command that changes something takes `--dry-run`, and names its shell's words as a shell reads them."""

from __future__ import annotations

import ast
import inspect
import subprocess
from pathlib import Path

import click
import pytest

from provisioner.actions import script
from provisioner.cli.main import cli
from tests.unit.test_cli import every_command

#: Commands that change something, or run a program that may, in ways that no list of lines could tell beforehand.
RUNNING = {
    ("shim", "watch"),  # until it is ended, as events come
    ("console",), ("ssh",), ("capture",), ("endpoint", "exec"), ("endpoint", "shell"),  # whatever is typed there
    ("sandbox", "run"), ("sandbox", "shell"), ("sandbox", "lan"), ("sandbox", "host"),
}  # fmt: skip


def found(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for word in path:
        assert isinstance(command, click.Group)
        below = command.get_command(click.Context(command), word)
        assert below is not None
        command = below
    return command


def changes(command: click.Command) -> bool:
    """Whether its function, or one of its module's that it calls, opens a context that may change something."""
    function = inspect.unwrap(command.callback) if command.callback else None
    if function is None:
        return False
    module = inspect.getmodule(function)
    assert module is not None
    bodies = {
        one.name: one for one in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(one, ast.FunctionDef)
    }
    seen, names = set[str](), {function.__name__}
    while names:
        seen |= names
        calls = [
            node for name in names if name in bodies for node in ast.walk(bodies[name]) if isinstance(node, ast.Call)
        ]
        called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        if "changing" in called:
            return True
        names = called & bodies.keys() - seen
    return False


COMMANDS = [path for path in every_command(cli) if not isinstance(found(path), click.Group)]


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in RUNNING], ids=" ".join)
def test_what_changes_something_has_a_dry_run_and_what_looks_has_none(path: tuple[str, ...]) -> None:
    options = {name for one in found(path).params for name in one.opts}
    # In the sandbox's own commands there is no context.
    of_sandbox = path[0] == "sandbox"
    assert ("--dry-run" in options) == (changes(found(path)) or of_sandbox), path


def test_what_runs_something_else_is_there() -> None:
    assert set(COMMANDS) >= RUNNING
    assert changes(found(("create",)))
    assert changes(found(("shim", "watch")))
    assert not changes(found(("list",)))


@pytest.mark.parametrize(
    "text", ["", "plain", "it's\n\ta\\n 'b' \"c\" $(id) `id`\n", "ä\n\x1b\U0001f600\u2028%s\n"], ids=ascii
)
def test_a_text_is_written_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a file"
    line = script.writing(path, text)
    assert line.isprintable()
    subprocess.run(["bash", "-ec", line], check=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    assert path.read_text() == text


def test_xml_goes_on_one_line_and_comes_whole(tmp_path: Path) -> None:
    xml = "<a x='1'>\n  <b>it's\n two</b>\n  <c/>\n</a>\n"
    line = script.with_xml("cat", xml)
    assert line.isprintable()
    read = subprocess.run(["bash", "-ec", line], check=True, capture_output=True, text=True).stdout
    assert read == "<a x='1'><b>it's\n two</b><c/></a>\n"


def test_comments_are_comments() -> None:
    assert script.comment("one\n\n#two") == ["# one", "#", "# #two"]
