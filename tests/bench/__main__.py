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
from tests.bench import download, hearing, lab_report, labs, pools, seeds, shims, sides, steps
from tests.bench.turns import Side, line, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What macvm's commands cost, as ratios.")
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="turns of create; the others take twice that"
    )
    parser.add_argument("only", nargs="?", choices=["labs"], help="this alone, with its full number of turns")
    parser.add_argument("--write", action="store_true", help="write docs/bench-labs.md and its picture anew")
    parser.add_argument(
        "--machines", type=int, default=labs.MACHINES, metavar="N", help="of a lab; few, to see that all of it works"
    )
    given = parser.parse_args()
    # As at a user's: the interpreter keeps what it has compiled. Inside the sandbox that leaves nothing behind.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        around()
    except Unable:
        with Sandbox() as box:
            sys.exit(box.host().attach([sys.executable, "-m", "tests.bench", *sys.argv[1:]]))
    if not given.only:
        measure(given.rounds)
        print()
    measure_labs(given.rounds if given.only else given.rounds // 5 or 1, given.machines, write=given.write)


def heading(rounds: int) -> str:
    libvirt = sides.output(["virsh", "version", "--daemon"]).splitlines()[-1].split()[-1]
    machine = f"{time.strftime('%Y-%m-%d %H:%M')}   Linux {platform.release()}   libvirt {libvirt}"
    return f"{machine}   Python {platform.python_version()}   medians of {rounds} to {2 * rounds} turns, in ms"


def measure_labs(rounds: int, machines: int, *, write: bool) -> None:
    sides.define_machines(0, nics=0)
    found = labs.measure(rounds, machines)
    print(heading(rounds), *lab_report.lines(found), sep="\n")
    if write:
        print("", *lab_report.write(found, heading(rounds)), sep="\n")


def measure(rounds: int) -> None:
    print(f"{heading(rounds)}\n")
    print_row(("", "macvm", "beside it", "", "ratio", "goal"))
    compare("macvm --help", "under 60 ms", 2 * rounds, (sides.help_, sides.bare_python))
    sides.prepare_create()
    compare("macvm create", "ratio <= 1", rounds, (sides.create, sides.virt_install))
    sides.output([*sides.CREATE, "--wait"])
    attaching = (sides.attach, sides.virsh_attach, sides.bare_attach)
    compare("macvm nic attach", "ratio < 2.3 to virsh", 2 * rounds, attaching)
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
    heard = hearing.row(max(1, rounds // 2))
    print_row((heard.title, f"{heard.usual:.0f}", "the worst", f"{heard.worst:.0f}", "", heard.goal))
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
    print(line(cells), flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: {error.stderr}")
