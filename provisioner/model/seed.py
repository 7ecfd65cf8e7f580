"""The NoCloud seed's texts: one set of files that CirrOS, cloud-init and the tiny image all read.

cloud-init reads `meta-data`, `user-data`, `vendor-data` and `network-config`. CirrOS reads `meta-data` as JSON, which
is valid YAML too, runs `user-data` only where it begins with `#!`, and copies the `files/` tree into its root before
the network starts.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from provisioner.model.masking import MASK, masked
from provisioner.model.nic import Nic
from provisioner.model.seed_network import network_files
from provisioner.model.user_data import combine

#: By itself cloud-init takes up the network of the first boot alone: a NIC attached later would have no address.
_NETWORK_AT_EACH_BOOT = {"updates": {"network": {"when": ["boot-new-instance", "boot"]}}}


class SeedRequest(NamedTuple):
    """What a guest is told. `nics` come in the order of the machine's; `user_data` has one text of each kind;
    `password_hash` is crypt(5)'s `$6$…`."""

    hostname: str
    instance_id: str
    nics: tuple[Nic, ...]
    ssh_keys: tuple[str, ...] = ()
    user_data: tuple[bytes, ...] = ()
    login: str = ""
    password_hash: str = ""


def seed_files(request: SeedRequest, *, readable: bool = False) -> dict[str, bytes]:
    """Path on the seed to content. `readable` is for a person to look at."""
    own = b"#cloud-config\n" + json_text(_NETWORK_AT_EACH_BOOT)
    script = _password_script(request) if request.password_hash else b""
    # A script, since CirrOS runs nothing else and cloud-init of every age runs it too; where the user's own data has
    # that place, cloud-init takes it from its vendor.
    user_data = request.user_data or ((script,) if script else (b"#cloud-config\n{}\n",))
    vendor_data = (own, script) if script and request.user_data else (own,)
    return {
        "meta-data": _meta_data(request),
        "user-data": combine(user_data, readable=readable),
        "vendor-data": combine(vendor_data, readable=readable),
        **network_files(request.nics),
    }


def shown_files(request: SeedRequest) -> dict[str, str]:
    """The seed's texts with secrets masked."""
    texts = tuple(masked(text).encode() for text in request.user_data)
    shown = request._replace(user_data=texts, password_hash=MASK if request.password_hash else "")
    return {name: content.decode() for name, content in seed_files(shown, readable=True).items()}


def json_text(data: object, indent: int | None = None) -> bytes:
    """JSON that is YAML too.

    What YAML takes for a line break or refuses is escaped. What lies beyond 16 bits is not: JSON would escape it as two
    surrogates, which a YAML reader takes for two characters that no encoding has.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    plain = (c if c == "\n" or c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in text)
    return ("".join(plain) + "\n").encode()


def _meta_data(request: SeedRequest) -> bytes:
    data: dict[str, object] = {"instance-id": request.instance_id, "local-hostname": request.hostname}
    if request.ssh_keys:
        # CirrOS puts them one behind the other as they are: without its line break each would run into the next.
        data["public-keys"] = [f"{key}\n" for key in request.ssh_keys]
    return json_text(data, indent=1)


def _password_script(request: SeedRequest) -> bytes:
    # Neither the login nor the hash has any of the shell's quotes.
    return f"#!/bin/sh\nprintf '%s\\n' '{request.login}:{request.password_hash}' | chpasswd -e\n".encode()
