"""Successive halving: what each rung measures, and who goes on to the next (Jamieson and Talwalkar 2016; ranks and
crowding as in NSGA-II, Deb et al. 2002).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thrifty.evaluation import quality
from thrifty.frontier.measurement import Measurement

FIRST_PREFIX, FIRST_SCORED = 1024, 64
SECOND_PREFIX, SECOND_SCORED = 2048, 128


@dataclass(frozen=True)
class Rung:
    """prefix, timed, scored: tokens, see `evaluation.quality`. tasks: whether tasks are run. seats: how many candidates
    of so many come in.
    """

    index: int
    prefix: int
    timed: int
    scored: int
    tasks: bool
    seats: Callable[[int], int]

    @property
    def key(self) -> str:
        """Equal for rungs that measure the same."""
        return f"{self.prefix}+{self.timed}+{self.scored}"


def ladder(prefix: int, scored: int) -> list[Rung]:
    """The rungs of a search whose last measurement compresses `prefix` tokens and scores `scored`."""
    return [
        Rung(0, min(prefix, FIRST_PREFIX), 0, min(scored, FIRST_SCORED), False, lambda count: count),
        Rung(1, min(prefix, SECOND_PREFIX), 0, min(scored, SECOND_SCORED), False, _second_seats),
        last_rung(prefix, scored),
    ]


def last_rung(prefix: int, scored: int) -> Rung:
    """The measurement that the choice rests on."""
    return Rung(2, prefix, quality.TIMED, scored, True, _last_seats)


def _second_seats(count: int) -> int:
    return min(count, max(4, min(8, math.ceil(count / 10))))


def _last_seats(count: int) -> int:
    return min(count, max(2, min(3, round(count / 25))))


def survivors(rows: Sequence[Measurement], seats: int, seed: int) -> list[Measurement]:
    """The rows that go on, the most promising first: by turns the least divergence, which may win, and the best by
    non-dominated rank in bytes, time and divergence (crowded ones last), which show what less would cost. The seed
    decides between equals; of rows that agree in all three one goes on, since it stands for the others.
    """
    draw = random.Random(seed)
    rows = sorted(rows, key=lambda row: row.candidate.key)
    lots = {row.candidate.key: draw.random() for row in rows}
    by_divergence = sorted(rows, key=lambda row: (row.kl, row.need.peak, lots[row.candidate.key]))
    ranks, crowding = _ranks(rows), _crowding(rows)
    places = {row.candidate.key: (ranks[i], -crowding[i], lots[row.candidate.key]) for i, row in enumerate(rows)}
    by_rank = sorted(rows, key=lambda row: places[row.candidate.key])
    chosen: dict[tuple[float, ...], Measurement] = {}
    for pair in zip(by_divergence, by_rank, strict=True):
        for row in pair:
            if len(chosen) < seats:
                chosen.setdefault(objectives(row), row)
    return list(chosen.values())


def objectives(row: Measurement) -> tuple[float, float, float]:
    """What is to be small: bytes, seconds of a step (by the roofline, which does not flutter), divergence."""
    return (row.need.peak, row.predicted or 0.0, row.kl)


def _ranks(rows: Sequence[Measurement]) -> list[int]:
    """0 for rows that nobody beats in all objectives, 1 for those that only they beat, and so on."""
    points = [objectives(row) for row in rows]
    left, ranks, rank = set(range(len(rows))), [0] * len(rows), 0
    while left:
        front = {one for one in left if not any(_beats(points[other], points[one]) for other in left)}
        for one in front:
            ranks[one] = rank
        left -= front
        rank += 1
    return ranks


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _crowding(rows: Sequence[Measurement]) -> list[float]:
    """How far a row's neighbours lie apart, summed over the objectives; the ends of each are far from anyone."""
    found = [0.0] * len(rows)
    points = [objectives(row) for row in rows]
    for axis in range(3):
        order = sorted(range(len(rows)), key=lambda one: points[one][axis])
        width = points[order[-1]][axis] - points[order[0]][axis] if order else 0.0
        if width <= 0:
            continue
        found[order[0]] = found[order[-1]] = math.inf
        for before, one, after in zip(order, order[1:], order[2:], strict=False):
            found[one] += (points[after][axis] - points[before][axis]) / width
    return found
