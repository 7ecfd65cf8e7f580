"""Checksums as users write them, and as Debian, Ubuntu, Fedora, Rocky, Alpine and CirrOS publish them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.errors import MacvmError, NotFound, Usage
from provisioner.model.checksum import DIGITS, Checksum, find_checksum, parse_checksum

NAME = "debian-12-genericcloud-amd64.qcow2"
A, B, LONG = "a1" * 32, "b2" * 32, "c3" * 64


@pytest.mark.parametrize("text", [f"sha256:{A}", f"SHA256:{A.upper()}", f"sha512:{LONG}", f" sha256:{A}\n"])
def test_a_checksum_is_understood_in_either_case(text: str) -> None:
    assert str(parse_checksum(text)) == text.strip().lower()


@pytest.mark.parametrize(
    "text",
    ["", A, "sha256:", f"sha256:{A[1:]}", f"sha256:{LONG}", f"md5:{A[:32]}", f"sha256:{'g' * 64}", f"sha256: {A}"],
)
def test_what_is_no_checksum_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(Usage) as refused:
        parse_checksum(text)
    assert "sha256: and 64" in refused.value.hint


FEDORA = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# {NAME}: 123456 bytes
SHA256 ({NAME}) = {A}
- --- a line that began with dashes
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE
SHA256 ({NAME}) = {B}
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    "text",
    [
        f"{B}  other.qcow2\n{A}  {NAME}\n",
        f"{A} *{NAME}\n{B} *other.qcow2\n",
        f"{A}  ./{NAME}\n",
        f"{A.upper()}  {NAME}\r\n",
        f"# {NAME}: 1 byte\nSHA256 ({NAME}) = {A}\nSHA512 ({NAME}) = {LONG}\n",
        f"SHA2-256({NAME})= {A}\n",
        f"\ufeff{A}  {NAME}\n",
        f"{A}\n",
        f"# made by a release script\n\n  {A}\n",
        f"{A}  {NAME}\n{A}  {NAME}\n",
        f"{B}  {NAME}.asc\n{B}  x{NAME}\n{B}  old/{NAME}\n{A}  {NAME}\n",
        FEDORA,
    ],
)
def test_the_digest_is_found_in_every_kind_of_checksum_file(text: str) -> None:
    assert find_checksum(text, NAME, "sha256") == Checksum("sha256", A)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>404</body></html>",
        f"{A}  other.qcow2\n",
        f"{LONG}  {NAME}\n",
        f"SHA512 ({NAME}) = {A}\n",
        f"{A}\n{B}\n",
        f"# {A}  {NAME}\n",
        FEDORA.replace(f"SHA256 ({NAME}) = {A}\n", "", 1),
    ],
)
def test_a_file_that_is_not_named_is_not_found(text: str) -> None:
    with pytest.raises(NotFound, match=NAME):
        find_checksum(text, NAME, "sha256")


def test_two_digests_of_one_file_are_refused() -> None:
    with pytest.raises(Usage, match="different sha256 digests"):
        find_checksum(f"{A}  {NAME}\nSHA256 ({NAME}) = {B}\n", NAME, "sha256")


@pytest.mark.parametrize("algorithm", DIGITS)
@pytest.mark.parametrize("options", [[], ["--tag"], ["--binary"]])
def test_coreutils_own_output_is_read(tmp_path: Path, algorithm: str, options: list[str]) -> None:
    for name in ("a b.img", "c.img"):
        (tmp_path / name).write_bytes(name.encode())
    words = [f"{algorithm}sum", *options, "./a b.img", "c.img"]
    text = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    for name in ("a b.img", "c.img"):
        assert find_checksum(text, name, algorithm).digest == hashlib.new(algorithm, name.encode()).hexdigest()


@given(st.text())
def test_any_text_gives_a_checksum_or_one_of_our_errors(text: str) -> None:
    for act in (lambda: parse_checksum(text), lambda: find_checksum(text, NAME, "sha256")):
        try:
            act()
        except MacvmError:
            continue
