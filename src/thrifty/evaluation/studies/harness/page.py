"""A study as one HTML page that needs nothing else: findings, a plot of score over bytes, the table, the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 64, 24, 20, 48
TICKS = 5
COLOURS = ("#1b6ca8", "#c4572e", "#3b8a4f", "#7a4fa3", "#8a6d1d", "#4a4a4a")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """A cell in the plot, in pixels: its point, the ends of its interval, and what a pointer is told."""

    x: float
    y: float
    low: float
    high: float
    colour: str
    title: str


@dataclass(frozen=True)
class Drawing:
    """Ticks are (pixel, text). legend: (colour, format of the weights)."""

    marks: list[Mark]
    xs: list[tuple[float, str]]
    ys: list[tuple[float, str]]
    zero: float
    legend: list[tuple[str, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = HEIGHT - BOTTOM
    right: int = WIDTH - RIGHT


def render(document: Mapping[str, Any]) -> str:
    """The page for what `thrifty study --json` prints; names and labels are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(study=document, drawing=drawing(document["cells"]), points=points, bytes_of=bytes_of)


def drawing(cells: Sequence[Row]) -> Drawing | None:
    """Mean difference in points over megabytes of weights and one sequence's cache; None where nothing was measured."""
    rows = [row for row in cells if row["difference"] is not None and row["weights_bytes"] is not None]
    if not rows:
        return None
    sizes = [bytes_of(row) / 1e6 for row in rows]
    ends = [100 * row["difference"][end] for row in rows for end in ("low", "high")]
    low_x, high_x = _room(min(sizes), max(sizes))
    low_y, high_y = _room(min([*ends, 0.0]), max([*ends, 0.0]))

    def x(megabytes: float) -> float:
        return round(LEFT + (megabytes - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM), 1)

    names = list(dict.fromkeys(row["weights"] for row in rows))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    marks = [
        Mark(
            x(size),
            y(100 * row["difference"]["value"]),
            y(100 * row["difference"]["low"]),
            y(100 * row["difference"]["high"]),
            colours[row["weights"]],
            f"{row['label']}: {points(row['difference']['value'])} points, {size:.1f} MB",
        )
        for row, size in zip(rows, sizes, strict=True)
    ]
    return Drawing(
        marks,
        [(x(tick), f"{tick:.0f}") for tick in _ticks(low_x, high_x)],
        [(y(tick), f"{tick:+.1f}") for tick in _ticks(low_y, high_y)],
        y(0.0),
        [(colours[name], name) for name in names],
    )


def points(value: float | None) -> str:
    """A difference of scores, in points; a dash where there is none."""
    return "–" if value is None else f"{100 * value:+.1f}"


def bytes_of(row: Row) -> int:
    """Of a cell's weights and one sequence's cache, as far as they are known."""
    return int(row["weights_bytes"] or 0) + int(row["cache_bytes_of_a_sequence"] or 0)


def _room(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis, with some room beside the values."""
    room = max(high - low, 0.02 * abs(high), 0.1) * 0.08
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * place / (TICKS - 1) for place in range(TICKS)]
