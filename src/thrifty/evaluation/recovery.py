"""Scores relative to a baseline of the same run, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Integers

RESAMPLES = 1000
BLOCK = 16  # neighbouring tokens are not independent: whole blocks are drawn (Künsch 1989); items are: 1


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it with the stated confidence."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {"value": self.value, "low": self.low, "high": self.high}


def mean_interval(
    values: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
    block: int = BLOCK,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of `values` [tokens, or items with block = 1] with a block-bootstrap interval.

    clusters: [items], what each shares with others (such as its context): whole clusters are drawn instead of blocks
    where any has several.
    """
    exact = np.asarray(values, np.float64)
    if _shared(clusters):
        drawn = _times_drawn(clusters, seed)
        means = drawn @ exact / drawn.sum(axis=1)
    else:
        means = exact[_draws(len(exact), seed, block)].mean(axis=1)
    return _interval(float(exact.mean()), means, confidence)


def ratio_interval(
    score: npt.ArrayLike,
    baseline: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
    block: int = BLOCK,
    clusters: Sequence[Hashable] | None = None,
) -> Interval | None:
    """mean(score) / mean(baseline), both [tokens, or items with block = 1], resampled in pairs. None where the
    baseline scores nothing: a task that the uncompressed model cannot do has no recovery. clusters: see
    `mean_interval`.
    """
    above, below = np.asarray(score, np.float64), np.asarray(baseline, np.float64)
    if below.mean() <= 0:
        return None
    if _shared(clusters):
        drawn = _times_drawn(clusters, seed)
        over, under = drawn @ above, drawn @ below
    else:
        draws = _draws(len(above), seed, block)
        over, under = above[draws].mean(axis=1), below[draws].mean(axis=1)
    ratios = over[under > 0] / under[under > 0]
    return _interval(float(above.mean() / below.mean()), ratios, confidence)


def _shared(clusters: Sequence[Hashable] | None) -> TypeGuard[Sequence[Hashable]]:
    """Whether any cluster has several items."""
    return clusters is not None and len(set(clusters)) < len(clusters)


def _times_drawn(clusters: Sequence[Hashable], seed: int) -> Array:
    """[resamples, items]: how often each item is in a draw of as many clusters as there are."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    draws = np.random.default_rng(seed).integers(0, len(numbers), (RESAMPLES, len(numbers)))
    times = np.stack([np.bincount(draw, minlength=len(numbers)) for draw in draws]).astype(np.float64)
    return times[:, [numbers[cluster] for cluster in clusters]]


def _draws(count: int, seed: int, block: int) -> Integers:
    block = min(block, count)
    starts = np.random.default_rng(seed).integers(0, count - block + 1, (RESAMPLES, -(-count // block)))
    return (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count]


def _interval(value: float, draws: Array, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)).tolist()
    return Interval(value, low, high)
