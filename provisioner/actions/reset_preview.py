"""What a reset would do, with the lines of `qemu-img`, `mv` and `virsh` that amount to the same."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from provisioner.actions import preview
from provisioner.actions.reset import make_plans
from provisioner.context import Context


def reset(context: Context, names: Sequence[str]) -> list[str]:
    """Raises as `reset` itself does."""
    lines = []
    for plan in make_plans(context, names):
        disk, seed = str(plan.disk), f"{plan.folder}/seed.iso"
        size = [str(plan.size)] if plan.size else []
        argv = ["qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", str(plan.base), f"{disk}.new", *size]
        lines += [shlex.join(argv), f"xorrisofs -o {seed}.new -V cidata -J -R SEED-FOLDER"]
        lines += [f"virsh destroy {plan.machine.name}"] if plan.runs else []
        lines += [f"mv {disk}.new {disk}", f"mv {seed}.new {seed}", f"rm -f {plan.folder}/nvram.fd"]
        lines += preview.start(context, [plan.machine.name]) if plan.runs else []
    return lines
