"""The macvtap modes of a VM's NIC."""

from __future__ import annotations

import enum

from provisioner.errors import Usage
from provisioner.model.names import printable


class MacvtapMode(enum.Enum):
    """The values are libvirt's words; how the kernel spells them only `host.links` knows."""

    BRIDGE = "bridge"
    VEPA = "vepa"
    PRIVATE = "private"
    PASSTHROUGH = "passthrough"

    @classmethod
    def parse(cls, text: str) -> MacvtapMode:
        """Takes `passthru` too. Raises Usage."""
        word = text.strip().lower()
        if word == "source":
            raise Usage(
                "mode source is not possible for a VM's NIC: libvirt has no word for it",
                "use --mode private, or an endpoint, which is a macvlan of macvm's own",
            )
        try:
            return cls({"passthru": "passthrough"}.get(word, word))
        except ValueError:
            modes = ", ".join(mode.value for mode in cls)
            raise Usage(f"{printable(text)} is no macvtap mode", f"one of {modes}") from None
