"""What a machine's disk and seed cost in one process: the overlay, by qemu-img, and the ISO."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from provisioner.host import disks, seeds
from provisioner.model.names import Mac
from provisioner.model.nic import Nic, parse_addressing
from provisioner.model.seed import SeedRequest, seed_files

_TOLD = parse_addressing(["192.0.2.11/24", "2001:db8::11/64"], ["192.0.2.1", "2001:db8::1"], ["192.0.2.53"])
_BASE = 10 << 30


class Row(NamedTuple):
    """Median milliseconds of both, and of the overlay alone."""

    title: str
    both: float
    overlay: float
    goal: str


def row(rounds: int) -> Row:
    owner = (os.getuid(), os.getgid())
    nics = tuple(Nic(Mac(f"52:54:00:00:00:0{number}"), parent="eth0", addressing=_TOLD) for number in range(2))
    both, overlay = [], []
    with tempfile.TemporaryDirectory(prefix="macvm-bench-") as folder:
        base = Path(folder, "base.qcow2")
        disks.create_disk(base, _BASE)
        for number in range(rounds + 1):
            began = time.perf_counter()
            disks.create_overlay(base, Path(folder, f"{number}.qcow2"), None)
            between = time.perf_counter()
            files = seed_files(SeedRequest(f"web{number}", str(number), nics, ("ssh-ed25519 AAAA me",)))
            seeds.write_seed(Path(folder, f"{number}.iso"), files, owner)
            # The first one imports the ISO writer.
            if number:
                both.append((time.perf_counter() - began) * 1000)
                overlay.append((between - began) * 1000)
    return Row("seed and overlay", median(both), median(overlay), "under 40 ms")
