"""Rehearsals whose rows native code appended: scored in its view, they give what the policy's formula gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_cache_native import native_step
from tests.unit.kernels.native_pages import using

from thrifty.arrays import Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policies.kvzip import Kvzip
from thrifty.cache.pool import Cache
from thrifty.cache.rehearsing_policy import Reduction
from thrifty.cache.sequence import SequenceCache
from thrifty.kernels import dispatch

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native module is not built or turned off")

MODEL = model_info(windows=(None, 100, None), heads=4, kv_heads=2, head_dim=64, format="bf16")
EXACT = "avx2" if dispatch.native() is not None and dispatch.require().isa_available("avx2") else "portable"


def scores(sequence: SequenceCache, tokens: Sequence[int], chunk: int, native: bool) -> tuple[list[list[Floats]], bool]:
    """What all rehearsals of a committed prompt give, and whether any key was read for the formula."""
    driver, start = Driver(sequence.model), sequence.length
    run, read = sequence.begin_rehearsals(tokens), False
    for piece in run.pieces:
        run.begin(piece)
        for layer in range(sequence.model.layers):
            for first in range(0, len(piece.tokens), chunk):
                query, key, value = driver.rows(layer, piece.tokens[first : first + chunk], start + first)
                if native:
                    dispatch.append(sequence.native, layer, key, value)
                else:
                    sequence.append(layer, key, value)
                run.observe(layer, query)
        read = read or run._keys is not None
        run.end()
    found = run.scores()
    run.close()
    sequence.rehearsals = None
    return found, read


def compare(sequence: SequenceCache, tokens: Sequence[int], chunk: int, isa: str = EXACT) -> None:
    twin = sequence.fork()
    assert sequence.rehearses is not None
    asked = bool(sequence.rehearses.rehearsals(sequence.model, tokens, sequence.prompt))
    expected, read = scores(twin, tokens, chunk, native=False)
    assert read == asked, "a prompt of nothing but sinks is not rehearsed"
    with using(isa):
        found, read = scores(sequence, tokens, chunk, native=True)
    assert not read, "native code read the keys where they lie"
    near: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2} if isa == "avx512" else {"rtol": 1e-4, "atol": 5e-6}
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert np.array_equal(np.isinf(one), np.isinf(other))
            assert np.allclose(one, other, **near)
    twin.free()
    sequence.free()


def filled(model: ModelInfo, policy: Kvzip, tokens: Sequence[int]) -> SequenceCache:
    sequence = Cache(model).create([policy])
    native_step(sequence, list(tokens))
    return sequence


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(6, 260),
    piece=st.integers(30, 200),
    chunk=st.integers(1, 90),
    sinks=st.integers(1, 9),
    group=st.sampled_from(["max", "mean"]),
    softcap=st.sampled_from([None, 5.0]),
)
def test_native_scores_are_those_of_the_formula(
    length: int, piece: int, chunk: int, sinks: int, group: Reduction, softcap: float | None
) -> None:
    model = dataclasses.replace(MODEL, softcap=softcap)
    tokens = prompt(length)
    compare(filled(model, Kvzip(chunk=piece, sinks=sinks, group=group), tokens), tokens, chunk)


def test_products_of_bf16_stay_near() -> None:
    compare(filled(MODEL, Kvzip(chunk=100), prompt(300)), prompt(300), 64, "avx512")


@pytest.mark.parametrize("group", ["max", "mean"])
def test_a_second_turn_sees_heads_of_different_lengths(group: Reduction) -> None:
    driver, tokens = Driver(MODEL), prompt(310)
    sequence = Cache(MODEL).create([Kvzip(keep=0.4, chunk=90, group=group)])
    driver.prefill(sequence, tokens[:200])
    lengths = {sequence.slots(layer, head) for layer in sequence.policy_layers for head in range(2)}
    assert len(lengths) > 1, "the first turn left the heads ragged"
    native_step(sequence, tokens[200:])
    compare(sequence, tokens, 70)


def test_scores_do_not_depend_on_chunks_to_the_bit() -> None:
    tokens = prompt(200)
    found = [scores(filled(MODEL, Kvzip(chunk=150), tokens), tokens, chunk, native=True)[0] for chunk in (1, 64, 77)]
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert all(np.array_equal(one, two) for one, two in zip(mine, theirs, strict=True))


def test_a_formula_of_its_own_is_asked() -> None:
    class Own(Kvzip):
        reduction = None  # type: ignore[assignment]

        def score_rows(self, model: ModelInfo, queries: Floats, keys: Floats, seen: slice) -> Floats:
            return np.full(seen.stop - seen.start, 0.25, np.float32)

    found, read = scores(filled(MODEL, Own(chunk=50), prompt(120)), prompt(120), 64, native=True)
    assert read
    assert all(bool((one[4:] == 0.25).all()) for heads in found for one in heads)


def test_slots_with_a_bias_are_the_formulas() -> None:
    sequence = filled(MODEL, Kvzip(chunk=50), prompt(128))
    sequence.spans[0][0].segment.set_bias(0, 1, np.ones(9, np.float32))
    sequence.replace_spans(0, sequence.spans[0])
    twin = sequence.fork()
    found, read = scores(sequence, prompt(128), 64, native=True)
    assert read
    expected, _ = scores(twin, prompt(128), 64, native=False)
    assert all(np.array_equal(one, other) for one, other in zip(found[0], expected[0], strict=True))
