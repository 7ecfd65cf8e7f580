"""A picture of what labs cost, as SVG: pairs of bars, labs by size, and what each thread did when."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.labs import Box, Report

_WIDTH, _LEFT, _ROW = 960, 250, 22
_BAR = _WIDTH - _LEFT - 120
_OURS, _THEIRS = "#0b7285", "#adb5bd"
_COLOURS = (
    "#4c6ef5",
    "#f08c00",
    "#2f9e44",
    "#e03131",
    "#9c36b5",
    "#1098ad",
    "#f783ac",
    "#74b816",
    "#868e96",
    "#fab005",
)
_REST = "#dee2e6"


class Drawing:
    """Shapes, from the top down; `y` is where the next ones go."""

    def __init__(self) -> None:
        self.y = 30
        self._shapes: list[str] = []

    def text(self, x: float, text: str, *, weight: str = "normal", anchor: str = "start") -> None:
        self._shapes.append(
            f'<text x="{x:.1f}" y="{self.y}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def bar(self, x: float, width: float, colour: str, title: str) -> None:
        self._shapes.append(
            f'<rect x="{x:.1f}" y="{self.y - 12}" width="{max(width, 0.5):.1f}" height="15" fill="{colour}">'
            f"<title>{escape(title)}</title></rect>"
        )

    def heading(self, text: str) -> None:
        self.text(20, text, weight="bold")
        self.y += _ROW + 4

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {self.y}" width="{_WIDTH}" height="{self.y}"'
        page = f'<rect width="{_WIDTH}" height="{self.y}" fill="white"/>'
        return "\n".join([f'{head} font-family="sans-serif" font-size="13">', page, *self._shapes, "</svg>", ""])


def draw(report: Report, machine: str) -> str:
    drawing = Drawing()
    drawing.text(20, machine)
    drawing.y += _ROW + 10
    _pairs(drawing, report)
    _sizes(drawing, report)
    _timeline(drawing, report)
    return drawing.svg()


def _pairs(drawing: Drawing, report: Report) -> None:
    """Each pair has a scale of its own."""
    drawing.heading("macvm, and what is beside it")
    for row in report.rows:
        longest = max(row.ours, row.theirs)
        for name, took, colour in ((row.title, row.ours, _OURS), (row.name, row.theirs, _THEIRS)):
            drawing.text(20, name)
            drawing.bar(_LEFT, _BAR * took / longest, colour, name)
            drawing.text(_LEFT + _BAR * took / longest + 6, f"{took:.0f} ms")
            drawing.y += _ROW - 3
        drawing.y += 8
    drawing.y += 14


def _sizes(drawing: Drawing, report: Report) -> None:
    drawing.heading("a VM of a lab, not started, one after the other")
    longest = max(size.each for size in report.sizes)
    for size in report.sizes:
        drawing.text(20, f"of {size.count}")
        drawing.bar(_LEFT, _BAR * size.each / longest, _OURS, f"{size.count} VMs")
        drawing.text(_LEFT + _BAR * size.each / longest + 6, f"{size.each:.0f} ms")
        drawing.y += _ROW - 3
    drawing.y += 22


def _timeline(drawing: Drawing, report: Report) -> None:
    """The command's own thread above; a row for each worker."""
    boxes = report.timeline
    whole = max(box.end for box in boxes)
    drawing.heading(f"one macvm lab up of {report.machines} VMs: {whole:.0f} ms")
    scale = (_WIDTH - 140) / whole
    colours = dict(zip(_by_time(boxes), _COLOURS, strict=False))
    for lane in sorted({box.lane for box in boxes}):
        drawing.text(20, f"worker {lane}" if lane else "the command")
        for box in boxes:
            # While machines are made the command waits for its workers.
            if box.lane == lane and box.step != "machines":
                title = f"{box.step}: {box.end - box.begin:.0f} ms"
                drawing.bar(120 + box.begin * scale, (box.end - box.begin) * scale, colours.get(box.step, _REST), title)
        drawing.y += _ROW - 3
    drawing.y += 10
    legend = [*colours.items(), ("the rest", _REST)]
    for place, (step, colour) in enumerate(legend):
        drawing.bar(20 + place % 6 * 155, 14, colour, step)
        drawing.text(40 + place % 6 * 155, step)
        drawing.y += _ROW if place % 6 == 5 or place == len(legend) - 1 else 0


def _by_time(boxes: Sequence[Box]) -> list[str]:
    """The steps that take most, first."""
    spent: dict[str, float] = {}
    for box in boxes:
        if box.step != "machines":
            spent[box.step] = spent.get(box.step, 0.0) + box.end - box.begin
    return sorted(spent, key=lambda step: (-spent[step], step))
