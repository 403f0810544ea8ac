"""The best of scores, and attention computed again: natively and by its formula, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import Driver, model_info, prompt

from thrifty import registry
from thrifty.arrays import Array, Floats
from thrifty.cache.policies.fastgen import FULL, RUNG
from thrifty.cache.pool import Cache
from thrifty.cache.scores import attention_map, best, formula, pooled
from thrifty.kernels import dispatch


@given(scores=st.lists(st.sampled_from([-math.inf, 0.0, 0.5, 1.0, 2.0]), max_size=30), count=st.integers(0, 35))
def test_the_best_are_the_first_of_equal_ones_in_rising_order(scores: list[float], count: int) -> None:
    ranked = sorted(range(len(scores)), key=lambda slot: (-scores[slot], slot))
    assert best(np.array(scores, np.float32), count).tolist() == sorted(ranked[:count])


def slow_map(queries: Floats, keys: Floats, sees: list[int], softcap: float | None, bias: Floats) -> Array:
    """Row by row and slot by slot, in Python's floats."""
    rows = []
    for query, seen in zip(queries, sees, strict=True):
        logits = [0.3 * math.fsum(query * key) for key in keys[:seen]]
        capped = [softcap * math.tanh(one / softcap) if softcap else one for one in logits]
        weights = [math.exp(one + float(more)) for one, more in zip(capped, bias, strict=False)]
        rows.append([one / sum(weights) for one in weights] + [0.0] * (len(keys) - seen))
    return np.array(rows)


@settings(max_examples=40, deadline=None)
@given(
    sees=st.lists(st.integers(1, 23), min_size=1, max_size=7),
    softcap=st.sampled_from([None, 3.0]),
    hidden=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attention_of_rows_that_see_different_slots(
    sees: list[int], softcap: float | None, hidden: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    queries, keys = (random.standard_normal((rows, 16), np.float32) for rows in (len(sees), 23))
    bias = random.standard_normal(23, np.float32)
    if hidden:
        bias[1:5] = -np.inf
    expected = slow_map(queries, keys, sees, softcap, bias)
    found = formula(queries, keys, np.array(sees), 0.3, softcap, bias)
    assert np.allclose(found, expected, atol=1e-6)
    chosen = attention_map(queries, keys, np.array(sees), scale=0.3, softcap=softcap, bias=bias)
    assert np.allclose(chosen, expected, atol=1e-6)


def test_the_formula_runs_where_native_code_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    queries, keys = (random.standard_normal((rows, 16), np.float32) for rows in (3, 9))
    before = attention_map(queries, keys, np.array([7, 8, 9]), scale=0.5)
    monkeypatch.setattr(dispatch, "native", lambda: None)
    after = attention_map(queries, keys, np.array([7, 8, 9]), scale=0.5)
    assert np.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_pooling_reaches_over_neighbours_and_stops_at_the_ends(kernel: int) -> None:
    scores = np.random.default_rng(1).random(12, np.float32)
    reach = kernel // 2
    near = [scores[max(0, slot - reach) : slot + reach + 1] for slot in range(12)]
    assert np.array_equal(pooled(scores, kernel, "max"), [one.max() for one in near])
    assert np.allclose(pooled(scores, kernel, "average"), [one.sum() / kernel for one in near])


def test_a_profile_of_queries_that_see_nothing_keeps_everything() -> None:
    """A window of the newest tokens alone leaves the older of the profiled queries without a slot."""
    model = model_info(layers=1)
    names = ({"technique": "streaming", "sinks": 0, "window": 20}, {"technique": "fastgen", "recovery": 0.1})
    sequence = Cache(model).create([registry.build("cache", table) for table in names])
    Driver(model).prefill(sequence, prompt(200))
    assert sequence.collector.stats(0, sequence.counts(0), 1, None).notes[RUNG] == (FULL, FULL)
    assert sequence.slots(0) == 20
