"""Amounts of memory and disk, as people write and read them."""

from __future__ import annotations

import re

from provisioner.errors import Usage
from provisioner.model.names import printable

_SIZE = re.compile(r"(\d{1,12})\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}

#: Less than this boots no kernel that macvm knows of.
LEAST_MEMORY = 32 << 20
#: What a machine gets that is not said to have more, or less.
DEFAULT_MEMORY = 512 << 20


def parse_size(text: str, *, plain_unit: str = "m", what: str = "size") -> int:
    """Bytes of `512`, `512M`, `2G`, `2GiB`; a number without a unit counts in `plain_unit`. Raises Usage."""
    match = _SIZE.fullmatch(text.strip())
    if not match or not int(match[1]):
        raise Usage(f"{printable(text)} is no {what}", "a number with K, M, G or T, such as 512M or 2G")
    return int(match[1]) * _UNITS[(match[2] or plain_unit).lower()]


def human_size(size: int) -> str:
    """`20 MiB`: three digits at most."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    value, unit = float(size), units.pop(0)
    while value >= 1024 and units:
        value, unit = value / 1024, units.pop(0)
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
