"""Which NIC a user means: by its MAC, the MAC's last bytes, its host device, or its parent or network where unique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from provisioner.errors import NotFound, Usage
from provisioner.model.found import FoundMachine, FoundNic
from provisioner.model.names import printable

NO_NETWORKS: Mapping[str, str] = MappingProxyType({})


def choose_nic(
    machine: FoundMachine, nics: Sequence[FoundNic], wanted: str | None, networks: Mapping[str, str] = NO_NETWORKS
) -> FoundNic:
    """`wanted` None means the only one; `networks` are macvm's, by MAC. Raises NotFound, or Usage with the
    candidates."""
    if wanted is None:
        found = list(nics)
    else:
        word = wanted.strip().lower().replace("-", ":") if ":" in wanted or "-" in wanted else wanted.strip().lower()
        # An empty word would match every NIC without a network, or without a device.
        found = next((match for match in _matches(nics, word, wanted, networks) if match), []) if word else []
    if len(found) == 1:
        return found[0]
    here = "; ".join(describe(nic) for nic in nics) or "none"
    if not found:
        what = "a NIC" if wanted is None else f"a NIC {printable(wanted)}"
        raise NotFound(f"{machine.name} does not have {what}", f"its NICs: {here}")
    said = "which NIC is meant" if wanted is None else f"which NIC {printable(wanted)} means"
    candidates = "; ".join(describe(nic) for nic in found)
    raise Usage(f"{machine.name} has {len(found)} NICs: say {said}", f"one of: {candidates}")


def _matches(nics: Sequence[FoundNic], word: str, wanted: str, networks: Mapping[str, str]) -> list[list[FoundNic]]:
    """From the surest way of naming one to the loosest."""
    return [
        [nic for nic in nics if nic.mac == word],
        [nic for nic in nics if nic.device == wanted],
        [nic for nic in nics if wanted in (nic.parent, nic.network, networks.get(nic.mac))],
        [nic for nic in nics if nic.mac.endswith(":" + word)],
        [nic for nic in nics if len(word) > 1 and nic.mac.digits.endswith(word.replace(":", ""))],
    ]


def describe(nic: FoundNic) -> str:
    """`52:54:00:12:34:56 (bridge on eth0)`"""
    where = f"{nic.mode.value} on {nic.parent}" if nic.mode and nic.parent else f"network {nic.network}"
    return f"{nic.mac} ({where})"
