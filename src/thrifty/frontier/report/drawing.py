"""The static plot's geometry: pixels of an SVG that is read without JavaScript and printed."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.frontier.report.plot import SMALLEST, Kind, Plot

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 410, 62, 18, 44, 52


@dataclass(frozen=True)
class Mark:
    """A recipe's circle. index: its row."""

    index: int
    kind: Kind
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Drawing:
    """In pixels. xs, ys: ticks and what is written there. line: an SVG path."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    title: str
    xs: list[tuple[float, str]]
    ys: list[tuple[float, str]]
    budget: float
    floor: float
    lane: bool
    line: str
    marks: list[Mark]


def drawing(plot: Plot) -> Drawing:
    """The default view, without the rows that lie aside."""
    view = plot.views[plot.default]

    def across(value: float) -> float:
        return round(LEFT + plot.x.fraction(value) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(HEIGHT - BOTTOM - view.axis.fraction(value) * (HEIGHT - TOP - BOTTOM), 1)

    shown = [index for index, away in enumerate(plot.aside) if not away]
    last = {"baseline": 1, "winner": 2}
    marks = [
        Mark(
            index,
            plot.kinds[index],
            across(plot.bytes[index]),
            down(view.lane if (value := view.values[index]) is None else value),
            SMALLEST if view.values[index] is None else plot.radii[index],
        )
        for index in sorted(shown, key=lambda index: last.get(plot.kinds[index], 0))
    ]
    return Drawing(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        title=view.title,
        xs=[(across(value), text) for value, text in plot.x.ticks],
        ys=[(down(value), text) for value, text in view.axis.ticks],
        budget=across(plot.budget),
        floor=down(view.floor),
        lane=any(view.values[index] is None for index in shown),
        line=" ".join(f"{'ML'[position > 0]}{across(x)},{down(y)}" for position, (x, y) in enumerate(view.line)),
        marks=marks,
    )
