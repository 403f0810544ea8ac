"""Scores of claims and their intervals: those of `thrifty.evaluation.paired`, contexts resampled, items paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from thrifty.evaluation import paired
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.paired import Clustered
from thrifty.evaluation.recovery import Interval


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

    @cached_property
    def clustered(self) -> Clustered:
        """The same for `thrifty.evaluation.paired`."""
        return Clustered(tuple(self.values), tuple(self.clusters), self.bounded)


def mean_interval(scores: Scores) -> Interval:
    """Mean score with its interval. Raises MeasurementError where all items share one context."""
    return paired.mean_interval(scores.clustered)


def paired_difference(ours: Scores, theirs: Scores) -> Interval:
    """mean(ours) − mean(theirs), the same items on both sides, contexts drawn together.

    Raises MeasurementError where the sides have other items or one context alone.
    """
    return paired.difference_interval(ours.clustered, theirs.clustered)


def paired_ratio(ours: Scores, baseline: Scores) -> Interval:
    """mean(ours) / mean(baseline), the same items on both sides, contexts drawn together.

    Raises MeasurementError where the baseline scores nothing: what cannot be done uncompressed has no share that is
    kept.
    """
    interval = paired.ratio_interval(ours.clustered, baseline.clustered)
    if interval is None:
        raise MeasurementError(
            f"the baseline scores {baseline.mean:g} in {len(baseline)} items, so no share of it can be kept; use a "
            "model or a task that it can do"
        )
    return interval


def advantage(ours: Scores, theirs: Scores) -> Interval:
    """How much better ours is, in the scores' own unit: positive is better, of losses too. Raises as above."""
    if ours.higher != theirs.higher:
        raise MeasurementError("one side's scores are losses and the other's are not: they cannot be compared")
    return paired_difference(ours, theirs) if ours.higher else paired_difference(theirs, ours)


def power(interval: Interval) -> float:
    """The difference that this many items can tell from none: half the interval's width, in its unit."""
    return paired.resolution(interval)
