"""What `tests.bench.labs` found, as lines of text, and as a page with a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench.labs import Report
from tests.bench.turns import line

_DOCS = Path(__file__).parents[2] / "docs"
_PICTURE = "bench-labs.svg"

_PAGE = """\
# What labs cost

{machines} VMs with disks, seeds, leases and a shim, brought up by `macvm lab up` and taken down by `macvm lab down`, beside what
else does it: virt-install and virsh one machine after another, and libvirt's own API with the number of threads that suits it
best, which is given the XMLs, disks and seeds and has nothing to do but to define and to start. A guest is its firmware and a
boot sector that halts. All is measured in one sandbox, in turns; times are medians, in ms, and ratios are medians of the turns'
ratios.

![the same as a picture]({picture})

```text
{lines}
```

`python -m tests.bench labs --write` measures it again, and writes this page.
"""


def lines(report: Report) -> Iterator[str]:
    yield line(("", "macvm", "beside it", "", "ratio", "goal"))
    for row in report.rows:
        numbers = f"{row.ours:.0f}", row.name, f"{row.theirs:.0f}", f"{row.ratio:.2f}"
        yield line((row.title, *numbers, row.goal))
    yield ""
    yield f"{'VMs of a lab, not started':<32}" + "".join(f"{size.count:>9}" for size in report.sizes)
    yield f"  {'each, with --jobs 1, in ms':<30}" + "".join(f"{size.each:>9.0f}" for size in report.sizes)
    yield f"  {'the whole command, in ms':<30}" + "".join(f"{size.command:>9.0f}" for size in report.sizes)
    yield f"  {'most memory, in MB':<30}" + "".join(f"{size.peak / 1024:>9.1f}" for size in report.sizes)
    small, large = report.sizes[-2:]
    yield f"  the dearest VM is {report.flat:.2f} times the cheapest; goal <= 1.3"
    yield f"  from {small.count} to {large.count} a VM adds {report.growth:.0f} KB; goal < 100, and < 150 MB in all"
    yield ""
    yield f"where the time of macvm lab up goes, {report.machines} VMs, in ms"
    yield from _steps(report.spent)
    yield ""
    yield "and of each VM, in its worker"
    yield from _steps({**report.spent_each, "in all": sum(report.spent_each.values())})


def _steps(spent: dict[str, float]) -> Iterator[str]:
    for step, took in spent.items():
        yield f"  {step:<22}{took:8.1f}"


def write(report: Report, heading: str) -> list[Path]:
    """The page and its picture under docs/."""
    from tests.bench.drawing import draw

    page, picture = _DOCS / "bench-labs.md", _DOCS / _PICTURE
    text = "\n".join([heading, "", *lines(report)])
    page.write_text(_PAGE.format(machines=report.machines, picture=_PICTURE, lines=text))
    picture.write_text(draw(report, heading))
    return [page, picture]
