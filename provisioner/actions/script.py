"""Lines of a `--dry-run` for a shell: each does one thing whole, and what no command does begins with `#`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path


def with_xml(command: str, xml: str) -> str:
    """A virsh command that reads a device or a domain: bash hands it over as a here string, on one line."""
    text = re.sub(r">\s+<", "><", xml.strip())
    return f"{command} /dev/stdin <<< {_quoted(text)}"


def _quoted(text: str) -> str:
    """A word for bash, on one line."""
    if text.isprintable():
        return shlex.quote(text)
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}
    return "$'" + "".join(escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + "'"


def comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in text.splitlines()]


def once(lines: Iterable[str]) -> list[str]:
    """Of several things that are done one after the other: what the first of them makes, the next finds."""
    seen = set[str]()
    return [line for line in lines if line.startswith("#") or not (line in seen or seen.add(line))]  # type: ignore[func-returns-value]


def writing(path: Path | str, text: str) -> str:
    return f"printf %s {_quoted(text)} > {shlex.quote(str(path))}"


def seed_lines(seed: Path, files: Mapping[str, str], owner: tuple[int, int]) -> list[str]:
    """What makes a seed of texts, whose secrets are masked: a guest would not take those."""
    folder = seed.parent / "seed"
    folders = sorted({str((folder / name).parent) for name in files})
    lines = [shlex.join(["mkdir", "-p", *folders])]
    lines += [writing(folder / name, text) for name, text in sorted(files.items())]
    return [*lines, *packing_lines(seed, folder, owner)]


def packing_lines(seed: Path, folder: Path, owner: tuple[int, int]) -> list[str]:
    """A seed of the files in a folder, which goes."""
    path = shlex.quote(str(seed))
    return [
        f"xorrisofs -quiet -o {path} -V cidata -J -R {shlex.quote(str(folder))}",
        f"truncate -s %1M {path}",
        f"chmod 600 {path}",
        f"chown {owner[0]}:{owner[1]} {path}",
        f"rm -r {shlex.quote(str(folder))}",
    ]


def waiting(condition: str, seconds: int) -> str:
    """Waits until a command ends with 0."""
    return f"timeout {seconds} sh -c {shlex.quote(f'until {condition}; do sleep 0.1; done')}"


def waiting_off(name: str) -> str:
    return waiting(f"virsh domstate {shlex.quote(name)} | grep -q off", 60)


def waiting_unplugged(name: str, mac: str) -> str:
    """libvirt's call returns before the guest has let go."""
    return waiting(f"! virsh dumpxml {shlex.quote(name)} | grep -qi {mac}", 60)


def removing(paths: Iterable[Path]) -> list[str]:
    return [f"rm -f {shlex.quote(str(path))}" for path in paths]
