"""Sequences: append, attend, commit, truncate, fork, windows, layer-major prefill."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, contents, model_info, prompt, same

from thrifty.arrays import BFLOAT16
from thrifty.cache.pool import Cache
from thrifty.errors import BudgetError, PromptError


@pytest.mark.parametrize("windows", [(None, None), (None, 40), (100, None, 100)])
@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_attention_equals_plain_softmax(windows: tuple[int | None, ...], format: str) -> None:
    model = model_info(windows=windows, format=format)
    driver, cache = Driver(model), Cache(model)
    sequence, tokens = cache.create(), prompt(230)
    driver.prefill(sequence, tokens[:150], chunk=64)
    for place in range(150, 230):
        found = driver.step(sequence, tokens[place : place + 1])
        if place % 13 == 0 or place == 229:
            for layer in range(model.layers):
                expected = driver.dense(layer, tokens[: place + 1], 1)
                assert np.allclose(found[layer], expected, atol=1e-5 if format == "f32" else 3e-2)


@pytest.mark.parametrize("windows", [(None, None), (None, 40)])
def test_chunking_and_layer_order_do_not_change_a_bit(windows: tuple[int | None, ...]) -> None:
    model = model_info(windows=windows)
    driver, cache = Driver(model), Cache(model)
    tokens = prompt(300)
    outputs = []
    for chunk in (64, 128, 7, 300):
        sequence = cache.create()
        driver.prefill(sequence, tokens, chunk)
        outputs.append(np.stack(driver.step(sequence, [5])))
    for other in outputs[1:]:
        assert np.array_equal(outputs[0], other)


def test_windowed_layers_hold_only_their_window_and_give_pages_back() -> None:
    model = model_info(windows=(None, 100))
    driver, cache = Driver(model), Cache(model)
    sequence = cache.create()
    driver.prefill(sequence, prompt(640))
    assert sequence.slots(0) == 640
    assert 99 <= sequence.slots(1) <= 99 + 128
    held = cache.tiers.arena.used
    for token in prompt(128, seed=2):
        driver.step(sequence, [token])
    page = cache.tiers.arena.rounded(sequence.spans[0][0].segment.slab_bytes * 2)
    assert cache.tiers.arena.used == held + 2 * page, "two global pages more, as many windowed ones as before"


def test_rejected_rows_leave_no_trace() -> None:
    model = model_info(windows=(None, 70))
    driver, cache = Driver(model), Cache(model)
    tokens = prompt(200)
    plain, drafted = cache.create(), cache.create()
    driver.prefill(plain, tokens[:120])
    driver.prefill(drafted, tokens[:120])
    place = 120
    while place < 190:
        accepted = 1 + place % 4
        driver.step(drafted, [*tokens[place : place + accepted], 7, 7, 7], commit=accepted)
        driver.step(plain, tokens[place : place + accepted])
        place += accepted
    same(plain, drafted)
    assert np.array_equal(np.stack(driver.step(plain, [3])), np.stack(driver.step(drafted, [3])))


def test_truncating_committed_tokens_is_as_if_they_had_never_been() -> None:
    model = model_info()
    driver, cache = Driver(model), Cache(model)
    tokens = prompt(300)
    for length in (0, 10, 64, 130, 190, 299):
        short, cut = cache.create(), cache.create()
        driver.prefill(short, tokens[:length])
        driver.prefill(cut, tokens)
        cut.truncate(300 - length)
        assert cut.length == length
        assert np.array_equal(np.stack(driver.step(short, [3])), np.stack(driver.step(cut, [3])))


def test_truncating_below_a_window_is_refused_with_the_number_that_works() -> None:
    model = model_info(windows=(None, 70))
    driver, cache = Driver(model), Cache(model)
    sequence = cache.create()
    driver.prefill(sequence, prompt(400))
    with pytest.raises(PromptError, match=r"go back to (\d+) or more") as caught:
        sequence.truncate(300)
    assert sequence.length == 400
    lowest = int(str(caught.value).split("go back to ")[-1].split()[0])
    sequence.truncate(400 - lowest)
    reference = cache.create()
    driver.prefill(reference, prompt(400)[:lowest])
    assert np.array_equal(np.stack(driver.step(reference, [3])), np.stack(driver.step(sequence, [3])))


def test_discard_drops_what_some_layers_had_taken() -> None:
    model = model_info()
    driver, cache = Driver(model), Cache(model)
    sequence = cache.create()
    driver.prefill(sequence, prompt(70))
    twin = sequence.fork()
    sequence.reserve(2)
    _, key, value = driver.rows(0, [1, 2], 70)
    sequence.append(0, key, value)
    with pytest.raises(PromptError, match="uncommitted rows"):
        sequence.commit(2)
    sequence.discard()
    assert np.array_equal(np.stack(driver.step(sequence, [3])), np.stack(driver.step(twin, [3])))


def test_forks_share_pages_and_then_go_their_own_ways() -> None:
    model = model_info(windows=(None, 90))
    driver, cache = Driver(model), Cache(model)
    sequence = cache.create()
    tokens = prompt(200)
    driver.prefill(sequence, tokens)
    before = cache.tiers.arena.used
    fork = sequence.fork()
    assert cache.tiers.arena.used - before < before / 2, "only the open pages are copied"
    ours, theirs = driver.step(sequence, [1]), driver.step(fork, [2])
    alone = cache.create()
    driver.prefill(alone, tokens)
    assert np.array_equal(np.stack(driver.step(alone, [2])), np.stack(theirs))
    assert not np.array_equal(np.stack(ours), np.stack(theirs))
    sequence.free()
    for token in prompt(100, seed=3):
        assert np.array_equal(np.stack(driver.step(alone, [token])), np.stack(driver.step(fork, [token])))
    alone.free()
    fork.free()
    assert cache.tiers.arena.used == 0 and cache.ledger.current == 0


def test_a_full_budget_is_refused_and_changes_nothing() -> None:
    model = model_info()
    cache = Cache(model, memory=100_000)
    driver, sequence = Driver(model), cache.create()
    length = 0
    with pytest.raises(BudgetError, match=r"budget of \d+ bytes"):
        while True:
            driver.step(sequence, [1])
            length += 1
    assert sequence.length == length > 0
    held = cache.tiers.arena.used
    with pytest.raises(BudgetError):
        sequence.reserve(1)
    assert cache.tiers.arena.used == held
    sequence.free()
    assert cache.ledger.current == 0


def test_appending_without_room_is_refused() -> None:
    model = model_info()
    driver, sequence = Driver(model), Cache(model).create()
    _, key, value = driver.rows(0, [1], 0)
    with pytest.raises(PromptError, match="reserve them first"):
        sequence.append(0, key, value)


def test_contents_are_what_was_appended() -> None:
    model = model_info(format="bf16")
    driver, sequence = Driver(model), Cache(model).create()
    tokens = prompt(128)
    driver.prefill(sequence, tokens)
    for layer, heads in enumerate(contents(sequence)):
        _, key, value = driver.rows(layer, tokens, 0)
        for head, (keys, values, positions) in enumerate(heads):
            assert np.array_equal(keys, key[:, head].astype(BFLOAT16).astype(np.float32))
            assert np.array_equal(values, value[:, head].astype(BFLOAT16).astype(np.float32))
            assert positions.tolist() == list(range(128))
