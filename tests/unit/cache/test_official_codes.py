"""Every policy against what its authors' code does on the same random tensors: budgets, kept slots, stored numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.cache import official
from tests.unit.cache.cache_driver import Driver, compressed, model_info, prompt

from thrifty.arrays import Array, Floats
from thrifty.cache.policies.kvzip import best_slots

PLAIN = model_info(layers=2, heads=4, kv_heads=4)
"""One query head a KV head, as the codes store it."""
GROUPED = model_info(layers=2, heads=6, kv_heads=2)
N, WINDOW, KERNEL = 220, 16, 5


def scores_of(model: Any, layer: int, tokens: list[int], pooling: str) -> Array:
    query, key, _ = Driver(model).rows(layer, tokens, 0)
    return official.window_scores(query, key, WINDOW, KERNEL, pooling)


def same_choice(found: list[int], expected: list[int], scores: Array) -> None:
    """Equal, but for slots of equal score at the border: pooling by the maximum makes many."""
    assert len(found) == len(expected) and found[-WINDOW:] == expected[-WINDOW:]
    mine, theirs = (np.sort(scores[places[:-WINDOW]]) for places in (found, expected))
    assert np.allclose(mine, theirs, rtol=1e-4)


@pytest.mark.parametrize("model", [PLAIN, GROUPED], ids=["one query head", "grouped"])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("capacity", [48, 219, 220, 221])
def test_snapkv_keeps_what_the_official_code_keeps(model: Any, pooling: str, capacity: int) -> None:
    tokens = prompt(N)
    sequence = compressed(model, tokens, "snapkv", capacity=capacity, window=WINDOW, kernel=KERNEL, pooling=pooling)
    for layer in range(model.layers):
        scores = scores_of(model, layer, tokens, pooling)
        expected = official.snapkv(scores, capacity, WINDOW)
        for head in range(model.kv_heads):
            found = sequence.view(layer).positions(head).tolist()
            if pooling == "average":
                assert found == expected[head]
            elif len(found) < N:
                same_choice(found, expected[head], scores[head])
            else:
                assert found == expected[head]


@pytest.mark.parametrize("model", [PLAIN, GROUPED], ids=["one query head", "grouped"])
@pytest.mark.parametrize("floor_alpha", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("n", "capacity"), [(N, 48), (130, 90), (60, 200)])
def test_ada_kv_gives_heads_what_the_official_code_gives(model: Any, floor_alpha: float, n: int, capacity: int) -> None:
    tokens = prompt(n)
    options = {"capacity": capacity, "window": WINDOW, "kernel": KERNEL, "pooling": "average"}
    sequence = compressed(model, tokens, "ada-kv", floor_alpha=floor_alpha, **options)
    unequal = False
    for layer in range(model.layers):
        scores = scores_of(model, layer, tokens, "average")
        expected = official.ada_kv(scores, capacity, WINDOW, floor_alpha)
        found = [sequence.view(layer).positions(head).tolist() for head in range(model.kv_heads)]
        assert found == expected
        unequal |= len({len(own) for own in found}) > 1
    assert unequal == (floor_alpha < 1 and n > capacity)


def test_pyramidkv_is_the_official_one_where_its_steps_are_whole() -> None:
    model, tokens, capacity = model_info(layers=5, heads=4, kv_heads=4), prompt(N), 40 + WINDOW
    budgets = official.pyramid(5, N, capacity, WINDOW, 20)
    assert budgets == [78, 59, 40, 21, 2]
    options = {"capacity": capacity, "window": WINDOW, "kernel": KERNEL, "pooling": "average"}
    sequence = compressed(model, tokens, "pyramidkv", **options)
    for layer, budget in enumerate(budgets):
        expected = official.snapkv(scores_of(model, layer, tokens, "average"), budget + WINDOW, WINDOW)
        assert [sequence.view(layer).positions(head).tolist() for head in range(4)] == expected


@pytest.mark.parametrize("capacity", [37 + WINDOW, 53 + WINDOW, 90 + WINDOW])
def test_pyramidkv_stays_within_a_slot_a_layer_of_the_official_steps(capacity: int) -> None:
    layers, base = 7, capacity - WINDOW
    sequence = compressed(model_info(layers=layers), prompt(N), "pyramidkv", capacity=capacity, window=WINDOW)
    found = [sequence.slots(layer) - WINDOW for layer in range(layers)]
    expected = official.pyramid(layers, N, capacity, WINDOW, 20)
    assert sum(found) == layers * base <= sum(expected), "the mean is met here, and exceeded there"
    assert all(abs(own - other) <= layer + 1 for layer, (own, other) in enumerate(zip(found, expected, strict=True)))


@pytest.mark.parametrize("beta", [2.0, 5.0, 1.0])
def test_headkv_gives_heads_what_the_official_code_gives(beta: float) -> None:
    model, capacity = model_info(layers=3, heads=4, kv_heads=4), 40 + 8
    sequence = compressed(model, prompt(900), "headkv", capacity=capacity, window=8, beta=beta)
    expected = official.headkv(model.head_scores["r"].tolist(), capacity, 8, beta)
    found = [[sequence.slots(layer, head) - 8 for head in range(4)] for layer in range(3)]
    assert sum(map(sum, found)) == 12 * 40
    for mine, theirs in zip(found, expected, strict=True):
        assert all(abs(own - other) <= 1 for own, other in zip(mine, theirs, strict=True))
    assert len({own for row in found for own in row}) > 3, "heads differ"


def test_h2o_keeps_what_the_official_code_keeps_when_the_prompt_ends() -> None:
    tokens = prompt(150)
    sequence = compressed(PLAIN, tokens, "h2o", capacity=40)
    for layer in range(PLAIN.layers):
        query, key, _ = Driver(PLAIN).rows(layer, tokens, 0)
        expected = official.h2o(query, key, 20, 20)
        assert [sequence.view(layer).positions(head).tolist() for head in range(4)] == expected


@pytest.mark.parametrize("n", [60, 104, 105, 300])
def test_streaming_keeps_what_the_official_code_keeps(n: int) -> None:
    sequence = compressed(PLAIN, prompt(n), "streaming", sinks=4, window=100, renumber=False)
    assert sequence.view(1).positions(2).tolist() == official.streaming(n, 4, 100)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.77])
def test_kvzip_keeps_the_official_choice_and_the_slot_at_its_threshold(ratio: float) -> None:
    scores = [part.astype(np.float32) for part in np.random.default_rng(1).random((6, 50))]
    kept = np.flatnonzero(np.concatenate(best_slots(scores, ratio))).tolist()
    expected = official.kvzip(np.stack(scores), ratio)
    assert set(expected) < set(kept) and len(kept) == len(expected) + 1 == int(300 * ratio)


def nearly(found: Floats, expected: Array) -> bool:
    """Equal but for the 16 bits of scales, and for single numbers on the border between two codes."""
    return bool((np.abs(found - expected) > 0.01).mean() < 0.003)


@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_stores_the_official_numbers(bits: int) -> None:
    n, tokens = 400, prompt(400)
    sequence = compressed(PLAIN, tokens, "kivi", bits=bits, residual=128)
    coded = n - 128 - (n - 128) % 64
    assert n - coded >= max(128, official.kivi_exact_keys(n, 128)), "no token is coded that the code keeps exact"
    for layer in range(PLAIN.layers):
        _, key, value = Driver(PLAIN).rows(layer, tokens, 0)
        view = sequence.view(layer)
        for head in range(4):
            keys = official.kivi_codes(key[:coded, head].T, bits, 32).T
            values = official.kivi_codes(value[:coded, head], bits, 32)
            assert nearly(view.keys(head)[:coded], keys)
            assert nearly(view.values(head)[:coded], values)
            assert np.array_equal(view.keys(head)[coded:], key[coded:, head])


def test_random_scores_of_heads_are_those_of_one_seed() -> None:
    """The yardstick moves with nobody: fixed numbers of fixed tensors."""
    query, key, _ = Driver(dataclasses.replace(PLAIN)).rows(0, list(range(40)), 0)
    assert query.shape == (40, 4, 16) and key.shape == (40, 4, 16)
    assert official.pyramid(32, 8000, 128, 8, 20) == [234 - 7 * layer for layer in range(32)]
    assert official.headkv([[3.0, 1.0], [0.0, 0.0]], 20, 10, 2.0) == [[20, 10], [5, 5]]
    assert official.streaming(10, 2, 3) == [0, 1, 7, 8, 9]
    assert official.kvzip(np.array([[4.0, 1.0], [3.0, 2.0]]), 0.75) == [0, 2]
