"""Intervals of scores that share contexts: a bootstrap over whole contexts, never narrower than Student's interval.

Items of one context (passage, document, template) are no independent evidence, so contexts are drawn, not items
(Davison and Hinkley 1997, section 3.8). Percentiles of few contexts are too narrow: the interval is widened to the mean
± t times its bootstrap standard error. Where scores lie between 0 and 1 half a pair is added to both sides (Agresti and
Min 2005), so that a hundred equal answers do not prove that no other could differ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from thrifty.arrays import Array
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.recovery import Interval

RESAMPLES = 2000
SEED = 0  # of the resampling, so that one set of scores has one interval
TAIL = 0.025  # on either side: 95 %
NORMAL = 1.959964  # the normal distribution's quantile at 1 − TAIL
FEW = (12.706205, 4.302653, 3.182446)  # Student's, of 1, 2 and 3 degrees of freedom


@dataclass(frozen=True)
class Scores:
    """What came of the items of one side.

    values: [items] one score an item (a token's loss, an answer's share of what is right). clusters: [items] the name
    of the context that the item shares with others; one of its own where it shares none. higher: whether more is
    better; False for losses. bounded: whether scores lie between 0 and 1. void: why a timing decides nothing ("" for
    what is no timing).
    """

    values: Sequence[float]
    clusters: Sequence[str]
    higher: bool = True
    bounded: bool = True
    void: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.clusters) or not len(self.values):
            raise MeasurementError(
                f"{len(self.values)} scores of {len(self.clusters)} clusters: every score needs one, and there must be "
                "some"
            )
        wrong = next((value for value in self.values if not math.isfinite(value)), None)
        if wrong is not None:
            raise MeasurementError(f"a score is {wrong}: only numbers can be compared; look at that item's run")
        if self.bounded and (min(self.values) < 0 or max(self.values) > 1):
            raise MeasurementError("a bounded score lies outside 0 to 1: say bounded=False where it may")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> float:
        """Mean over items."""
        return math.fsum(self.values) / len(self.values)

    @property
    def contexts(self) -> int:
        """Clusters."""
        return len(set(self.clusters))


def mean_interval(scores: Scores) -> Interval:
    """Mean score with its interval. Raises MeasurementError where all items share one context."""
    drawn = _Drawn(scores.clusters)
    return drawn.interval(scores.mean, drawn.means(scores.values), _floor(scores, 1.0))


def paired_difference(ours: Scores, theirs: Scores) -> Interval:
    """mean(ours) − mean(theirs), the same items on both sides, contexts drawn together.

    Raises MeasurementError where the sides have other items or one context alone.
    """
    _paired(ours, theirs)
    differences = [one - other for one, other in zip(ours.values, theirs.values, strict=True)]
    drawn = _Drawn(ours.clusters)
    return drawn.interval(math.fsum(differences) / len(differences), drawn.means(differences), _floor(ours, 1.0))


def paired_ratio(ours: Scores, baseline: Scores) -> Interval:
    """mean(ours) / mean(baseline), the same items on both sides, contexts drawn together.

    Raises MeasurementError where the baseline scores nothing: what cannot be done uncompressed has no share that is
    kept.
    """
    _paired(ours, baseline)
    if baseline.mean <= 0:
        raise MeasurementError(
            f"the baseline scores {baseline.mean:g} in {len(baseline)} items, so no share of it can be kept; use a "
            "model or a task that it can do"
        )
    drawn = _Drawn(ours.clusters)
    above, below = drawn.means(ours.values), drawn.means(baseline.values)
    ratios = above[below > 0] / below[below > 0]
    return drawn.interval(ours.mean / baseline.mean, ratios, _floor(ours, 1.0) / baseline.mean)


def advantage(ours: Scores, theirs: Scores) -> Interval:
    """How much better ours is, in the scores' own unit: positive is better, of losses too. Raises as above."""
    if ours.higher != theirs.higher:
        raise MeasurementError("one side's scores are losses and the other's are not: they cannot be compared")
    return paired_difference(ours, theirs) if ours.higher else paired_difference(theirs, ours)


def power(interval: Interval) -> float:
    """The difference that this many items can tell from none: half the interval's width, in its unit."""
    return (interval.high - interval.low) / 2


def student(freedom: int) -> float:
    """Student's t at 97.5 % of so many degrees of freedom, to 1 %: the expansion in 1 / freedom (Abramowitz and Stegun
    26.7.5), exact values where it fails.
    """
    if freedom < 1:
        raise MeasurementError("all items share one context, which tells nothing of others; use 2 contexts or more")
    if freedom <= len(FEW):
        return FEW[freedom - 1]
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


class _Drawn:
    """Resamples of contexts: how often each is in each, [resamples, contexts]."""

    def __init__(self, clusters: Sequence[str]) -> None:
        places: dict[str, int] = {}
        self._of = np.array([places.setdefault(name, len(places)) for name in clusters])
        self.contexts = len(places)
        self._t = student(self.contexts - 1)
        self._counts = _counts(self.contexts)
        self._items = self._counts @ np.bincount(self._of, minlength=self.contexts)

    def means(self, values: Sequence[float]) -> Array:
        """[resamples]: the mean over the items of the contexts drawn."""
        sums = np.bincount(self._of, weights=np.asarray(values, np.float64), minlength=self.contexts)
        means: Array = self._counts @ sums / self._items
        return means

    def interval(self, value: float, draws: Array, floor: float) -> Interval:
        """Percentiles of the draws, or value ± t standard errors where that is wider. floor: a standard error that is
        added (in squares) for what bounded scores may hide.
        """
        error = math.hypot(float(draws.std()) * math.sqrt(self.contexts / (self.contexts - 1)), floor)
        low, high = np.quantile(draws, (TAIL, 1 - TAIL)).tolist()
        half = self._t * error
        return Interval(value, min(low, value - half), max(high, value + half))


@functools.lru_cache(maxsize=16)
def _counts(contexts: int) -> Array:
    """How often each of so many contexts is in each resample, [RESAMPLES, contexts] fp64; not to be written to."""
    drawn = np.random.default_rng(SEED).integers(0, contexts, (RESAMPLES, contexts))
    places = drawn + contexts * np.arange(RESAMPLES)[:, None]
    counts: Array = np.bincount(places.ravel(), minlength=RESAMPLES * contexts).reshape(RESAMPLES, contexts) * 1.0
    counts.setflags(write=False)
    return counts


def _floor(scores: Scores, unit: float) -> float:
    """The standard error of one more pair, half for either side."""
    return unit / (len(scores) + 2) if scores.bounded else 0.0


def _paired(ours: Scores, theirs: Scores) -> None:
    if list(ours.clusters) != list(theirs.clusters):
        raise MeasurementError(
            f"{len(ours)} and {len(theirs)} scores are not of the same items in the same order: nothing can be paired"
        )
