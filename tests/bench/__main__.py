"""`make bench`: what macvm's commands cost, as ratios.

Both sides of a ratio are run in turns in one sandbox; a row shows the medians, and the median of the turns' ratios.
Nothing is asserted: a busy machine is slow without being wrong. `--rounds N` makes it longer or shorter.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from provisioner.actions.sandbox import Sandbox, around
from provisioner.errors import Unable
from tests.bench import download, pools, seeds, shims, sides, steps
from tests.bench.turns import Side, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What macvm's commands cost, as ratios.")
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="turns of create; the others take twice that"
    )
    rounds = parser.parse_args().rounds
    # As at a user's: the interpreter keeps what it has compiled. Inside the sandbox that leaves nothing behind.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        around()
    except Unable:
        with Sandbox() as box:
            sys.exit(box.host().attach([sys.executable, "-m", "tests.bench", "--rounds", str(rounds)]))
    measure(rounds)


def measure(rounds: int) -> None:
    libvirt = sides.output(["virsh", "version", "--daemon"]).splitlines()[-1].split()[-1]
    print(f"{time.strftime('%Y-%m-%d %H:%M')}   Linux {platform.release()}   libvirt {libvirt}   Python ", end="")
    print(f"{platform.python_version()}   medians of {rounds} to {2 * rounds} turns, in ms\n")
    print_row(("", "macvm", "beside it", "", "ratio", "goal"))
    compare("macvm --help", "under 60 ms", 2 * rounds, (sides.help_, sides.bare_python))
    sides.prepare_create()
    compare("macvm create", "ratio <= 1", rounds, (sides.create, sides.virt_install))
    sides.output([*sides.CREATE, "--wait"])
    compare("macvm nic attach", "ratio < 2.3", 2 * rounds, (sides.attach, sides.virsh_attach))
    sides.remove_created()
    sides.define_machines(100, nics=1)
    listing = (sides.list_, sides.virsh_list, sides.bare_list)
    compare("macvm list, 100 domains", "ratio < 4 to virsh", 2 * rounds, listing)
    sides.define_machines(100, nics=2)
    compare("macvm nic list, 200 NICs", "ratio < 4.5", 2 * rounds, (sides.nic_list, sides.virsh_list))
    for row in shims.rows(2 * rounds):
        print_row((row.title, f"{row.ours:.0f}", "ip -batch", f"{row.theirs:.0f}", f"{row.ratio:.2f}", row.goal))
    for got in download.rows(rounds):
        print_row(
            (got.title, f"{got.verified:.0f}", "without a checksum", f"{got.plain:.0f}", f"{got.ratio:.2f}", got.goal)
        )
    made = seeds.row(2 * rounds)
    ratio = f"{made.both / made.overlay:.2f}"
    print_row((made.title, f"{made.both:.0f}", "the overlay alone", f"{made.overlay:.0f}", ratio, made.goal))
    print("\nwhere the time of macvm create goes, in ms")
    for name, spent in steps.breakdown(sides.CREATE, sides.remove_created, rounds):
        print(f"  {name:<22}{spent:8.1f}")
    print(f"\nleases in a /16, in ms {'':<10}", *(f"{size:>9,}" for size in pools.SIZES), "  ratios")
    for row in pools.rows(rounds):
        ratios = "  ".join(f"{ratio:.2f}" for ratio in row.ratios[1:])
        print(f"  {row.title:<31}", *(f"{spent:>9.3f}" for spent in row.spent), f"  {ratios}")


def compare(title: str, goal: str, rounds: int, compared: Sequence[Side]) -> None:
    """A line for each side but the first, which is macvm's own."""
    ours, *others = take_turns(compared, rounds)
    for side, theirs in zip(compared[1:], others, strict=True):
        ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
        print_row((title, f"{median(ours):.0f}", side.name, f"{median(theirs):.0f}", f"{ratio:.2f}", goal))
        title = goal = ""


def print_row(cells: tuple[str, str, str, str, str, str]) -> None:
    title, ours, name, theirs, ratio, goal = cells
    print(f"{title:<25}{ours:>6}   {name:<36}{theirs:>6}{ratio:>8}   {goal}".rstrip(), flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: {error.stderr}")
