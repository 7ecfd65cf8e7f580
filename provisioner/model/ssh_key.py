"""Public SSH keys, as authorized_keys takes them."""

from __future__ import annotations

import base64
import binascii
import re

#: sshd(8), AUTHORIZED_KEYS FILE FORMAT: options may stand before the type, a comment behind the key.
_KEY = re.compile(r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-[a-z0-9-]+(?:@openssh\.com)?)\s+([A-Za-z0-9+/]+={0,2})(?:\s|$)")


def key_lines(text: str) -> tuple[str, ...]:
    """The lines of a file that are no comments."""
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    return tuple(line for line in lines if line and not line.startswith("#"))


def is_public_key(line: str) -> bool:
    """Whether a line is one key that a guest can take: no certificate, and nothing that begins another line."""
    found = _KEY.search(line)
    if found is None or not line.replace("\t", " ").isprintable():
        return False
    try:
        blob = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return False
    fields = _fields(blob)
    # RFC 4253, 6.6: the type stands in the key once more.
    return len(fields) > 1 and fields[0] == found[1].encode() and b"-cert-" not in fields[0]


def _fields(blob: bytes) -> list[bytes]:
    """What follows each length (RFC 4251, 5: `string`); nothing where the last one is cut off."""
    found, place = [], 0
    while place < len(blob):
        end = place + 4 + int.from_bytes(blob[place : place + 4], "big")
        if end > len(blob):
            return []
        found.append(blob[place + 4 : end])
        place = end
    return found
