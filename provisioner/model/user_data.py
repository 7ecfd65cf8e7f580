"""User data: which kind a text is, and several of them in one.

The kinds, and the words that they begin with, are cloud-init's (docs.cloud-init.io, "User-data formats"). It looks past
white space and at no difference of case; a kernel that runs a script does not.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from provisioner.errors import Usage


class Kind(NamedTuple):
    """`what` as in a sentence; `media_type` as in MIME."""

    what: str
    media_type: str


SCRIPT = Kind("a script", "text/x-shellscript")
MIME = Kind("MIME", "multipart/mixed")
GZIP = Kind("packed with gzip", "application/gzip")

#: Longer words come before those that they begin with.
_BEGINNINGS = {
    b"#!": SCRIPT,
    b"#cloud-config-archive": Kind("a cloud-config archive", "text/cloud-config-archive"),
    b"#cloud-config-jsonp": Kind("a cloud-config patch", "text/cloud-config-jsonp"),
    b"#cloud-config": Kind("cloud-config", "text/cloud-config"),
    b"#cloud-boothook": Kind("a cloud-boothook", "text/cloud-boothook"),
    b"#include-once": Kind("a list of addresses to fetch", "text/x-include-once-url"),
    b"#include": Kind("a list of addresses to fetch", "text/x-include-url"),
    b"#part-handler": Kind("a part-handler", "text/part-handler"),
    b"## template: jinja": Kind("a jinja template", "text/jinja2"),
}

#: Where cloud-init looks for MIME's words.
_HEAD = 4096


def kind_of(data: bytes) -> Kind | None:
    """None for what cloud-init knows nothing of, and passes over."""
    if data.startswith(b"\x1f\x8b"):
        return GZIP
    head = data[:_HEAD].lower()
    if b"mime-version:" in head:
        return MIME
    return next((kind for word, kind in _BEGINNINGS.items() if head.lstrip().startswith(word)), None)


def check_script(data: bytes, guests: str) -> None:
    """Raises Usage for what is no script, where `guests` run nothing else."""
    if data.startswith(b"#!"):
        return
    kind = kind_of(data)
    what = kind.what if kind and kind is not SCRIPT else "something else"
    raise Usage(
        f"guests of {guests} run user-data only where it is a script, which begins with #!; this is {what}",
        "write it as a script, such as #!/bin/sh and its lines",
    )


def check_combinable(parts: Sequence[bytes]) -> None:
    """Raises Usage where several texts cannot be put into one."""
    for number, part in enumerate(parts, 1):
        kind = kind_of(part)
        if len(parts) > 1 and (kind is None or kind is MIME):
            what = "is MIME already" if kind else "is of no kind that cloud-init knows"
            raise Usage(
                f"user-data number {number} of {len(parts)} {what}: it cannot be put beside others",
                "give it alone, or begin it with #! or #cloud-config",
            )


def combine(parts: Sequence[bytes], *, readable: bool = False) -> bytes:
    """Several texts as one of MIME's (RFC 2046, 5.1.3), a single one as it is. The same parts give the same bytes.

    `readable` leaves the parts as they are, for a person to look at.
    """
    if len(parts) == 1:
        return parts[0]
    # Not at the top: an import that `nic attach` would pay for.
    import hashlib

    encoding = b"8bit" if readable else b"base64"
    encoded = [part if readable else base64.encodebytes(part) for part in parts]
    boundary = b"macvm-" + hashlib.sha256(b"\0".join(encoded)).hexdigest()[:32].encode()
    text = b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\nMIME-Version: 1.0\n'
    for number, (part, content) in enumerate(zip(parts, encoded, strict=True), 1):
        kind = kind_of(part)
        # Plain text is what cloud-init finds the kind of itself.
        media_type = kind.media_type.encode() if kind else b"text/plain"
        text += b"\n--" + boundary + b"\nContent-Type: " + media_type + b'; charset="utf-8"\nMIME-Version: 1.0\n'
        text += b"Content-Transfer-Encoding: " + encoding + b"\n"
        text += b'Content-Disposition: attachment; filename="part-%03d"\n\n' % number + content
    return text + b"\n--" + boundary + b"--\n"
