"""What a lab's file says of a machine and nothing shows afterwards, as digests that the machine keeps in its metadata:
its disk's content may have come from it, and so a difference is known without a look inside.

They are made with a key that only root can read, for everybody may read a machine's metadata, and try passwords.
"""

from __future__ import annotations

from pathlib import Path

from provisioner.actions.request import CreateRequest

#: Hexadecimal digits that tell two texts apart.
_LENGTH = 12

#: What a guest took in when it first booted, and takes in no more.
AT_FIRST_BOOT = ("image", "user_data", "ssh_keys", "password")


def digests(key: bytes, request: CreateRequest) -> str:
    """`PART=DIGEST …` for every part that the file speaks of."""
    boot, vnc = request.boot, request.vnc
    said: dict[str, object] = {
        "image": (request.image, request.checksum) if request.image or request.checksum else None,
        "user_data": request.user_data or None,
        "ssh_keys": request.ssh_keys,
        "password": request.password or None,
        "template": _content(request.template) if request.template else None,
        "firmware": request.firmware,
        "boot": tuple(map(str, boot)) if boot else None,
        "vnc": tuple(map(str, vnc)) if vnc else None,
    }
    return " ".join(f"{part}={_digest(key, part, value)}" for part, value in said.items() if value is not None)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # which creating the machine then complains of


def _digest(key: bytes, part: str, value: object) -> str:
    # For the few machines that something is said of.
    import hashlib
    import hmac

    return hmac.new(key, repr((part, value)).encode(), hashlib.sha256).hexdigest()[:_LENGTH]


def differences(before: str, after: str) -> list[str]:
    """The parts that are not the same."""
    old, new = (dict(word.split("=", 1) for word in text.split() if "=" in word) for text in (before, after))
    return [part for part in sorted({*old, *new}) if old.get(part) != new.get(part)]
