"""macvm: KVM virtual machines straight on the LAN with macvtap, reachable from their own host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provisioner.actions.labs.wishes import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    # With a lab comes all that makes machines: `import provisioner`, as each command does, has no use for it.
    if name == "Lab":
        from provisioner.actions.labs.wishes import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
