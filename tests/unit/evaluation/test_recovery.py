"""Scores against a baseline: what the intervals must be."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.evaluation.recovery import mean_interval, ratio_interval


def test_a_constant_has_no_width() -> None:
    found = mean_interval([0.25] * 64)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        found = mean_interval(generator.standard_normal(256))
        hits += found.low <= 0.0 <= found.high
    assert 175 <= hits <= 200  # 95% of 200 is 190; below 175 by chance: < 1e-6


def test_recovery_is_the_ratio_of_the_means() -> None:
    baseline = [1.0, 1.0, 0.0, 1.0] * 16
    score = [1.0, 0.0, 0.0, 1.0] * 16
    found = ratio_interval(score, baseline)
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    assert found.low <= found.value <= found.high


def test_a_task_that_the_baseline_cannot_do_has_no_recovery() -> None:
    assert ratio_interval([1.0] * 32, [0.0] * 32) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(100)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def slow_cluster_means(values: list[float], clusters: list[str], seed: int, baseline: list[float]) -> list[float]:
    """Draw whole clusters, item by item, and take the ratio of the sums."""
    names = list(dict.fromkeys(clusters))
    ratios = []
    for draw in np.random.default_rng(seed).integers(0, len(names), (1000, len(names))):
        over = under = 0.0
        for place in draw:
            for value, below, cluster in zip(values, baseline, clusters, strict=True):
                if cluster == names[place]:
                    over, under = over + value, under + below
        if under > 0:
            ratios.append(over / under)
    return ratios


def test_items_of_one_context_are_drawn_together() -> None:
    clusters = ["a", "b", "a", "c", "b", "a", "d", "d"]
    values = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.25, 0.0]
    baseline = [1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.5, 0.0]
    for below, found in (
        ([1.0] * 8, mean_interval(values, seed=4, clusters=clusters)),
        (baseline, ratio_interval(values, baseline, seed=4, clusters=clusters)),
    ):
        assert found is not None
        ratios = slow_cluster_means(values, clusters, 4, below)
        assert [found.low, found.high] == pytest.approx(np.quantile(ratios, (0.025, 0.975)).tolist())
        assert found.value == pytest.approx(sum(values) / sum(below))


def test_shared_contexts_widen_an_interval_and_own_ones_leave_it() -> None:
    values = np.repeat(np.random.default_rng(0).random(20) < 0.5, 5).astype(float)
    alone = mean_interval(values, block=1)
    assert mean_interval(values, block=1, clusters=list(range(100))) == alone
    together = mean_interval(values, block=1, clusters=[place // 5 for place in range(100)])
    assert together.high - together.low > 1.7 * (alone.high - alone.low)
