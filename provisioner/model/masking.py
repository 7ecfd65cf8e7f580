"""What a person may see of a text that configures a guest: all of it but its secrets.

Masks too much rather than too little: who wrote the text has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from provisioner.model.user_data import GZIP, kind_of

MASK = "(masked)"

_SECRET = r"passw(?:or)?d|passphrase|passwort|secret|token|private[_-]?key|api[_-]?key|credential|\bpsk\b|authorization"
_KEYED = re.compile(rf"""["']?[\w.-]*(?:{_SECRET})[\w.-]*["']?\s*[:=]\s*""", re.IGNORECASE)
_NAMED = re.compile(_SECRET, re.IGNORECASE)
#: crypt(5): an identifier between dollars, then salt and hash.
_HASH = re.compile(r"\$(?:1|2[abxy]?|5|6|7|y|gy|sha1|argon2\w*|scrypt)\$[^\s\"':,]+")
_LOGIN_IN_URL = re.compile(r"(://[^/\s:@]+:)[^/\s@]+@")
_HERE_DOCUMENT = re.compile(r"<<-?\s*\\?[\"']?(\w+)")


def masked(data: bytes) -> str:
    """A text with its passwords, their hashes and private keys masked; for what is no text, what it is."""
    if kind_of(data) is GZIP:
        return f"({len(data)} bytes that are packed with gzip)\n"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"({len(data)} bytes that are no text)\n"
    return "".join(_lines(text.splitlines(keepends=True)))


def _lines(lines: list[str]) -> Iterator[str]:
    depth: int | None = None  # the column of a key whose value may go on below it
    opened = False  # that key's line had no value: a list may stand right below it
    until = ""  # what ends a block that is masked as a whole
    for line in lines:
        bare = line.strip()
        if until:
            ends = until in bare if until.startswith("-----") else bare == until
            until = "" if ends else until
            yield line if ends else ""
            continue
        column = len(line) - len(line.lstrip())
        if depth is not None and (not bare or column > depth or (opened and column == depth and bare.startswith("-"))):
            continue
        depth = None
        if "-----BEGIN" in line and "PRIVATE KEY" in line:
            until = "" if "-----END" in line else "-----END"
            yield f"{' ' * column}{MASK}\n"
            continue
        found = _KEYED.search(line)
        if found:
            depth, opened = found.start(), found.end() >= len(line.rstrip())
            yield f"{line[: found.end()].rstrip()} {MASK}\n"
        elif _NAMED.search(line):
            yield f"{' ' * column}{MASK}\n"
        else:
            yield _LOGIN_IN_URL.sub(rf"\1{MASK}@", _HASH.sub(MASK, line))
        here = _HERE_DOCUMENT.search(line) if found or _NAMED.search(line) else None
        until = here[1] if here else ""
