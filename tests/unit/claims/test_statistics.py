"""Intervals: against a slow obvious bootstrap, by simulated coverage, and at the borders where they would deceive."""

from __future__ import annotations

import math
import random
import statistics as plain
from collections.abc import Sequence

import numpy as np
import pytest

from thrifty.claims.harness.parts import Bar, Verdict
from thrifty.claims.harness.statistics import (
    Scores,
    advantage,
    mean_interval,
    paired_difference,
    paired_ratio,
    power,
)
from thrifty.evaluation import paired
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.paired import student


def losses(values: Sequence[float], clusters: Sequence[str] | None = None) -> Scores:
    """Unbounded scores, each in a context of its own unless told."""
    return Scores(tuple(values), tuple(clusters or map(str, range(len(values)))), higher=False, bounded=False)


def answers(values: Sequence[float], clusters: Sequence[str] | None = None) -> Scores:
    return Scores(tuple(values), tuple(clusters or map(str, range(len(values)))))


def slow_draws(values: Sequence[float], clusters: Sequence[str], count: int = 4000) -> list[float]:
    """Means of resamples: contexts drawn one by one, with all their items."""
    chance = random.Random(7)
    members = {name: [value for value, own in zip(values, clusters, strict=True) if own == name] for name in clusters}
    names = sorted(members)
    means = []
    for _ in range(count):
        drawn = [value for name in chance.choices(names, k=len(names)) for value in members[name]]
        means.append(plain.fmean(drawn))
    return means


def test_a_difference_is_that_of_a_slow_bootstrap_over_contexts() -> None:
    chance = np.random.default_rng(3)
    clusters = [f"c{number}" for number in range(30) for _ in range(1 + number % 4)]
    shift = {name: chance.normal() for name in clusters}
    ours = [shift[name] + chance.normal() for name in clusters]
    theirs = [shift[name] / 2 + chance.normal() for name in clusters]
    found = paired_difference(losses(ours, clusters), losses(theirs, clusters))
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    draws = slow_draws(differences, clusters)
    error = plain.pstdev(draws) * math.sqrt(30 / 29)
    assert found.value == pytest.approx(plain.fmean(differences))
    assert found.high - found.value == pytest.approx(2.045 * error, rel=0.06)  # t of 29 degrees of freedom
    assert found.low == pytest.approx(found.value - 2.045 * error, abs=0.06 * 2.045 * error)


def test_items_of_one_context_are_no_independent_evidence() -> None:
    values = [float(number % 2) for number in range(20) for _ in range(10)]
    together = [str(number) for number in range(20) for _ in range(10)]
    assert power(mean_interval(answers(values, together))) > 2 * power(mean_interval(answers(values)))


def test_a_ratio_is_that_of_the_means_and_pairs_are_drawn_together() -> None:
    baseline = [1.0, 2.0, 4.0, 8.0] * 5
    ours = [0.9 * value for value in baseline]
    found = paired_ratio(losses(ours), losses(baseline))
    assert found.value == pytest.approx(0.9) and power(found) < 1e-9, "each resample has the same ratio"


@pytest.mark.parametrize(("contexts", "per"), [(6, 5), (20, 2), (60, 1)])
def test_intervals_cover_the_truth_as_often_as_they_say(contexts: int, per: int) -> None:
    chance = np.random.default_rng(contexts)
    names = [str(number) for number in range(contexts) for _ in range(per)]
    held = 0
    for _ in range(200):
        shared = np.repeat(chance.normal(0, 1, contexts), per)
        ours = shared + chance.normal(0, 1, contexts * per) + 0.3
        interval = paired_difference(losses(ours.tolist(), names), losses([0.0] * len(names), names))
        held += interval.low <= 0.3 <= interval.high
    assert held / 200 >= 0.92


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_shares_of_right_answers_are_covered_near_one_too(truth: float) -> None:
    chance = np.random.default_rng(int(100 * truth))
    held = 0
    for _ in range(200):
        interval = mean_interval(answers((chance.random(60) < truth).astype(float).tolist()))
        held += interval.low <= truth <= interval.high
    assert held / 200 >= 0.92


@pytest.mark.parametrize("contexts", [8, 25, 50])
@pytest.mark.parametrize("truth", [0.9, 0.97])
def test_answers_that_are_right_or_wrong_by_whole_contexts_are_covered_too(contexts: int, truth: float) -> None:
    """Where no context differs, four answers about each are no four times as much evidence as one."""
    chance = np.random.default_rng(contexts)
    names = [str(number) for number in range(contexts) for _ in range(4)]
    held = 0
    for _ in range(200):
        own = answers(np.repeat(chance.random(contexts) < truth, 4).astype(float).tolist(), names)
        whole = answers([1.0] * len(names), names)
        intervals = mean_interval(own), paired_ratio(own, whole)
        held += all(interval.low <= truth <= interval.high for interval in intervals)
    assert held / 200 >= 0.92


def test_equal_answers_do_not_prove_that_no_other_would_differ() -> None:
    twelve = paired_difference(answers([1.0] * 12), answers([1.0] * 12))
    hundred = paired_difference(answers([1.0] * 100), answers([1.0] * 100))
    assert twelve.value == 0 and twelve.low < -0.1, "twelve items cannot tell two points"
    assert -0.03 < hundred.low < -0.015 and hundred.high == -hundred.low
    assert paired_ratio(answers([1.0] * 12), answers([1.0] * 12)).low < 0.95


def test_one_set_of_scores_has_one_interval() -> None:
    scores = losses([float(number % 7) for number in range(50)])
    assert mean_interval(scores) == mean_interval(scores)


def test_an_advantage_is_positive_where_ours_is_better_of_losses_too() -> None:
    better, worse = losses([1.0, 1.1, 0.9]), losses([2.0, 2.1, 1.9])
    assert advantage(better, worse).value == pytest.approx(1.0)
    assert advantage(worse, better).value == pytest.approx(-1.0)
    assert advantage(answers([1.0, 1.0]), answers([0.0, 0.0])).value == pytest.approx(1.0)
    with pytest.raises(MeasurementError, match="one side's scores are losses"):
        advantage(better, answers([1.0, 1.0, 1.0]))


def test_power_is_half_the_width() -> None:
    interval = mean_interval(losses([1.0, 2.0, 3.0, 4.0]))
    assert power(interval) == pytest.approx((interval.high - interval.low) / 2)


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.706), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)]
)
def test_students_quantiles(freedom: int, value: float) -> None:
    assert student(freedom) == pytest.approx(value, rel=0.01)


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(MeasurementError, match="2 scores of 1 clusters"):
        Scores((1.0, 0.0), ("a",))
    with pytest.raises(MeasurementError, match="a score is nan"):
        answers([math.nan])
    with pytest.raises(MeasurementError, match="outside 0 to 1"):
        answers([2.0])
    with pytest.raises(MeasurementError, match="not of the same items"):
        paired_difference(answers([1.0, 0.0]), answers([1.0, 0.0], ["x", "y"]))
    with pytest.raises(MeasurementError, match="share one context"):
        mean_interval(answers([1.0, 0.0], ["a", "a"]))
    with pytest.raises(MeasurementError, match="the baseline scores 0 in 2 items"):
        paired_ratio(answers([1.0, 0.0]), answers([0.0, 0.0]))


def test_two_independent_runs_give_no_opposite_verdicts_even_where_the_truth_lies_on_the_bar() -> None:
    chance = np.random.default_rng(11)
    names = [str(number) for number in range(25) for _ in range(4)]

    def run() -> Verdict:
        """A share of 0.8 kept, held against 0.8: contexts differ in how hard they are."""
        hard = np.repeat(chance.beta(8, 2, 25), 4)
        ours = (chance.random(100) < hard).astype(float)
        return Bar(0.8).verdict(paired_ratio(answers(ours.tolist(), names), answers([1.0] * 100, names)))

    verdicts = [(run(), run()) for _ in range(300)]
    opposite = [pair for pair in verdicts if set(pair) == {Verdict.HOLDS, Verdict.FAILS}]
    assert len(opposite) <= 2
    decided = sum(verdict is not Verdict.INCONCLUSIVE for pair in verdicts for verdict in pair)
    assert decided <= 0.08 * 600, "on the bar nothing is known"


def test_the_resampling_is_seeded_and_large_enough() -> None:
    assert paired.RESAMPLES >= 1000
