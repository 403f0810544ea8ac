"""The attention oracle, against a dense softmax over everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.errors import KernelError
from thrifty.kernels.reference.attention import Span, attend


def random_spans(lengths: list[int], dimension: int, biased: bool, seed: int = 0) -> list[Span]:
    generator = torch.Generator().manual_seed(seed)
    spans = []
    for index, length in enumerate(lengths):
        keys, values = torch.randn(2, length, dimension, generator=generator)
        bias = torch.randn(length, generator=generator) if biased and index % 2 == 0 else None
        spans.append(Span(keys, values, bias))
    return spans


def dense(
    queries: Tensor, spans: list[Span], scale: float, causal: bool, window: int | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """Output and probabilities [rows, queries, slots] with the whole matrix, in float64."""
    keys = torch.cat([span.keys for span in spans]).double()
    values = torch.cat([span.values for span in spans]).double()
    bias = torch.cat([torch.zeros(len(s.keys)) if s.bias is None else s.bias for s in spans]).double()
    rows, slots = len(queries), len(keys)
    logits = torch.einsum("rqd,sd->rqs", queries.double(), keys) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits += bias
    for row in range(rows):
        limit = slots - (rows - 1 - row) if causal else slots
        logits[row, :, limit:] = -torch.inf
        if window is not None:
            logits[row, :, : max(0, limit - window)] = -torch.inf
    probabilities = logits.softmax(-1)
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
    queries = torch.randn(rows, 3, 16)
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
    assert torch.allclose(found.out.double(), out, atol=1e-5)
    assert found.probabilities is not None
    assert found.column_sums is not None
    assert torch.allclose(found.probabilities.double(), probabilities, atol=1e-5)
    assert torch.allclose(found.column_sums.double(), probabilities.sum(0), atol=1e-4)


def test_statistics_are_computed_only_when_asked_for() -> None:
    found = attend(torch.randn(2, 1, 8), random_spans([5], 8, False), scale=1.0)
    assert found.column_sums is None
    assert found.probabilities is None


def test_a_chunk_equals_its_rows_alone() -> None:
    queries, (span,) = torch.randn(200, 2, 16), random_spans([200], 16, False)
    whole = attend(queries, [span], scale=0.25).out
    for row in (0, 63, 64, 130, 199):
        seen = Span(span.keys[: row + 1], span.values[: row + 1])
        alone = attend(queries[row : row + 1], [seen], scale=0.25).out[0]
        assert torch.allclose(whole[row], alone, atol=1e-6)


def test_logits_of_any_size_stay_finite() -> None:
    spans = random_spans([100], 8, False)
    found = attend(torch.randn(4, 2, 8) * 1e4, spans, scale=10.0)
    assert bool(torch.isfinite(found.out).all())


def test_gradients_equal_those_of_the_dense_softmax() -> None:
    queries = torch.randn(70, 2, 8, requires_grad=True)
    spans = [Span(torch.randn(90, 8, requires_grad=True), torch.randn(90, 8, requires_grad=True))]
    leaves = [queries, spans[0].keys, spans[0].values]
    upstream = torch.randn(70, 2, 8)
    found = torch.autograd.grad((attend(queries, spans, scale=0.5, window=80).out * upstream).sum(), leaves)
    expected = torch.autograd.grad((dense(queries, spans, 0.5, True, 80, 0.0)[0] * upstream).sum(), leaves)
    for mine, reference in zip(found, expected, strict=True):
        assert torch.allclose(mine, reference, atol=1e-5)


def test_memory_is_not_quadratic() -> None:
    """8k × 8k probabilities would take 256 MB; the largest tensor here is a block of them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    tokens = 2048
    queries, spans = torch.randn(tokens, 1, 4), random_spans([tokens], 4, False)
    with Largest() as largest:
        attend(queries, spans, scale=1.0, column_sums=True)
    assert largest.elements <= tokens * 64


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(KernelError, match="3 query rows over 2 slots"):
        attend(torch.randn(3, 1, 8), random_spans([2], 8, False), scale=1.0)
    with pytest.raises(KernelError, match="window 0 must be at least 1"):
        attend(torch.randn(1, 1, 8), random_spans([2], 8, False), scale=1.0, window=0)
