"""Where the frontier's points lie: axes, ticks and the best line, the same for the static and the interactive plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from thrifty.frontier.report.document import Candidate, Document, Interval
from thrifty.storage.budget import format_size

Kind = Literal["winner", "baseline", "frontier", "other", "predicted", "off"]
LANE = 0.15  # share of the height below the axis for rows without a value
LARGEST, SMALLEST = 13.0, 4.0  # radius in pixels; what has no value is drawn with the smallest


@dataclass(frozen=True)
class Axis:
    """low, high: its ends. ticks: where, and what is written there."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    logarithmic: bool = False

    def fraction(self, value: float) -> float:
        """Where `value` lies, 0 at low and 1 at high; what is outside is put at the nearer end."""
        low, high, at = self.low, self.high, min(max(value, min(self.low, self.high)), max(self.low, self.high))
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return (at - low) / (high - low)


@dataclass(frozen=True)
class View:
    """One choice of the vertical axis, drawn so that upwards is better.

    values: by row, None for a row that has none and lies in the lane. intervals: 95 %, by row. line: the best value
    by bytes, as steps. lane: the height of rows without a value; floor: where the lane ends.
    """

    title: str
    axis: Axis
    values: list[float | None]
    intervals: list[tuple[float, float] | None]
    lane: float
    floor: float
    line: list[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """Two views over one horizontal axis in bytes; wide: the same axis with room for every row.

    kinds, radii (pixels; the area is the decode speed): by row. aside: by row, whether it is off the grid or so
    large that only the wide axis holds it. default: the view to begin with.
    """

    x: Axis
    wide: Axis
    budget: int
    bytes: list[int]
    kinds: list[Kind]
    radii: list[float]
    aside: list[bool]
    views: dict[str, View]
    default: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def plot(document: Document) -> Plot | None:
    """None where there is nothing to draw."""
    rows = document.candidates
    if not rows:
        return None
    budget = document.budget.memory_bytes
    needs = [row.need_peak_bytes for row in rows]
    recovery, kl = recoveries(document), [row.kl for row in rows]
    scored = sum(value is not None for value in recovery)
    views = {"recovery": _recovery_view(rows, needs, recovery)} if scored else {}
    views["kl"] = _kl_view(rows, needs, kl)
    rates = comparable_rates(document)
    fastest = max(rates) or 1.0
    largest = max(budget, document.baseline.need_peak_bytes if document.baseline else 0) * 1.05
    aside = [not row.servable or row.need_peak_bytes > largest for row in rows]
    return Plot(
        x=_bytes_axis([budget, *(need for need, away in zip(needs, aside, strict=True) if not away)]),
        wide=_bytes_axis([*needs, budget]),
        budget=budget,
        bytes=needs,
        kinds=[_kind(document, index) for index in range(len(rows))],
        radii=[round(max(SMALLEST, LARGEST * math.sqrt(rate / fastest)), 2) for rate in rates],
        aside=aside,
        views=views,
        default="recovery" if 2 * scored >= sum(row.measured for row in rows) else "kl",
    )


def comparable_rates(document: Document) -> list[float]:
    """Tokens a second by row, of one context: predicted where all rows are, since short measurements ran after fewer
    tokens than long ones; else as measured.
    """
    predicted = [row.predicted_decode_tok_s for row in document.candidates]
    if all(rate is not None for rate in predicted):
        return [rate or 0.0 for rate in predicted]
    return [row.decode_rate or 0.0 for row in document.candidates]


def recoveries(document: Document) -> list[float | None]:
    """Task recovery by row; the baseline's own is 1 where any was measured."""
    known = any(row.recovery is not None for row in document.candidates)
    return [
        row.recovery.value
        if row.recovery is not None
        else (1.0 if row is document.baseline and known and row.measured else None)
        for row in document.candidates
    ]


def _kind(document: Document, index: int) -> Kind:
    row = document.candidates[index]
    if index == document.winner:
        return "winner"
    if not row.servable:
        return "off"
    if row is document.baseline:
        return "baseline"
    if not row.measured:
        return "predicted"
    return "frontier" if row.on_frontier else "other"


def _recovery_view(rows: Sequence[Candidate], needs: Sequence[int], values: list[float | None]) -> View:
    known = [value for value in values if value is not None]
    low, high = min(known), max(1.0, *known)
    room = max(high - low, 0.02) * 0.15
    floor, top = low - room, high + room
    low = floor - (top - floor) * (LANE if None in values else 0.0)
    lane = (low + floor) / 2
    ticks = [(tick, f"{tick:.0%}" if _step(floor, top, 5) >= 0.01 else f"{tick:.1%}") for tick in _ticks(floor, top, 5)]
    return View(
        title="recovery",
        axis=Axis(low, top, _with_lane(ticks, lane, values)),
        values=values,
        intervals=[None if row.recovery is None else (row.recovery.low, row.recovery.high) for row in rows],
        lane=lane,
        floor=floor,
        line=_steps(rows, needs, values, better=lambda value, other: value > other),
    )


def _kl_view(rows: Sequence[Candidate], needs: Sequence[int], values: list[float | None]) -> View:
    positive = [value for value in values if value is not None and value > 1e-4] or [0.1]
    least = 10 ** math.floor(math.log10(min(positive)) - 0.05)
    floor = max(positive) * 1.5
    clipped = [None if value is None else max(value, least) for value in values]
    low = floor * (floor / least) ** (LANE if None in values else 0.0)
    lane = math.sqrt(low * floor)
    ticks = [(least, f"≤ {least:g}"), *((tick, f"{tick:g}") for tick in _decades(least * 1.1, floor))]
    return View(
        title="KL divergence, nats",
        axis=Axis(low, least / 1.3, _with_lane(ticks, lane, values), logarithmic=True),
        values=clipped,
        intervals=[None if row.quality is None else _between(row.quality.kl, least) for row in rows],
        lane=lane,
        floor=floor,
        line=_steps(rows, needs, clipped, better=lambda value, other: value < other),
    )


def _with_lane(ticks: list[tuple[float, str]], lane: float, values: Sequence[float | None]) -> list[tuple[float, str]]:
    return [*ticks, (lane, "no value")] if None in values else ticks


def _between(interval: Interval, least: float) -> tuple[float, float]:
    return max(interval.low, least), max(interval.high, least)


def _steps(
    rows: Sequence[Candidate],
    needs: Sequence[int],
    values: Sequence[float | None],
    better: Callable[[float, float], bool],
) -> list[tuple[float, float]]:
    line: list[tuple[float, float]] = []
    points = [
        (need, value)
        for row, need, value in zip(rows, needs, values, strict=True)
        if value is not None and row.servable and row.measured
    ]
    for need, value in sorted(points):
        if not line:
            line.append((need, value))
        elif better(value, line[-1][1]):
            line += [(need, line[-1][1]), (need, value)]
    return line


def _bytes_axis(needs: Iterable[int]) -> Axis:
    values = list(needs)
    room = max(max(values) - min(values), max(values) * 0.02) * 0.08
    low, high = max(0.0, min(values) - room), max(values) + room
    return Axis(low, high, [(tick, format_size(tick)) for tick in _ticks(low, high, 5)])


def _step(low: float, high: float, count: int) -> float:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(step for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


def _ticks(low: float, high: float, count: int) -> list[float]:
    step = _step(low, high, count)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    factors = (1, 3) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high]
