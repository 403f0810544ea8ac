"""PyramidKV against the paper's equations, and its budget to the slot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import Driver, model_info, prompt

from thrifty import registry
from thrifty.cache.layer_budgets import pyramid
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError

FIVE = model_info(layers=5, heads=4, kv_heads=2)
MIXED = model_info(windows=(50, None, None, 50, None, None), heads=4, kv_heads=2)


def compressed(model: ModelInfo, n: int, technique: str = "pyramidkv", **options: Any) -> SequenceCache:
    sequence = Cache(model).create([registry.build("cache", {"technique": technique} | options)])
    Driver(model).prefill(sequence, prompt(n))
    return sequence


def slow_pyramid(layers: int, mean: int, most: int, beta: float) -> list[float]:
    """The equations of §4.2 with real numbers, layer by layer."""
    top = mean / beta
    bottom = 2 * mean - top
    if bottom > most:
        bottom, top = most, 2 * mean - most
    return [bottom - (bottom - top) / (layers - 1) * layer for layer in range(layers)]


@given(
    layers=st.integers(2, 80),
    mean=st.integers(1, 5000),
    room=st.integers(1, 9000),
    beta=st.floats(1, 100),
)
def test_budgets_follow_the_equations_and_add_up(layers: int, mean: int, room: int, beta: float) -> None:
    most = mean + room
    found = pyramid(layers, mean, most, beta)
    assert sum(found) == layers * mean, "the mean is the asked one to the slot"
    assert all(0 <= one <= most for one in found)
    for one, expected in zip(found, slow_pyramid(layers, mean, most, beta), strict=True):
        assert abs(one - expected) <= 1
    assert found[0] >= found[-1]


def test_the_published_setting() -> None:
    found = pyramid(32, 120, 8000, 20)
    assert found[0] in (233, 234) and found[-1] in (6, 7) and sum(found) == 32 * 120


@pytest.mark.parametrize(("layers", "mean", "most", "expected"), [(1, 40, 90, [40]), (3, 90, 90, [90] * 3)])
def test_one_layer_and_room_for_all(layers: int, mean: int, most: int, expected: list[int]) -> None:
    assert pyramid(layers, mean, most, 20) == expected


def test_layers_keep_the_slots_that_snapkv_of_their_budget_keeps() -> None:
    sequence = compressed(FIVE, 200, capacity=48, kernel=5)
    budgets = [78, 59, 40, 21, 2]  # 2·40 − 40/20 down to 40/20 in equal steps
    assert [sequence.slots(layer) for layer in range(5)] == [one + 8 for one in budgets]
    for layer, budget in enumerate(budgets):
        alone = compressed(FIVE, 200, "snapkv", capacity=budget + 8, window=8, kernel=5)
        for head in range(2):
            if budget:
                assert np.array_equal(sequence.view(layer).positions(head), alone.view(layer).positions(head))


def test_an_overflow_goes_to_the_upper_layers() -> None:
    sequence = compressed(FIVE, 100, capacity=80)
    counts = [sequence.slots(layer) for layer in range(5)]
    assert counts[0] == 100 and counts[-1] == 60 and sum(counts) == 5 * 80


def test_global_layers_are_ranked_alone() -> None:
    sequence = compressed(MIXED, 300, capacity=48)
    budgets = pyramid(4, 40, 292, 20)
    assert [sequence.slots(layer) for layer in (1, 2, 4, 5)] == [one + 8 for one in budgets]


def test_short_prompts_stay_whole() -> None:
    sequence = compressed(FIVE, 48, capacity=48)
    assert [sequence.slots(layer) for layer in range(5)] == [48] * 5


def test_ada_kv_on_a_pyramid_shares_each_layers_budget() -> None:
    sequence = compressed(FIVE, 200, "ada-kv", capacity=48, window=8, beta=20)
    for layer, budget in enumerate(pyramid(5, 40, 192, 20)):
        counts = [sequence.slots(layer, head) - 8 for head in range(2)]
        assert abs(sum(counts) - 2 * budget) <= 2
    assert sequence.slots(0, 0) != sequence.slots(0, 1)


@pytest.mark.parametrize("technique", ["pyramidkv", "ada-kv", "headkv"])
def test_a_beta_below_one_is_refused(technique: str) -> None:
    with pytest.raises(RecipeError, match=rf"{technique}: beta = 0.5; use 1"):
        registry.build("cache", {"technique": technique, "beta": 0.5})
