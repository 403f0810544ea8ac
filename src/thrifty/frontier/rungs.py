"""Successive halving: what each rung measures, and who goes on (Jamieson and Talwalkar 2016; non-dominated ranks as in
NSGA-II, Deb et al. 2002).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from thrifty.evaluation import quality
from thrifty.frontier.measurement import Measurement, dominates

FIRST_PREFIX, FIRST_SCORED = 1024, 32
FEW = 2  # questions of every task that the second rung asks


@dataclass(frozen=True)
class Rung:
    """prefix, timed, scored: tokens, see `evaluation.quality`. items: questions of every task that are asked, None for
    all. seats: how many candidates of so many come in.
    """

    index: int
    prefix: int
    timed: int
    scored: int
    items: int | None
    seats: Callable[[int], int]

    @property
    def tasks(self) -> bool:
        """Whether tasks are run."""
        return self.items != 0

    @property
    def key(self) -> str:
        """Equal for rungs that measure the same."""
        return f"{self.prefix}+{self.timed}+{self.scored}"


def ladder(
    prefix: int, scored: int, *, first: int = FIRST_PREFIX, little: int = FIRST_SCORED, few: int = FEW
) -> list[Rung]:
    """The rungs of a search whose last measurement compresses `prefix` tokens and scores `scored`. first, little: the
    same of the rungs before. few: questions of every task that the second one asks.
    """
    first, little = min(prefix, first), min(scored, little)
    return [
        Rung(0, first, 0, little, 0, lambda count: count),
        Rung(1, first, 0, little, few, _second_seats),
        last_rung(prefix, scored),
    ]


def last_rung(prefix: int, scored: int) -> Rung:
    """The measurement that the choice rests on."""
    return Rung(2, prefix, quality.TIMED, scored, None, _last_seats)


def _second_seats(count: int) -> int:
    return min(count, max(4, min(12, math.ceil(count / 3))))


def _last_seats(count: int) -> int:
    return min(count, 2)


def survivors(rows: Sequence[Measurement], seats: int, seed: int) -> list[Measurement]:
    """The rows that go on, the most promising first. Where tasks were asked, by what was recovered of them, then by
    divergence. Before that the least divergence of each way to compress, since divergence on prose does not tell what a
    way does to a task; then by turns the least divergence, which may win, and the best by non-dominated rank in bytes,
    time and divergence, which lose little for what they save. The seed decides between equals; of rows that agree in
    everything that was measured and predicted one goes on, since it stands for the others.
    """
    draw = random.Random(seed)
    rows = sorted(rows, key=lambda row: row.candidate.key)
    lots = {row.candidate.key: draw.random() for row in rows}
    by_divergence = sorted(rows, key=lambda row: (row.kl, row.need.peak, lots[row.candidate.key]))
    if all(row.tasks for row in rows):
        ranking = sorted(by_divergence, key=lambda row: -row.recovered)
    else:
        ranks = dict(zip((row.candidate.key for row in rows), _ranks(rows), strict=True))
        by_rank = sorted(rows, key=lambda row: (ranks[row.candidate.key], row.kl, lots[row.candidate.key]))
        ways: dict[tuple[str, ...], Measurement] = {}
        for row in by_divergence:
            ways.setdefault(way(row), row)
        ranking = [*ways.values(), *chain.from_iterable(zip(by_divergence, by_rank, strict=True))]
    chosen: dict[tuple[float, ...], Measurement] = {}
    for row in ranking:
        if len(chosen) < seats:
            chosen.setdefault(objectives(row), row)
    return list(chosen.values())


def way(row: Measurement) -> tuple[str, ...]:
    """How a row compresses: the names of its techniques."""
    recipe = row.candidate.recipe
    return tuple(str(table["technique"]) for table in [*recipe.weights, *recipe.cache])


def objectives(row: Measurement) -> tuple[float, float, float]:
    """What is to be small: bytes, seconds of a step (by the roofline, which does not flutter), divergence."""
    return (row.need.peak, row.predicted or 0.0, row.kl)


def _ranks(rows: Sequence[Measurement]) -> list[int]:
    """0 for rows that nobody beats in all objectives, 1 for those that only they beat, and so on."""
    points = [objectives(row) for row in rows]
    left, ranks, rank = set(range(len(rows))), [0] * len(rows), 0
    while left:
        front = {row for row in left if not any(dominates(points[other], points[row]) for other in left)}
        for row in front:
            ranks[row] = rank
        left -= front
        rank += 1
    return ranks
