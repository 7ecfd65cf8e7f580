"""Whether a machine runs on KVM, or has its CPU emulated."""

from __future__ import annotations

from provisioner.errors import Unable, Usage
from provisioner.host.system import kvm_problem
from provisioner.model.names import printable


def choose_virt_type(wanted: str, notes: list[str]) -> str:
    """`kvm` or `qemu`. Raises Usage, Unable where KVM was asked for and cannot run guests."""
    if wanted not in ("auto", "kvm", "qemu"):
        # The option's words are checked before; these come from the environment or the configuration file.
        raise Usage(f"{printable(wanted)} is no virt_type", "auto, kvm or qemu")
    problem = kvm_problem() if wanted in ("auto", "kvm") else ""
    if wanted == "auto":
        if problem:
            notes.append(f"KVM cannot run guests here ({problem}): QEMU emulates the CPU, which is slow")
        return "qemu" if problem else "kvm"
    if wanted == "kvm" and problem:
        raise Unable(f"KVM cannot run guests here: {problem}", "use --virt-type qemu")
    return wanted
