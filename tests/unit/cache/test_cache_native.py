"""The native View is kept in step with the spans: attention through it equals the reference path."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_policy_conformance import build, recipes
from tests.unit.kernels.native_pages import using

from thrifty.arrays import Floats
from thrifty.cache.composition import rehearsing
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.watching.sums import Accumulator
from thrifty.kernels import dispatch

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")

MODEL = model_info(windows=(None, 100, None), heads=4, kv_heads=2, head_dim=64, format="bf16")
FP32 = ["avx2", pytest.param("portable", marks=pytest.mark.long)]
"""What multiplies in fp32: avx512 rounds queries to bf16."""


def native_step(
    sequence: SequenceCache, tokens: list[int], commit: int | None = None, decodes: bool = True
) -> list[Floats]:
    """One step as a plan does it: rows go into the view's open pages, attention reads the view."""
    driver, start = Driver(sequence.model), sequence.length
    sequence.reserve(len(tokens))
    assert sequence.native is not None
    sums = sequence.accumulate_rows(len(tokens))
    outputs = [
        native_rows(sequence, layer, *driver.rows(layer, tokens, start), sums, decodes)
        for layer in range(sequence.model.layers)
    ]
    accepted = len(tokens) if commit is None else commit
    if accepted < len(tokens):
        sequence.truncate(len(tokens) - accepted)
    sequence.remember(tokens[:accepted], start)
    sequence.commit(accepted)
    return outputs


def native_prefill(sequence: SequenceCache, tokens: list[int]) -> None:
    """A prompt layer by layer, as the engine runs one that is compressed."""
    driver, start, n = Driver(sequence.model), sequence.length, len(tokens) - sequence.length
    sequence.remember(tokens[start:], start)
    for layer in range(sequence.model.layers):
        sequence.begin_layer(layer, n)
        rows = driver.rows(layer, tokens[start:], start)
        assert sequence.native is not None
        native_rows(sequence, layer, *rows, sequence.accumulate_prompt(n))
        sequence.observe(layer, rows[0])
        sequence.seal_layer(layer)
    sequence.commit(n)


def native_rows(
    sequence: SequenceCache,
    layer: int,
    query: Floats,
    key: Floats,
    value: Floats,
    sums: Accumulator | None = None,
    decodes: bool = False,
) -> Floats:
    """Append rows of a layer to the view and attend, their probabilities into `sums`."""
    if sums is None or layer not in sums.layers:
        return _attend(sequence, layer, query, key, value, decodes=decodes)
    place = sums.layers.index(layer)
    if sums.sums.ndim == 3:
        return _attend(sequence, layer, query, key, value, into=sums.sums[place])
    parts = [slice(row, row + 1) for row in range(len(query))]
    return np.concatenate(
        [
            _attend(sequence, layer, query[part], key[part], value[part], into=sums.sums[part.start, place])
            for part in parts
        ]
    )


def _attend(
    sequence: SequenceCache,
    layer: int,
    query: Floats,
    *rows: Floats,
    into: Floats | None = None,
    decodes: bool = False,
) -> Floats:
    view, model = sequence.native, sequence.model
    dispatch.append(view, layer, *rows)
    places = max(view.tokens(layer, head) for head in range(model.kv_heads))
    sums = None if into is None else np.zeros((model.heads, places), np.float32)
    scale, window = model.scale, model.windows[layer]
    out = dispatch.attend(view, layer, query, scale=scale, window=window, accumulate=sums, decodes=decodes)
    if into is not None and sums is not None:
        into[:, :places] += sums
    return out


@pytest.mark.parametrize("names", recipes())
@pytest.mark.parametrize(
    "isa", ["avx2", pytest.param("portable", marks=pytest.mark.long)]
)  # fp32 products; avx512 rounds queries to bf16
def test_native_attention_equals_the_reference(names: list[str], isa: str) -> None:
    with using(isa):
        compare_with_reference(names)


def compare_with_reference(names: list[str]) -> None:
    driver, tokens = Driver(MODEL), prompt(300)
    reference, native = Cache(MODEL, disk=True).create(build(names)), Cache(MODEL, disk=True).create(build(names))
    driver.prefill(reference, tokens)
    if rehearsing(native.policies) is not None:
        driver.prefill(native, tokens)  # what the rows behind the prompt read is the engine's to run natively
    elif native.layer_major:
        native_prefill(native, tokens)
    else:
        native_step(native, tokens, decodes=False)
    for step in range(50):
        rows = [step] if step % 2 else [step] * 7
        ours, theirs = native_step(native, rows), driver.step(reference, rows)
        for layer in range(MODEL.layers):
            assert np.allclose(ours[layer], theirs[layer], atol=2e-4), f"step {step}, layer {layer}"
    for layer in range(MODEL.layers):
        places = [native.native.tokens(layer, head) for head in range(MODEL.kv_heads)]
        assert places == native.place_counts(layer)


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
    native_rows(sequence, 0, query, key, value)
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
