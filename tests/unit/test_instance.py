"""The seed's instance-id: the UUID, and with each reset a number behind it."""

from __future__ import annotations

import json

import pytest

from provisioner.model.instance import instance_of, next_instance, with_instance

UUID = "0d6f2b7e-4b6f-4a8e-9c58-123456789012"


def test_each_is_new_and_begins_with_the_uuid() -> None:
    assert next_instance(UUID) == f"{UUID}.2"
    assert next_instance(f"{UUID}.2") == f"{UUID}.3"
    assert next_instance(f"{UUID}.9") == f"{UUID}.10"
    assert next_instance(f"{UUID}.x") == f"{UUID}.2"


def test_the_rest_of_the_meta_data_stays() -> None:
    old = json.dumps({"instance-id": UUID, "local-hostname": "web1", "public-keys": ["ssh-ed25519 AAAA"]}).encode()
    new = with_instance(old, "x")
    assert instance_of(new) == "x"
    assert json.loads(new) | {"instance-id": UUID} == json.loads(old)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"1", b"\xff", b"instance-id: x", b'{"instance-id": 1}'])
def test_what_is_no_meta_data_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="no instance-id"):
        instance_of(text)
