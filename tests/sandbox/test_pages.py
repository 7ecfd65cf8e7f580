"""Every command that README.md and docs/ show is run, and prints what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from provisioner.actions.sandbox import Sandbox
from provisioner.cli.main import cli
from tests.sandbox import readable
from tests.sandbox.kvm_host import KvmHost

#: Fences that are no commands run here, by their kind: what they hold is run by other tests, or is no command.
ELSEWHERE = {
    "text": "no commands",
    "yaml": "tests/unit/test_lab_file.py loads them",
    "toml": "tests/unit/test_catalogue.py loads them",
    "python": "tests/sandbox/test_lab_export.py does the same",
    "sh": "tests/sandbox/test_packaging.py installs so; make demo and make test are what runs this",
}


@pytest.mark.parametrize("page", readable.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_its_commands_print(page: Path, fresh_box: Sandbox, request: pytest.FixtureRequest) -> None:
    text = page.read_text()
    host, printed, wrong = KvmHost(fresh_box), list[tuple[readable.Shown, list[str]]](), list[str]()
    for shown in readable.read(text):
        came = readable.run(host, shown.command)
        printed.append((shown, came))
        if not shown.before and not readable.alike(shown.lines, came):
            wrong.append("\n".join([f"$ {shown.command}", *came]))
    if request.config.getoption("--regenerate-golden"):
        page.write_text(readable.rewritten(text, printed))
    else:
        assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", readable.PAGES, ids=lambda page: page.name)
def test_no_fence_is_of_an_unknown_kind(page: Path) -> None:
    kinds = re.findall(r"^```(.*)$", page.read_text(), flags=re.MULTILINE)[::2]
    assert set(kinds) <= {"console", *ELSEWHERE}


@pytest.mark.parametrize("page", readable.PAGES, ids=lambda page: page.name)
def test_a_command_in_running_text_or_a_table_is_one(page: Path) -> None:
    """Its command, options and their values are taken: `NAME` and the like are words as others."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    commands = [code for code in re.findall(r"`(?:sudo )?macvm ([^`]+)`", text) if "…" not in code]
    for words in commands:
        _parse(words.replace("\\|", "|"))


def _parse(words: str) -> None:
    group: click.Command = cli
    context = cli.make_context("macvm", [], resilient_parsing=True)
    rest = [word.split("|")[0].strip("[]") for word in shlex.split(words)]
    while isinstance(group, click.Group) and rest:
        name, found, rest = group.resolve_command(context, rest)
        assert found is not None, words
        group = found
        context = click.Context(group, info_name=name, parent=context)
    try:
        group.make_context(context.info_name, list(rest), parent=context.parent)
    except click.exceptions.Exit:
        pass  # --help
    except click.MissingParameter:
        pass  # named in passing
