"""Scores relative to a baseline of the same run, with bootstrap confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

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


def mean_interval(values: npt.ArrayLike, confidence: float = 0.95, seed: int = 0, block: int = BLOCK) -> Interval:
    """Mean of `values` [tokens, or items with block = 1] with a block-bootstrap interval."""
    exact = np.asarray(values, np.float64)
    draws = exact[_draws(len(exact), seed, block)].mean(axis=1)
    return _interval(float(exact.mean()), draws, confidence)


def ratio_interval(
    score: npt.ArrayLike,
    baseline: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
    block: int = BLOCK,
) -> Interval | None:
    """mean(score) / mean(baseline), both [tokens, or items with block = 1], resampled in pairs. None where the
    baseline scores nothing:

    a task that the uncompressed model cannot do has no recovery.
    """
    above, below = np.asarray(score, np.float64), np.asarray(baseline, np.float64)
    if below.mean() <= 0:
        return None
    draws = _draws(len(above), seed, block)
    drawn = below[draws].mean(axis=1)
    ratios = above[draws].mean(axis=1)[drawn > 0] / drawn[drawn > 0]
    return _interval(float(above.mean() / below.mean()), ratios, confidence)


def _draws(count: int, seed: int, block: int) -> Integers:
    block = min(block, count)
    starts = np.random.default_rng(seed).integers(0, count - block + 1, (RESAMPLES, -(-count // block)))
    return (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count]


def _interval(value: float, draws: Array, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)).tolist()
    return Interval(value, low, high)
