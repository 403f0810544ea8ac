"""HeadKV's budgets against the paper's equations; what it does without scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import Driver, model_info, prompt

from thrifty import registry
from thrifty.arrays import Array
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policies.headkv import head_budgets, importance
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError

MODEL = model_info(layers=3, heads=6, kv_heads=2)
MIXED = model_info(windows=(None, 50, None), heads=4, kv_heads=2)


def compressed(model: ModelInfo, n: int, technique: str = "headkv", **options: Any) -> SequenceCache:
    sequence = Cache(model).create([registry.build("cache", {"technique": technique} | options)])
    Driver(model).prefill(sequence, prompt(n))
    return sequence


def scored(layers: int, heads: int, seed: int, zeros: bool) -> Array:
    generator = np.random.default_rng(seed)
    scores = generator.random((layers, heads)) ** 4
    if zeros:
        scores *= generator.random((layers, heads)) < 0.3
        scores[0, 0] = 1.0
    found: Array = scores / scores.sum()
    return found


@given(
    layers=st.integers(1, 12),
    heads=st.integers(1, 8),
    mean=st.integers(1, 400),
    room=st.integers(1, 2000),
    beta=st.sampled_from([1.0, 1.005, 1.2, 2.0, 10.0]),
    seed=st.integers(0, 99),
    zeros=st.booleans(),
)
@example(layers=3, heads=3, mean=3, room=3, beta=1.0, seed=94, zeros=True)  # rounding gave one head a slot too many
def test_budgets_add_up_and_nobody_has_more_than_there_is(
    layers: int, heads: int, mean: int, room: int, beta: float, seed: int, zeros: bool
) -> None:
    shares, most = scored(layers, heads, seed, zeros), mean + room
    found = head_budgets(shares, mean, most, beta)
    flat = [one for row in found for one in row]
    assert sum(flat) == layers * heads * mean and all(0 <= one <= most for one in flat)
    pool = mean / beta * layers * heads
    wanted = [[mean - mean / beta + float(share) * pool for share in row] for row in shares]
    if max(one for row in wanted for one in row) <= most:
        for row, expected in zip(found, wanted, strict=True):
            assert all(abs(one - other) <= 1 for one, other in zip(row, expected, strict=True))
    else:
        expected = [one for row in wanted for one in row]
        pairs = zip(flat, expected, strict=True)
        assert all(one >= min(most, other) - 1 for one, other in pairs), "an overflow takes from nobody"


def test_an_overflow_goes_to_the_others_by_their_scores() -> None:
    shares = np.array([[0.7, 0.2], [0.1, 0.0]])
    # Wanted 280, 80, 40, 0. At 180: 100 too many for the first, two thirds go to the second, one third to the third.
    assert head_budgets(shares, 100, 180, 1.0) == [[180, 147], [73, 0]]
    assert head_budgets(shares, 100, 130, 1.0) == [[130, 130], [130, 10]]


def slow_budgets(scores: Array, groups: int, mean: int, beta: float) -> list[list[float]]:
    """The paper's equations 3 and 4 with real numbers, KV heads by the mean of their query heads."""
    by_head = [[float(np.mean(row[first : first + groups])) for first in range(0, len(row), groups)] for row in scores]
    heads, total = sum(map(len, by_head)), sum(map(sum, by_head))
    pool = mean / beta * heads
    return [[mean - mean / beta + own / total * pool for own in row] for row in by_head]


def test_heads_keep_their_shares() -> None:
    for technique, kind in (("headkv", "r"), ("headkv-r2", "r2")):
        sequence = compressed(MODEL, 300, technique, capacity=48, beta=1.1, kernel=5)
        expected = slow_budgets(MODEL.head_scores[kind].astype(np.float64), 3, 40, 1.1)
        budgets = [[sequence.slots(layer, head) - 8 for head in range(2)] for layer in range(3)]
        assert sum(map(sum, budgets)) == 6 * 40
        for layer in range(3):
            assert all(abs(budgets[layer][head] - expected[layer][head]) <= 1 for head in range(2))
            for head in range(2):
                alone = compressed(MODEL, 300, "snapkv", capacity=budgets[layer][head] + 8, window=8, kernel=5)
                assert np.array_equal(sequence.view(layer).positions(head), alone.view(layer).positions(head))


def test_reduction_from_query_heads() -> None:
    scores = np.array([[1.0, 3.0, 5.0, 1.0, 0.0, 2.0]], np.float32)
    model = model_info(layers=1, heads=6, kv_heads=2)
    assert np.allclose(importance(scores, model, "mean"), [[0.75, 0.25]])
    assert np.allclose(importance(scores, model, "max"), [[5 / 7, 2 / 7]])


def test_windowed_layers_have_no_rank() -> None:
    sequence = compressed(MIXED, 300, capacity=48)
    held = [sequence.slots(layer, head) for layer in (0, 2) for head in range(2)]
    assert sum(held) == 4 * 48


def test_without_scores_the_command_is_named() -> None:
    bare = dataclasses.replace(MODEL, head_scores={"r": MODEL.head_scores["r"]})
    Cache(bare).create([registry.build("cache", {"technique": "headkv"})]).free()
    with pytest.raises(RecipeError, match=r"'headkv-r2' needs the scores .*run `thrifty heads MODEL --kind r2` once"):
        Cache(bare).create([registry.build("cache", {"technique": "headkv-r2"})])


def test_scores_of_another_shape_are_refused() -> None:
    other = dataclasses.replace(MODEL, head_scores={"r": np.ones((2, 6), np.float32)})
    with pytest.raises(RecipeError, match=r"have shape \[2, 6\], this model needs \[3, 6\]"):
        Cache(other).create([registry.build("cache", {"technique": "headkv"})])
