"""Quest in a sequence's cache: which pages its rows read, what it charges, what it is refused beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, attention, model_info, prompt
from tests.unit.cache.test_cache_native import native_step
from tests.unit.kernels.test_page_bounds import slow_seen

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.page_selection import PageSelection
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.errors import BudgetError, RecipeError
from thrifty.kernels import dispatch

MODEL = model_info(layers=3, heads=4, kv_heads=2, head_dim=16)


def quest(**options: Any) -> CachePolicy:
    policy: CachePolicy = registry.build("cache", {"technique": "quest"} | options)
    return policy


def slow_step(model: ModelInfo, layer: int, tokens: list[int], page: int, pages: int) -> Floats:
    """The newest row's output [heads, d], every query head over the slots that it selects among all keys."""
    query, key, value = Driver(model).rows(layer, tokens, 0)
    outputs = []
    for head in range(model.heads):
        keys = key[:, head // model.group]
        seen = slow_seen(query[-1, head], keys, page, pages)
        logits = np.where(seen, keys @ query[-1, head] * model.scale, -np.inf)
        weights = np.exp(logits - logits.max())
        outputs.append(weights @ value[:, head // model.group] / weights.sum())
    return np.stack(outputs)


@pytest.mark.parametrize("page", [16, 32, 64])
def test_decoded_rows_read_the_pages_that_the_paper_selects(page: int) -> None:
    """Keys are fp32 here, and bounds bf16: the choice is that of exact bounds unless two differ by a rounding."""
    cache, tokens = Cache(MODEL), prompt(400)
    sequence = cache.create([quest(budget=4 * page, page=page, dense=1)])
    Driver(MODEL).prefill(sequence, tokens)
    for token in range(3):
        tokens.append(token)
        outputs = Driver(MODEL).step(sequence, [token])
        every = Driver(MODEL).dense(0, tokens, 1)
        assert np.allclose(outputs[0], every, atol=1e-5), "the first layer reads everything"
        for layer in (1, 2):
            assert np.allclose(outputs[layer][0], slow_step(MODEL, layer, tokens, page, 4), atol=1e-5)


def test_rows_of_a_prompt_read_everything() -> None:
    tokens, model = prompt(300), MODEL
    sequence = Cache(model).create([quest(budget=48, page=16, dense=0)])
    last = Driver(model).prefill(sequence, tokens)
    query, key, value = Driver(model).rows(2, tokens, 0)
    assert np.allclose(last[2], attention(model, query[-1:], key, value)[0], atol=1e-5)


def test_a_budget_beyond_the_sequence_changes_nothing() -> None:
    cache, tokens = Cache(MODEL), prompt(200)
    full, whole = cache.create(), cache.create([quest(budget=512, dense=0)])
    for sequence in (full, whole):
        Driver(MODEL).prefill(sequence, tokens)
    for token in range(5):
        expected = np.stack(Driver(MODEL).step(full, [token]))
        assert np.allclose(np.stack(Driver(MODEL).step(whole, [token])), expected, atol=1e-6)


@pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")
def test_bounds_are_charged_promised_and_given_back() -> None:
    model = model_info(layers=3, heads=4, kv_heads=2, head_dim=64, format="bf16")
    cache, policies = Cache(model), [quest(budget=192, dense=1)]
    sequence = cache.create(policies)
    native_step(sequence, prompt(128), decodes=False)
    for token in range(130):
        native_step(sequence, [token] * 8)
        promised = cache.footprint(policies, 128, sequence.length)
        assert cache.ledger.current <= promised.steady_bytes and cache.ledger.peak <= promised.peak_bytes
    held = cache.ledger.bytes_of("index")
    assert held == policies[0].selection(model).bounds_bytes(model, 32), "1168 tokens: two times 16 blocks"
    assert held == 2 * 2 * 32 * (2 * 2 * 64 + 1), "two layers, two heads, two bf16 a channel, a mark"
    sequence.park()
    assert cache.ledger.bytes_of("index") == 0 and sequence.native_view.charged == 0
    sequence.resume()
    native_step(sequence, [1])
    sequence.free()
    assert cache.ledger.current == 0


@pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")
def test_without_room_for_bounds_the_step_says_so() -> None:
    model = model_info(layers=3, heads=4, kv_heads=2, head_dim=64, format="bf16")
    full = Cache(model).footprint((), 128, 128).steady_bytes
    sequence = Cache(model, memory=full).create([quest(budget=192, dense=0)])
    sequence.reserve(128)
    with pytest.raises(BudgetError):
        _ = sequence.native


@pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")
def test_after_parking_and_in_forks_and_hits_rows_have_the_same_bits() -> None:
    model = model_info(layers=2, heads=4, kv_heads=2, head_dim=64, format="bf16")
    cache, tokens, policies = Cache(model), prompt(500), [quest(budget=96, page=32, dense=0)]
    first = cache.create(policies)
    native_step(first, tokens, decodes=False)
    cache.publish(first, tokens)
    hit = cache.create(policies, tokens=tokens)
    assert hit.hit == 448
    native_step(hit, tokens[448:], decodes=False)
    fork = first.fork()
    for step in range(40):
        expected = np.stack(native_step(first, [step]))
        for other in (fork, hit):
            if step % 13 == 0:
                other.park()
                other.resume()
            assert np.array_equal(np.stack(native_step(other, [step])), expected)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["h2o"], "'h2o' watches the attention of decoded rows"),
        (["fastgen"], "'fastgen' watches the attention of decoded rows"),
        (["kvmerger"], "'kvmerger' adds to them"),
        (["quest"], "both select what rows attend to"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(others: list[str], message: str) -> None:
    policies = [registry.build("cache", {"technique": name}) for name in [*others, "quest"]]
    with pytest.raises(RecipeError, match=message):
        Cache(MODEL).create(policies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 100}, "100 tokens is no whole number of pages of 64, three or more; use 192"),
        ({"budget": 128}, "use 192"),
        ({"budget": 1024, "page": 48}, "page"),
        ({"dense": -1}, "dense ≥ 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        quest(**options)


def test_first_layers_and_windowed_ones_are_left_out() -> None:
    model = model_info(windows=(None, 50, None, 50, None))
    assert quest().selection(model) == PageSelection((2, 4), 64, 16)
    assert quest(dense=0, page=16, budget=64).selection(model) == PageSelection((0, 2, 4), 16, 4)


@pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")
def test_slots_that_come_back_find_room_for_their_bounds() -> None:
    """Spans without a slot that is attended to are no part of the view: with all of them it has more blocks."""
    model = model_info(layers=2, heads=4, kv_heads=2, head_dim=64, format="bf16")
    cache = Cache(model)
    sequence, other = (cache.create([quest(budget=192, dense=0)]) for _ in range(2))
    for each in (sequence, other):
        native_step(each, prompt(64 * 20 + 10), decodes=False)
    for layer in range(2):
        sequence.select(layer, (np.arange(10), np.arange(10)))
    sequence.park()
    sequence.resume()
    native_step(sequence, [1], commit=0)
    for layer in range(2):
        sequence.select(layer, None)
    assert np.array_equal(np.stack(native_step(sequence, [2])), np.stack(native_step(other, [2])))
    for each in (sequence, other):
        each.free()
    assert cache.ledger.current == 0
