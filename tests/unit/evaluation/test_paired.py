"""Intervals of paired scores: against slow versions, and how often they hold the truth."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.paired import (
    Clustered,
    difference_interval,
    mean_interval,
    mean_over,
    ratio_interval,
    resolution,
    student,
)

scores = st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=2, max_size=20)


def of(rows: list[tuple[int, float]]) -> Clustered:
    return Clustered(tuple(value for _, value in rows), tuple(name for name, _ in rows))


@given(scores)
def test_totals_are_those_of_a_loop_over_clusters(rows: list[tuple[int, float]]) -> None:
    own = of(rows)
    sums, counts = own.totals()
    names = list(dict.fromkeys(name for name, _ in rows))
    assert own.count == len(names) == len(sums)
    for place, name in enumerate(names):
        values = [value for other, value in rows if other == name]
        assert sums[place] == pytest.approx(sum(values)) and counts[place] == len(values)
    assert own.mean == pytest.approx(sum(value for _, value in rows) / len(rows))


def test_an_interval_is_never_narrower_than_students() -> None:
    values = (0.2, 0.9, 0.4, 0.6)
    own = Clustered(values, tuple(range(4)), bounded=False)
    half = student(3) * float(np.std(values, ddof=1)) / 2
    interval = mean_interval(own)
    assert interval.low <= interval.value - 0.97 * half and interval.high >= interval.value + 0.97 * half


def test_whole_clusters_are_resampled() -> None:
    """Twenty items of four contexts that agree among themselves tell no more than four."""
    values = tuple(float(place // 5 % 2) for place in range(20))
    together = mean_interval(Clustered(values, tuple(place // 5 for place in range(20))))
    apart = mean_interval(Clustered(values, tuple(range(20))))
    assert resolution(together) > 1.8 * resolution(apart)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = random.Random(4)
    held, runs = 0, 300
    for _ in range(runs):
        rows = []
        for context in range(12):
            level = generator.gauss(0.0, 0.2)
            rows += [(context, level + generator.gauss(0.0, 0.2)) for _ in range(3)]
        interval = mean_interval(Clustered(tuple(v for _, v in rows), tuple(c for c, _ in rows), bounded=False))
        held += interval.low <= 0.0 <= interval.high
    assert 0.92 * runs <= held <= 0.99 * runs


def test_equal_runs_differ_by_nothing_and_still_do_not_prove_it() -> None:
    own = Clustered((1.0, 0.0, 1.0, 1.0) * 10, tuple(range(40)))
    interval = difference_interval(own, own)
    assert interval.value == 0.0 and interval.low < 0.0 < interval.high
    assert resolution(interval) == pytest.approx(student(39) / 42)
    more = Clustered((1.0, 0.0, 1.0, 1.0) * 100, tuple(range(400)))
    assert resolution(difference_interval(more, more)) < resolution(interval) / 8


def test_pairing_takes_out_what_an_item_is_worth_to_both() -> None:
    generator = np.random.default_rng(1)
    hard = generator.random(60)
    own = Clustered(tuple((hard - 0.05).tolist()), tuple(range(60)), bounded=False)
    baseline = Clustered(tuple(hard.tolist()), tuple(range(60)), bounded=False)
    interval = difference_interval(own, baseline)
    assert interval.value == pytest.approx(-0.05) and resolution(interval) < 1e-9
    assert resolution(mean_interval(own)) > 0.05


def test_a_ratio_is_of_the_means_and_none_where_the_baseline_scores_nothing() -> None:
    clusters = tuple(range(8))
    own, baseline = Clustered((0.5,) * 8, clusters), Clustered((1.0,) * 8, clusters)
    interval = ratio_interval(own, baseline)
    assert interval is not None and interval.value == 0.5 and interval.low < 0.5 < interval.high
    assert ratio_interval(own, Clustered((0.0,) * 8, clusters)) is None


def test_a_mean_over_tasks_counts_each_task_alike() -> None:
    many, few = Clustered((1.0,) * 90, tuple(range(90))), Clustered((0.0,) * 10, tuple(range(10)))
    interval = mean_over([many, few])
    assert interval.value == 0.5 and interval.low <= 0.5 <= interval.high
    alone = [resolution(mean_interval(part)) for part in (many, few)]
    assert resolution(interval) == pytest.approx(math.hypot(*alone) / 2, rel=0.2)


def test_a_task_of_two_contexts_beside_one_of_many_leaves_few_degrees_of_freedom() -> None:
    few = Clustered((0.0, 1.0), (0, 1), bounded=False)
    many = Clustered((0.4, 0.6) * 50, tuple(range(100)), bounded=False)
    assert resolution(mean_over([few, many])) == pytest.approx(resolution(mean_interval(few)) / 2, rel=0.05)
    twice = [resolution(mean_over([part, part])) for part in (many, few)]
    errors = [resolution(mean_interval(part)) for part in (many, few)]
    assert twice[0] == pytest.approx(errors[0] / math.sqrt(2), rel=0.1)
    assert twice[1] == pytest.approx(errors[1] / math.sqrt(2) * student(2) / student(1), rel=0.1)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706), (4, 2.776), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_student_is_the_table(freedom: int, value: float) -> None:
    assert student(freedom) == pytest.approx(value, rel=0.01)


def test_what_cannot_be_paired_is_refused() -> None:
    own = Clustered((1.0, 0.0), (0, 1))
    with pytest.raises(MeasurementError, match="not of the same items"):
        own.minus(Clustered((1.0, 0.0), (1, 0)))
    with pytest.raises(MeasurementError, match="all items share one context"):
        mean_interval(Clustered((1.0, 0.0), (0, 0)))
    with pytest.raises(MeasurementError, match="share one context"):
        mean_over([Clustered((1.0, 0.0), (0, 0)), own])
    with pytest.raises(MeasurementError, match="2 scores in 1 clusters"):
        Clustered((1.0, 0.0), (0,))
