"""The attention oracle, against a dense softmax over everything."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.arrays import Floats, softmax
from thrifty.errors import KernelError
from thrifty.kernels.reference.attention import Span, attend


def normal(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_spans(lengths: list[int], dimension: int, biased: bool, seed: int = 0) -> list[Span]:
    random = np.random.default_rng(seed)
    spans = []
    for index, length in enumerate(lengths):
        keys, values = random.standard_normal((2, length, dimension), np.float32)
        bias = random.standard_normal(length, np.float32) if biased and index % 2 == 0 else None
        spans.append(Span(keys, values, bias))
    return spans


def dense(
    queries: Floats, spans: list[Span], scale: float, causal: bool, window: int | None, softcap: float
) -> tuple[Floats, Floats]:
    """Output and probabilities [rows, queries, slots] with the whole matrix, in float64."""
    keys = np.concatenate([span.keys for span in spans], dtype=np.float64)
    values = np.concatenate([span.values for span in spans], dtype=np.float64)
    bias = np.concatenate([np.zeros(len(s.keys)) if s.bias is None else s.bias for s in spans], dtype=np.float64)
    rows, slots = len(queries), len(keys)
    logits = np.einsum("rqd,sd->rqs", queries, keys) * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    logits += bias
    for row in range(rows):
        limit = slots - (rows - 1 - row) if causal else slots
        logits[row, :, limit:] = -np.inf
        if window is not None:
            logits[row, :, : max(0, limit - window)] = -np.inf
    probabilities = softmax(logits)
    return probabilities @ values, probabilities


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 150), min_size=1, max_size=4),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 130)),
    st.sampled_from([0.0, 2.0]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_attention_equals_the_dense_softmax(
    rows: int, lengths: list[int], causal: bool, window: int | None, softcap: float, biased: bool
) -> None:
    rows = min(rows, sum(lengths))
    queries = normal(rows, 3, 16)
    spans = random_spans(lengths, 16, biased)
    found = attend(
        queries,
        spans,
        scale=0.3,
        causal=causal,
        window=window,
        softcap=softcap,
        column_sums=True,
        probabilities=True,
    )
    out, probabilities = dense(queries, spans, 0.3, causal, window, softcap)
    assert np.allclose(found.out, out, atol=1e-5)
    assert found.probabilities is not None
    assert found.column_sums is not None
    assert np.allclose(found.probabilities, probabilities, atol=1e-5)
    assert np.allclose(found.column_sums, probabilities.sum(0), atol=1e-4)


def test_slots_with_a_bias_of_minus_infinity_are_not_there() -> None:
    (span,) = random_spans([200], 16, False)
    seen = np.ones(200, bool)
    seen[:70] = seen[100:150] = False  # the first block whole, a later one in part
    hidden = Span(span.keys, span.values, np.where(seen, np.float32(0), np.float32(-np.inf)))
    queries = normal(3, 2, 16)
    found = attend(queries, [hidden], scale=0.3, column_sums=True)
    expected = attend(queries, [Span(span.keys[seen], span.values[seen])], scale=0.3, column_sums=True)
    assert np.allclose(found.out, expected.out, atol=1e-6)
    assert found.column_sums is not None and expected.column_sums is not None
    assert np.allclose(found.column_sums[:, seen], expected.column_sums, atol=1e-5)
    assert not found.column_sums[:, ~seen].any()


def test_statistics_are_computed_only_when_asked_for() -> None:
    found = attend(normal(2, 1, 8), random_spans([5], 8, False), scale=1.0)
    assert found.column_sums is None
    assert found.probabilities is None


def test_a_chunk_equals_its_rows_alone() -> None:
    queries, (span,) = normal(200, 2, 16), random_spans([200], 16, False)
    whole = attend(queries, [span], scale=0.25).out
    for row in (0, 63, 64, 130, 199):
        seen = Span(span.keys[: row + 1], span.values[: row + 1])
        alone = attend(queries[row : row + 1], [seen], scale=0.25).out[0]
        assert np.allclose(whole[row], alone, atol=1e-6)


def test_logits_of_any_size_stay_finite() -> None:
    spans = random_spans([100], 8, False)
    found = attend(normal(4, 2, 8) * 1e4, spans, scale=10.0)
    assert bool(np.isfinite(found.out).all())


def test_memory_is_not_quadratic() -> None:
    """2k × 2k probabilities would take 16 MB; no array here is larger than a block of them."""
    tokens = 2048
    queries, spans = normal(tokens, 1, 4), random_spans([tokens], 4, False)
    tracemalloc.start()
    try:
        attend(queries, spans, scale=1.0, column_sums=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 8 * tokens * 64 * 4


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(KernelError, match="3 query rows over 2 slots"):
        attend(normal(3, 1, 8), random_spans([2], 8, False), scale=1.0)
    with pytest.raises(KernelError, match="window 0 must be at least 1"):
        attend(normal(1, 1, 8), random_spans([2], 8, False), scale=1.0, window=0)
