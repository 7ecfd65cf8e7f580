"""What a reset would do, with the lines of `qemu-img`, `mv` and `virsh` that amount to the same."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from provisioner.actions import preview, script
from provisioner.actions.reset import make_plans
from provisioner.context import Context
from provisioner.model.masking import masked


def reset(context: Context, names: Sequence[str]) -> list[str]:
    """Raises as `reset` itself does."""
    lines = []
    for plan in make_plans(context, names):
        seed, texts = plan.folder / "seed.iso", plan.folder / "seed"
        disk, new_seed = plan.disk.with_name("disk.qcow2.new"), seed.with_name("seed.iso.new")
        lines += preview.reset_disk_lines(disk, plan.base, plan.size)
        # All but what tells the guest that it is another one stays, secrets with it.
        lines.append(shlex.join(["xorriso", "-osirrox", "on", "-indev", str(seed), "-extract", "/", str(texts)]))
        lines.append(script.writing(texts / "meta-data", masked(plan.seed["meta-data"])))
        lines += script.packing_lines(new_seed, texts, context.hypervisor.qemu_user())
        lines += [f"virsh destroy {plan.machine.name}"] if plan.runs else []
        for new, old in ((disk, plan.disk), (new_seed, seed)):
            lines.append(shlex.join(["mv", str(new), str(old)]))
        lines.append(f"rm -f {shlex.quote(str(plan.folder))}/nvram.fd")
        lines += preview.start(context, [plan.machine.name], stopped=True) if plan.runs else []
    return lines
