"""The name by which a guest tells whether it is a new machine: the seed's `instance-id`.

cloud-init makes host keys and runs user-data anew for one that it has not seen. It is the machine's UUID, and after a
reset that with a number behind it; the seed alone keeps it, and who changes another part of the seed leaves it there.
"""

from __future__ import annotations

import json


def instance_of(meta_data: bytes) -> str:
    """Raises ValueError for what is no meta-data of macvm's."""
    try:
        found = json.loads(meta_data)["instance-id"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("no instance-id") from error
    if not isinstance(found, str):
        raise ValueError("no instance-id")
    return found


def next_instance(instance: str) -> str:
    """UUID, UUID.2, UUID.3 …"""
    uuid, _, number = instance.partition(".")
    return f"{uuid}.{int(number) + 1 if number.isdecimal() else 2}"


def with_instance(meta_data: bytes, instance: str) -> bytes:
    """The same meta-data of another instance."""
    return (json.dumps(json.loads(meta_data) | {"instance-id": instance}, indent=1) + "\n").encode()
