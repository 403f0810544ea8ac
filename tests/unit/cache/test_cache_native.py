"""The native View is kept in step with the spans: attention through it equals the reference path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_policy_conformance import COMPOSED, SINGLE, build
from tests.unit.kernels.native_pages import using

from thrifty.arrays import Floats
from thrifty.cache.composition import rehearsing, wanted
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.kernels import dispatch

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")

MODEL = model_info(windows=(None, 100, None), heads=4, kv_heads=2, head_dim=64, format="bf16")
FULLY_NATIVE = [names for names in SINGLE + COMPOSED if not wanted(build(names), MODEL).decode]


def native_step(sequence: SequenceCache, tokens: list[int], commit: int | None = None) -> list[Floats]:
    """One step as a plan does it: rows go into the view's open pages, attention reads the view."""
    driver, start = Driver(sequence.model), sequence.length
    sequence.reserve(len(tokens))
    outputs = []
    for layer in range(sequence.model.layers):
        query, key, value = driver.rows(layer, tokens, start)
        outputs.append(_attend(sequence.native, sequence, layer, query, key, value))
    accepted = len(tokens) if commit is None else commit
    if accepted < len(tokens):
        sequence.truncate(len(tokens) - accepted)
    sequence.commit(accepted)
    return outputs


def native_prefill(sequence: SequenceCache, tokens: list[int]) -> None:
    driver, start, n = Driver(sequence.model), sequence.length, len(tokens) - sequence.length
    for layer in range(sequence.model.layers):
        sequence.begin_layer(layer, n)
        query, key, value = driver.rows(layer, tokens[start:], start)
        sums = np.zeros((MODEL.heads, n), np.float32) if sequence.statistics.column_sums else None
        _attend(sequence.native, sequence, layer, query, key, value, sums=sums)
        sequence.observe(layer, query, None if sums is None else np.split(sums, MODEL.kv_heads))
        sequence.seal_layer(layer)
    sequence.commit(n)


def _attend(view: Any, sequence: SequenceCache, layer: int, *rows: Floats, sums: Floats | None = None) -> Floats:
    query, key, value = (one.contiguous() for one in rows)
    dispatch.append(view, layer, key, value)
    scale, window = sequence.model.scale, sequence.model.windows[layer]
    return dispatch.attend(view, layer, query, scale=scale, window=window, accumulate=sums)


@pytest.mark.parametrize("names", FULLY_NATIVE, ids="+".join)
@pytest.mark.parametrize("isa", ["avx2", "portable"])  # fp32 products; avx512 rounds queries to bf16
def test_native_attention_equals_the_reference(names: list[str], isa: str) -> None:
    with using(isa):
        compare_with_reference(names)


def compare_with_reference(names: list[str]) -> None:
    driver, tokens = Driver(MODEL), prompt(300)
    reference, native = Cache(MODEL).create(build(names)), Cache(MODEL).create(build(names))
    driver.prefill(reference, tokens)
    if rehearsing(native.policies) is not None:
        driver.prefill(native, tokens)  # what the rows behind the prompt read is the engine's to run natively
    elif native.layer_major:
        native_prefill(native, tokens)
    else:
        native_step(native, tokens)
    for step in range(50):
        rows = [step] if step % 2 else [step] * 7
        ours, theirs = native_step(native, rows), driver.step(reference, rows)
        for layer in range(MODEL.layers):
            assert np.allclose(ours[layer], theirs[layer], atol=2e-4), f"step {step}, layer {layer}"
    for layer in range(MODEL.layers):
        for head in range(MODEL.kv_heads):
            assert native.native.tokens(layer, head) == native.slots(layer, head)


def test_rejected_rows_are_truncated_natively() -> None:
    tokens = prompt(200)
    plain, drafted = Cache(MODEL).create(), Cache(MODEL).create()
    for sequence in (plain, drafted):
        native_step(sequence, tokens[:120])
    for place in range(120, 200, 2):
        native_step(drafted, [*tokens[place : place + 2], 7, 7], commit=2)
        native_step(plain, tokens[place : place + 2])
    assert np.array_equal(np.stack(native_step(plain, [1])), np.stack(native_step(drafted, [1])))


def test_a_step_that_failed_in_the_middle_is_discarded() -> None:
    sequence, twin = Cache(MODEL).create(), Cache(MODEL).create()
    for one in (sequence, twin):
        native_step(one, prompt(100))
    query, key, value = Driver(MODEL).rows(0, [1, 2], 100)
    sequence.reserve(2)
    _attend(sequence.native, sequence, 0, query, key, value)
    sequence.discard()
    assert np.array_equal(np.stack(native_step(sequence, [3])), np.stack(native_step(twin, [3])))


def test_forks_and_prefix_hits_equal_going_on_alone() -> None:
    cache, tokens = Cache(MODEL), prompt(400)
    first = cache.create()
    for start in range(0, 400, 100):
        native_step(first, tokens[start : start + 100])
    fork = first.fork()
    cache.publish(first, tokens)
    hit = cache.create(tokens=tokens)
    assert hit.hit == 384
    native_step(hit, tokens[384:])
    for step in range(70):
        expected = np.stack(native_step(first, [step]))
        assert np.array_equal(np.stack(native_step(fork, [step])), expected)
        assert np.array_equal(np.stack(native_step(hit, [step])), expected)


def test_steps_that_need_the_reference_path_say_so() -> None:
    cache = Cache(MODEL, disk=True)
    sequence = cache.create()
    native_step(sequence, prompt(128))
    sequence.select(0, (np.arange(3), np.arange(3)))
    assert sequence.native is None
    sequence.select(0, None)
    sequence.spans[0][0].segment.to_disk()
    sequence.replace_spans(0, sequence.spans[0])
    assert sequence.native is None
    sequence.spans[0][0].segment.to_memory()
    assert sequence.native is not None
    small = Cache(model_info(head_dim=8)).create()
    assert small.native is None, "native views take 16 channels or more"
