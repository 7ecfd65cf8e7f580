"""Checksums as users write them, and as distributions publish them beside their images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from provisioner.errors import NotFound, Usage
from provisioner.model.names import printable

#: The algorithms that macvm takes, and how many hexadecimal digits each gives.
DIGITS = {"sha256": 64, "sha512": 128}

_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
# coreutils: sha256sum(1) writes two blanks before the name, or a blank and `*`.
_COREUTILS = re.compile(r"([0-9A-Fa-f]{16,})[ \t]+\*?(\S.*)", re.ASCII)
# BSD's and OpenSSL's: SHA256 (name) = digest, SHA2-256(name)= digest
_BSD = re.compile(r"([A-Za-z0-9-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]+)", re.ASCII)


class Checksum(NamedTuple):
    """`algorithm` is a key of `DIGITS`, `digest` lower-case hexadecimal."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def parse_checksum(text: str) -> Checksum:
    """`sha256:…` or `sha512:…`, in either case of letters. Raises Usage."""
    algorithm, _, digest = text.strip().lower().partition(":")
    digits = DIGITS.get(algorithm)
    if digits is None or len(digest) != digits or not _HEX.fullmatch(digest):
        known = ", or ".join(f"{name}: and {count} hexadecimal digits" for name, count in DIGITS.items())
        raise Usage(f"the checksum {printable(text, 200)} is not understood", known)
    return Checksum(algorithm, digest)


def find_checksum(text: str, file_name: str, algorithm: str) -> Checksum:
    """The digest of one file in a checksum file: coreutils', BSD's, OpenSSL's, or nothing but the digest itself.

    A PGP signature around it is not verified: whoever may change the file on the server is believed.
    Raises NotFound where the file is not in it, Usage where two different digests are.
    """
    digits = DIGITS[algorithm]
    lines = [line for line in _body(text) if line and not line.startswith("#")]
    found = {digest for name, digest in _entries(lines, algorithm) if name == file_name and len(digest) == digits}
    if not found and len(lines) == 1 and len(lines[0]) == digits and _HEX.fullmatch(lines[0].lower()):
        found = {lines[0].lower()}
    shown = printable(file_name, 200)
    if not found:
        raise NotFound(
            f"the checksum file has no {algorithm} of {shown}", "the file may have been replaced by a newer one"
        )
    if len(found) > 1:
        raise Usage(f"the checksum file has different {algorithm} digests of {shown}", "give the right one: --checksum")
    return Checksum(algorithm, found.pop())


def _entries(lines: list[str], algorithm: str) -> Iterator[tuple[str, str]]:
    """Names, without a leading `./`, and lower-case digests."""
    for line in lines:
        if match := _BSD.fullmatch(line):
            kind, name, digest = match.groups()
            if kind.lower().replace("sha2-", "sha").replace("-", "") != algorithm:
                continue
        elif match := _COREUTILS.fullmatch(line):
            digest, name = match.groups()
        else:
            continue
        yield name.removeprefix("./"), digest.lower()


def _body(text: str) -> list[str]:
    """The lines; of a clear-signed text those that are signed (RFC 9580, 7)."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    if "-----BEGIN PGP SIGNED MESSAGE-----" not in lines:
        return lines
    signed = lines[lines.index("-----BEGIN PGP SIGNED MESSAGE-----") + 1 :]
    if "-----BEGIN PGP SIGNATURE-----" in signed:
        signed = signed[: signed.index("-----BEGIN PGP SIGNATURE-----")]
    # Headers (`Hash: SHA256`) end with an empty line; a line that began with a dash was given `- ` before it.
    first = signed.index("") + 1 if "" in signed else len(signed)
    return [line.removeprefix("- ") for line in signed[first:]]
