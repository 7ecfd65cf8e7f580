"""Man pages of `macvm` and each of its commands, from their own help: `python3 manpages.py FOLDER` writes `*.1` there.

Run by the Python that has macvm; for the requests, see groff_man(7).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from inspect import cleandoc
from pathlib import Path

import click

from provisioner.cli.main import cli

#: What CLI.md says for all commands; each command's own help says the rest.
STATUS = (
    ("0", "Done."),
    ("1", "Failed; what was begun has been undone."),
    ("2", "The command line or an input file is wrong."),
    ("3", "There is no such machine, NIC, network, image or parent."),
    ("4", "It exists already, or the address, MAC or parent is taken, or a pool is exhausted."),
    ("5", "This host cannot do it, or macvm may not."),
    ("6", "libvirt refused, or is not reachable."),
    ("7", "Done in part: what remains is named."),
    ("8", "There are changes, where that was asked for."),
    ("9", "Time is up; what was made stays."),
    ("130", "Interrupted, after undoing."),
)
ENVIRONMENT = (
    ("MACVM_CONNECT, LIBVIRT_DEFAULT_URI", "The libvirt to use; qemu:///system."),
    ("MACVM_STATE_DIR", "Where the store, images, disks and seeds are; /var/lib/macvm."),
    ("MACVM_PARENT, MACVM_IMAGE, MACVM_VIRT_TYPE, MACVM_SSH_KEY", "Defaults of macvm create."),
)
FILES = (
    ("/etc/macvm/config.toml", "Settings, below options and environment."),
    ("/var/lib/macvm", "The store, images, disks and seeds."),
)


def pages() -> Iterator[tuple[str, str]]:
    """File name and text of each page."""
    for context in _below(click.Context(cli, info_name="macvm", **cli.context_settings)):
        yield f"{_page(context)}.1", "\n".join(_lines(context)) + "\n"


def _below(context: click.Context) -> Iterator[click.Context]:
    yield context
    for command in _commands(context):
        yield from _below(command)


def _commands(context: click.Context) -> list[click.Context]:
    group = context.command
    names = group.list_commands(context) if isinstance(group, click.Group) else []
    found = ((name, group.get_command(context, name)) for name in names)  # type: ignore[attr-defined]
    return [click.Context(one, info_name=name, parent=context) for name, one in found if one and not one.hidden]


def _page(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _lines(context: click.Context) -> Iterator[str]:
    command, name = context.command, _escape(_page(context))
    summary, *rest = _paragraphs(command)
    yield f'.TH "{name.upper()}" 1 "" "macvm {version("macvm")}" "macvm"'
    yield from (".SH NAME", f"{name} \\- {_escape(summary.rstrip('.'))}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (".SH SYNOPSIS", f"\\fB{_escape(context.command_path)}\\fR {_escape(usage)}")
    yield ".SH DESCRIPTION"
    for paragraph in (summary, *rest):
        yield from (".PP", *_text(paragraph))
    yield from _section("COMMANDS", [(f"{_page(one)}(1)", _paragraphs(one.command)[0]) for one in _commands(context)])
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    yield from _section("OPTIONS", [record for one in options if (record := one.get_help_record(context))])
    if context.parent is None:
        yield from _section("EXIT STATUS", STATUS)
        yield from _section("ENVIRONMENT", ENVIRONMENT)
        yield from _section("FILES", FILES)
    others = [f"{_page(context.parent)}(1)"] if context.parent else ["virsh(1)", "ip-link(8)", "tcpdump(8)"]
    yield from (".SH SEE ALSO", _escape(", ".join(others)))


def _paragraphs(command: click.Command) -> list[str]:
    return cleandoc(command.help or command.get_short_help_str(500)).split("\n\n")


def _text(paragraph: str) -> list[str]:
    # Click's mark for lines that stay as they are.
    if paragraph.startswith("\b\n"):
        return [".nf", *(_escape(line) for line in paragraph.splitlines()[1:]), ".fi"]
    return [_escape(" ".join(paragraph.split()))]


def _section(title: str, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield f".SH {title}"
    for term, text in rows:
        yield from (".TP", f"\\fB{_escape(term)}\\fR", _escape(text))


def _escape(text: str) -> str:
    """As it stands, but that what is between backticks is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub("`([^`]*)`", r"\\fB\1\\fR", text)
    # A line that begins so would be a request.
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    for file, page in pages():
        Path(sys.argv[1], file).write_text(page, encoding="utf-8")
