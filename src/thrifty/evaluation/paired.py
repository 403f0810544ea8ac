"""Two runs on the same items: differences and ratios of their scores, with 95 % intervals that hold for few items too.

Items that share a context are no independent draws, so whole contexts (clusters) are resampled, each with all its items
(Davison and Hinkley 1997, §3.8). Both runs keep an item or lose it together, so what it is worth to both drops out.
Percentiles of few clusters are too narrow: an interval is never narrower than Student's. Where scores lie between 0 and
1 half a pair is added to both sides (Agresti and Min 2005), so that a hundred equal answers do not prove that no other
could differ. The pair is one of clusters: ten answers about each of four contexts say of a fifth what four answers say.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.recovery import Interval

if TYPE_CHECKING:
    from thrifty.evaluation.tasks.task import Item

Doubles = npt.NDArray[np.float64]

RESAMPLES = 2000
TAIL = 0.025  # on either side
NORMAL = 1.959964  # the normal distribution's quantile at 1 − TAIL
FEW = (12.706205, 4.302653, 3.182446)  # Student's, of 1, 2 and 3 degrees of freedom


@dataclass(frozen=True)
class Clustered:
    """values: one an item. clusters: of each item what it shares with others, such as the number of its context.
    bounded: whether values are scores between 0 and 1, or differences of such.
    """

    values: tuple[float, ...]
    clusters: tuple[Hashable, ...]
    bounded: bool = True

    def __post_init__(self) -> None:
        if len(self.values) != len(self.clusters) or not self.values:
            raise MeasurementError(
                f"{len(self.values)} scores in {len(self.clusters)} clusters; every score needs one, and there must be "
                "some"
            )

    @property
    def count(self) -> int:
        """Clusters."""
        return len(set(self.clusters))

    @property
    def mean(self) -> float:
        """Over the items."""
        return math.fsum(self.values) / len(self.values)

    def minus(self, other: Clustered) -> Clustered:
        """Item by item. Raises MeasurementError where the two are not of the same items."""
        if self.clusters != other.clusters:
            raise MeasurementError(
                f"{len(self.values)} and {len(other.values)} scores are not of the same items in the same order: "
                "nothing can be paired"
            )
        values = tuple(own - theirs for own, theirs in zip(self.values, other.values, strict=True))
        return Clustered(values, self.clusters, self.bounded and other.bounded)

    def totals(self) -> tuple[Doubles, Doubles]:
        """fp64 [clusters] each: the sum of a cluster's values, and its items."""
        places = {name: place for place, name in enumerate(dict.fromkeys(self.clusters))}
        index = [places[name] for name in self.clusters]
        sums: Doubles = np.bincount(index, weights=self.values).astype(np.float64)
        return sums, np.bincount(index).astype(np.float64)


@dataclass(frozen=True)
class _Spread:
    """draws: fp64 [RESAMPLES]. error: the standard error, with what bounded scores hide. freedom: of Student's t."""

    value: float
    draws: Doubles
    error: float
    freedom: int

    @property
    def interval(self) -> Interval:
        """Percentiles of the draws, or value ± t errors where that is wider."""
        low, high = np.quantile(self.draws, (TAIL, 1 - TAIL)).tolist()
        half = student(self.freedom) * self.error
        return Interval(self.value, min(low, self.value - half), max(high, self.value + half))


def mean_interval(scores: Clustered, seed: int = 0) -> Interval:
    """The mean over items. Raises MeasurementError where all items share one cluster."""
    return _spread(scores, seed).interval


def difference_interval(own: Clustered, baseline: Clustered, seed: int = 0) -> Interval:
    """mean(own − baseline), items paired. Raises as `mean_interval`."""
    return mean_interval(own.minus(baseline), seed)


def ratio_interval(own: Clustered, baseline: Clustered, seed: int = 0) -> Interval | None:
    """mean(own) / mean(baseline), items paired; None where the baseline scores nothing. Raises as `mean_interval`."""
    own.minus(baseline)
    if baseline.mean <= 0:
        return None
    above, below = own.totals()[0], baseline.totals()[0]
    draws = _draws(len(above), seed)
    drawn = below[draws].sum(axis=1)
    ratios = above[draws].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    floor = _floor(own) / baseline.mean
    return _Spread(own.mean / baseline.mean, ratios, _error(ratios, own.count, floor), own.count - 1).interval


def mean_over(parts: Sequence[Clustered], seed: int = 0) -> Interval:
    """The mean of the parts' means: each part (such as a task) counts alike, and is resampled on its own. Degrees of
    freedom are those of the errors' sum (Welch 1947): a part of few clusters makes few. Raises as `mean_interval`.
    """
    spreads = [_spread(part, seed + place) for place, part in enumerate(parts)]
    student(min(spread.freedom for spread in spreads))  # raises where a part is of one context
    squares = [spread.error**2 for spread in spreads]
    total = math.fsum(squares)
    rest = math.fsum(square**2 / spread.freedom for square, spread in zip(squares, spreads, strict=True))
    return _Spread(
        math.fsum(spread.value for spread in spreads) / len(spreads),
        np.mean([spread.draws for spread in spreads], axis=0),
        math.sqrt(total) / len(spreads),
        round(total**2 / rest) if rest else sum(spread.freedom for spread in spreads),
    ).interval


def resolution(interval: Interval) -> float:
    """The difference that a setting can tell from none: half the interval's width, in its unit."""
    return (interval.high - interval.low) / 2


def cluster_of(item: Item) -> str:
    """What an item shares with others: the number of its context where it has one, else nothing."""
    number = getattr(item, "cluster", None)
    return item.identity if number is None else f"context {number}"


def student(freedom: int) -> float:
    """Student's t at 97.5 % of so many degrees of freedom, to 1 %: the expansion in 1 / freedom (Abramowitz and Stegun
    26.7.5), exact values where it fails. Raises MeasurementError below 1.
    """
    if freedom < 1:
        raise MeasurementError("all items share one context, which tells nothing of others; use 2 contexts or more")
    if freedom <= len(FEW):
        return FEW[freedom - 1]
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _spread(scores: Clustered, seed: int) -> _Spread:
    sums, counts = scores.totals()
    draws = _draws(len(sums), seed)
    means: Doubles = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    return _Spread(scores.mean, means, _error(means, scores.count, _floor(scores)), scores.count - 1)


def _error(draws: Doubles, clusters: int, floor: float) -> float:
    """The standard error of resampled figures; a bootstrap's own is too small by √((n − 1) / n)."""
    return math.hypot(float(draws.std()) * math.sqrt(clusters / max(1, clusters - 1)), floor)


def _floor(scores: Clustered) -> float:
    """The standard error of one more pair of clusters, half for either side: all of a cluster may differ together."""
    return 1 / (scores.count + 2) if scores.bounded else 0.0


def _draws(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
