"""Identifiers: machine names, MAC addresses, and interface names of at most 15 characters."""

from __future__ import annotations

import os
import re

from provisioner.errors import Usage

#: IFNAMSIZ (include/uapi/linux/if.h) is 16 with its final zero.
INTERFACE_NAME_MAX = 15

SHIM_PREFIX = "mv-"
DEVICE_PREFIX = "mt-"
PROBE_PREFIX = "mp-"

#: As libvirt writes it.
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
#: QEMU's own prefix; its second-lowest bit of the first byte says "locally administered" (IEEE 802).
_QEMU_PREFIX = "52:54:00"


def printable(text: str, limit: int = 40) -> str:
    """`text` as it may stand in a message: no control or direction-changing characters, and not without end."""
    shown = repr(text)
    return shown if len(shown) <= limit + 2 else f"{shown[: limit + 1]}…{shown[-1]}"


def is_number(text: str) -> bool:
    """Whether `text` is a whole number of a size that a person writes: nine digits at most."""
    return text.isascii() and text.isdecimal() and len(text) <= 9


def check_name(text: str, what: str = "a name") -> str:
    """`text` itself when it is a host name's label (RFC 1123, lower case): safe for libvirt, files, DNS and shells.

    Raises Usage.
    """
    if _NAME.fullmatch(text):
        return text
    raise Usage(
        f"{printable(text)} cannot be {what}",
        "1 to 63 of the characters a-z, 0-9 and '-', beginning and ending with a letter or digit",
    )


def parse_label(text: str) -> tuple[str, str]:
    """`KEY=VALUE`. Raises Usage."""
    key, sign, value = text.partition("=")
    if not sign or not key or not text.isprintable():
        raise Usage(f"{printable(text)} is no label", "KEY=VALUE, of printable characters")
    return key, value


def packed_mac(mac: str) -> bytes:
    """A MAC address's six bytes, as frames and the kernel's messages have it."""
    return bytes.fromhex(mac.replace(":", ""))


class Mac(str):
    """A unicast MAC address in libvirt's spelling, `52:54:00:12:34:56`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Mac:
        """Also takes upper case, `-` as a separator, and twelve bare digits. Raises Usage."""
        plain = text.strip().lower().replace("-", ":")
        if re.fullmatch(r"[0-9a-f]{12}", plain):
            plain = ":".join(plain[i : i + 2] for i in range(0, 12, 2))
        if not _MAC.fullmatch(plain):
            raise Usage(f"{printable(text)} is no MAC address", "six bytes in hexadecimal, such as 52:54:00:12:34:56")
        if int(plain[:2], 16) & 1:
            raise Usage(
                f"{plain} is a multicast address, which no NIC may have", "make the first byte even, such as 52"
            )
        if plain == "00:00:00:00:00:00":
            raise Usage(f"{plain} is no address that a NIC may have", "leave --mac out, and macvm chooses one")
        return cls(plain)

    @classmethod
    def random(cls) -> Mac:
        """A new address with QEMU's prefix; three random bytes. The caller checks that it is free."""
        return cls(f"{_QEMU_PREFIX}:{os.urandom(3).hex(':')}")

    @property
    def digits(self) -> str:
        return self.replace(":", "")

    @property
    def device(self) -> str:
        """The host device of a NIC with this MAC: exactly 15 characters, and outside libvirt's own `macvtap*` pattern,
        so that libvirt keeps it over restarts."""
        return DEVICE_PREFIX + self.digits


def shim_name(parent: str) -> str:
    """Name of the shim on `parent`: `mv-eth0`, or a hash where the parent's name leaves no room."""
    name = SHIM_PREFIX + parent
    if len(name) <= INTERFACE_NAME_MAX:
        return name
    return SHIM_PREFIX + _sha256(parent.encode()).hex()[: INTERFACE_NAME_MAX - len(SHIM_PREFIX)]


def shim_mac(parent_mac: str) -> Mac:
    """A MAC for the shim that is the same each time: derived from the parent's, locally administered, unicast."""
    digest = _sha256(b"macvm shim " + parent_mac.lower().encode())
    return Mac(bytes([(digest[0] & 0xFC) | 0x02, *digest[1:6]]).hex(":"))


def _sha256(data: bytes) -> bytes:
    import hashlib  # with it comes OpenSSL's library, which `macvm list` can do without

    return hashlib.sha256(data).digest()
