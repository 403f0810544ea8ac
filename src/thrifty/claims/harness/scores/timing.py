"""Timings in alternating rounds, each side's rates paired by round; void where others disturbed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.measuring.noise import LIMIT, listening


def rounds(sides: Mapping[str, Callable[[], float]], count: int) -> dict[str, Scores]:
    """`count` rounds (2 or more), in each of which every side is run once and returns its figure, such as a rate or
    seconds. The order turns from round to round, so that no side is always first.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    most = 0.0
    names = list(sides)
    for number in range(max(2, count)):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with listening() as noise:
                values[name].append(sides[name]())
            most = max(most, noise.others)
    void = f"others took {most:.0%} of the machine" if most > LIMIT else ""
    clusters = tuple(f"round {number}" for number in range(max(2, count)))
    return {name: Scores(tuple(own), clusters, bounded=False, void=void) for name, own in values.items()}
