"""Public SSH keys: real ones are taken, and nothing that would say more than one key."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from provisioner.errors import Usage
from provisioner.host.user_files import read_keys
from provisioner.model.ssh_key import is_public_key

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2/nbHEfsMrVOBsm4Gq4lCVhWwMm3W0LrsUdnMUO4Lu"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_what_ssh_keygen_makes_is_taken_and_its_certificate_is_not(tmp_path: Path, kind: str) -> None:
    key = tmp_path / "key"
    keygen = ["ssh-keygen", "-q", "-t", kind]
    subprocess.run([*keygen, "-N", "", "-C", "me@hôme «1»", "-f", key], check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["ssh-keygen", "-q", "-s", key, "-I", "id", "-n", "me", key.with_suffix(".pub")], check=True)
    assert read_keys([key.with_suffix(".pub")]) == ((tmp_path / "key.pub").read_text().strip(),)
    assert not is_public_key((tmp_path / "key-cert.pub").read_text().strip())
    with pytest.raises(Usage, match="is a private key"):
        read_keys([key])


def test_options_and_comments_are_taken_as_they_are() -> None:
    assert is_public_key(f'command="echo \\"hi\\"",no-pty {ED25519} me and you')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# none\n\n",
        "hello\n",
        "ssh-ed25519 AAAA me\n",
        f"{ED25519[:-1]}=\n",
        ED25519.replace("ssh-ed25519", "ssh-rsa") + "\n",
        f"{ED25519} me\rssh-rsa\n",
        f"{ED25519} me\x85ssh-rsa\n",
        f"{ED25519} me\x00\n",
        f"{ED25519} \x1b[31mme\n",
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(text.encode())
    with pytest.raises(Usage, match="no public key") as refused:
        read_keys([path])
    assert refused.value.message.isprintable()
