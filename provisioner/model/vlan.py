"""802.1Q VLANs as parents: `eth0.50` is VLAN 50 of eth0."""

from __future__ import annotations

import re
from typing import NamedTuple

from provisioner.errors import MacvmError, Unable, Usage
from provisioner.model.names import INTERFACE_NAME_MAX, printable

#: The identifiers that a VLAN may have: 12 bits, without the two that IEEE 802.1Q keeps to itself (9.6, table 9-2).
FIRST, LAST = 1, 4094

_PREFIX = "vl-"
_WRITTEN = re.compile(r"(.+)\.([0-9]+)")


class VlanParent(NamedTuple):
    """VLAN `vid` of the link `base`."""

    base: str
    vid: int

    def __str__(self) -> str:
        """As the user writes it."""
        return f"{self.base}.{self.vid}"

    @property
    def link(self) -> str:
        """Name of the VLAN's link: `eth0.50`, or `vl-1a2b3c.50` with a hash where the base's name leaves no room."""
        return str(self) if len(str(self)) <= INTERFACE_NAME_MAX else f"{_PREFIX}{_digest(self.base)}.{self.vid}"

    @property
    def doubly_tagged(self) -> bool:
        """Whether the base is a VLAN itself, going by its name."""
        return bool(_WRITTEN.fullmatch(self.base))


def vlan_parent(text: str) -> VlanParent | None:
    """None for what names no VLAN. Raises Usage for a number that no VLAN has.

    A link may bear any such name without being a VLAN: whoever asks looks first whether there is one.
    """
    found = _WRITTEN.fullmatch(text)
    if not found:
        return None
    base, digits = found.groups()
    vid = int(digits[:9])
    reason = ""
    if vid == 0:
        reason = "0 marks frames that have a priority and no VLAN"
    elif vid == LAST + 1:
        reason = f"802.1Q reserves {LAST + 1}"
    elif vid > LAST:
        reason = "802.1Q has 12 bits for the number"
    if reason:
        untagged = f"; without a tag: --parent {base}" if vid == 0 else ""
        raise Usage(f"{printable(text)} is no VLAN: {reason}", f"a number from {FIRST} to {LAST}{untagged}")
    if digits != str(vid):  # two spellings would be two parents to all that compares names
        raise Usage(f"{printable(text)}: a VLAN's number is written without leading zeros", f"{base}.{vid}")
    return VlanParent(base, vid)


def double_tag(wanted: VlanParent) -> MacvmError:
    """Why macvm makes no VLAN in a VLAN, and what to do."""
    return Unable(
        f"{wanted} would be a VLAN in a VLAN (QinQ): {wanted.base} is one itself, and macvm makes no second tag",
        f"make it (ip link add link {wanted.base} name q{wanted.vid} type vlan id {wanted.vid}, then ip link set up) "
        f"and use --parent q{wanted.vid}, or a VLAN of the link below",
    )


def _digest(text: str) -> str:
    import hashlib  # with it comes OpenSSL's library, which most commands can do without

    return hashlib.sha256(text.encode()).hexdigest()[:6]
