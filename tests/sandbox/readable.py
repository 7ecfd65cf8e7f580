"""Pages that show commands with what they print: read, run, compared, and written anew.

A fence ```console holds commands, each behind `$ ` and followed by its output, in which `...` stands for any lines. What
is in a comment `<!-- before: … -->` is run first, and is not for readers. Blocks of one page are run in their order on
one host.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.sandbox.kvm_host import KvmHost

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(r"^<!-- before:\n(?P<before>.*?)-->$|^```console\n(?P<console>.*?)^```$", re.MULTILINE | re.DOTALL)

#: What is another one each time, and what stands for it.
_CHANGING = (
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID"),
    (r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "MAC"),
    (r"\bmt-52540[0-9a-f]{7}\b", "DEVICE"),
    (r"\b(vnet|macvtap)\d+\b", "DEVICE"),
    (r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00|Z)?", "TIME"),
    (r"\btime[= ]?[\d.]+ ?ms", "time"),
    (r"^rtt .*", "rtt"),
    (r"\bsha256:[0-9a-f]{64}\b|\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "DIGEST"),
    (r"\b\d+(\.\d+)? MiB\b", "SIZE"),
    (r"@if\d+|^\d+: ", ""),
    (r"[ \t]+", " "),
)


class Shown(NamedTuple):
    """A command, and the lines that are said to come of it; `before` is none for readers, and says nothing."""

    command: str
    lines: tuple[str, ...]
    before: bool = False


def read(page: str) -> list[Shown]:
    found = []
    for block in _BLOCK.finditer(page):
        if block["before"] is not None:
            found.append(Shown(block["before"], (), before=True))
            continue
        for part in re.split(r"^\$ ", block["console"], flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            while command.endswith("\\"):
                command = f"{command}\n{lines.pop(0)}"
            found.append(Shown(command, tuple(lines)))
    return found


def run(host: KvmHost, command: str) -> list[str]:
    """All that it prints, on both outputs, as on a terminal of 120 columns."""
    plain = re.sub(r"\bsudo ", "", command)
    # The host's own /run: what a page writes goes with the host.
    done = host.node.run(["bash", "-c", f"exec 2>&1; export COLUMNS=120\n{plain}"], timeout=300, cwd="/run")
    return [line.rstrip() for line in done.stdout.splitlines() if not _beside(line)]


def _beside(line: str) -> bool:
    """What only a host without KVM says."""
    return line.startswith("note: KVM cannot run guests here")


def alike(shown: tuple[str, ...], printed: list[str]) -> bool:
    """Whether a page's lines are what was printed, but for what changes each time."""
    pattern = "".join(r"(.*\n)*?" if line.strip() == "..." else re.escape(_plain(line)) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(_plain(line) + "\n" for line in printed)) is not None


def _plain(line: str) -> str:
    for changing, stands_for in _CHANGING:
        line = re.sub(changing, stands_for, line)
    return line.strip()


def rewritten(page: str, printed: list[tuple[Shown, list[str]]]) -> str:
    """The page with what was printed; a command's lines that are alike stay as they are."""
    left = iter(printed)

    def block(found: re.Match[str]) -> str:
        if found["console"] is None:
            next(left)
            return found[0]
        lines = ["```console"]
        for _ in range(len(re.findall(r"^\$ ", found["console"], flags=re.MULTILINE))):
            shown, came = next(left)
            lines += [f"$ {shown.command}", *(shown.lines if alike(shown.lines, came) else came)]
        return "\n".join([*lines, "```"])

    return _BLOCK.sub(block, page)
