"""Every even head size from 16 to 256 in native code, against the formula of attention in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.kernels import rounded_attention
from tests.unit.kernels.native_pages import EXACT, QUICK_ISAS, Pages, aligned, native, open_view, pages, using

from thrifty.arrays import Floats
from thrifty.formats import kv, kv_batch
from thrifty.kernels import dispatch
from thrifty.kernels.reference.attention import Span

Doubles = np.ndarray[Any, np.dtype[np.float64]]

SIZES = (16, 18, 30, 48, 66, 80, 96, 120, 144, 250, 256)
PIECES = (
    ("int8", 130, 192),
    ("f32", 5, 64),
    ("int4", 64, 64),
    ("int2g16", 70, 128),
    ("int4g16", 17, 64),
    ("bf16", 203, 256),
)
CODES = [format for format in kv.FORMATS if kv.is_quantised(format)]


def formula(
    query: Doubles, keys: Doubles, values: Doubles, *, scale: float, window: int | None = None, softcap: float = 0.0,
    bias: Doubles | None = None,
) -> tuple[Doubles, Doubles]:  # fmt: skip
    """The last rows of one head [rows, d] over [slots, d]: results [rows, d], and probabilities [rows, slots]."""
    rows, slots = len(query), len(keys)
    scores = query @ keys.T * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    own, slot = np.arange(slots - rows, slots)[:, None], np.arange(slots)
    seen = (slot <= own) & (slot > own - (window or slots))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights @ values, weights


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def doubles(numbers: Any) -> Doubles:
    return np.asarray(numbers, np.float64)


def stored(made: Pages, head: int) -> tuple[Doubles, Doubles, Doubles]:
    """Keys, values and biases of a head as the cache holds them."""
    spans = made.spans[head]
    bias = [np.zeros(len(span.keys)) if span.bias is None else doubles(span.bias) for span in spans]
    return (
        np.concatenate([doubles(span.keys) for span in spans]),
        np.concatenate([doubles(span.values) for span in spans]),
        np.concatenate(bias),
    )


NEAR = 2e-5
"""How far results may be from the oracle that rounds what the kernels round."""


def compare(made: Pages, rows: int, group: int, seed: int, **options: Any) -> None:
    dim, kv_heads, slots = made.view.head_dim(0), made.view.kv_heads(0), made.view.tokens(0)
    query = normal(seed, rows, kv_heads * group, dim)
    sums = np.zeros((kv_heads * group, slots), np.float32)
    out = dispatch.attend(made.view, 0, query, scale=dim**-0.5, accumulate=sums, **options)
    for head in range(kv_heads * group):
        wanted, weights, slack = oracle(made, head // group, query[:, head], **options)
        compare_rows(out[:, head], wanted, slack)
        np.testing.assert_allclose(doubles(sums[head]), weights.sum(0), rtol=0, atol=NEAR)
        hidden = np.isneginf(stored(made, head // group)[2])
        assert not doubles(sums[head])[hidden].any()


def oracle(made: Pages, head: int, query: Floats, **options: Any) -> tuple[Doubles, Doubles, Doubles]:
    """Results, probabilities, and how far a row may be off where one operand is rounded to its other neighbour."""
    if native().isa() == "avx512":
        found = rounded_attention.attend(query, made, head, scale=query.shape[1] ** -0.5, **options)
        return found.out, found.probabilities, found.slack
    keys, values, bias = stored(made, head)
    exact = formula(doubles(query), keys, values, scale=query.shape[1] ** -0.5, bias=bias, **options)
    return *exact, np.zeros((len(query), 1))


def compare_rows(found: Floats, wanted: Doubles, slack: Doubles) -> None:
    """All rows within the slack, nearly all without any: a last bit seldom decides how an operand is rounded."""
    errors = np.abs(doubles(found) - wanted)
    assert (errors <= NEAR + slack).all()
    assert (errors.max(1) > NEAR).sum() <= 1 + len(found) // 5


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("dim", SIZES)
def test_spans_of_every_kind(isa: str, dim: int) -> None:
    with using(isa):
        cases: list[dict[str, Any]] = [{}, {"window": 100}, {"softcap": 20.0}, {"window": 400, "softcap": 5.0}]
        for number, options in enumerate(cases):
            made = pages(2, dim, PIECES, seed=dim, bias=number > 1)
            for rows, group in ((1, 1), (3, 3), (45, 2)):
                compare(made, rows, group, number, **options)


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("format", kv.FORMATS)
@pytest.mark.parametrize("dim", [16, 34, 80, 96, 126])
def test_every_format_at_page_edges(isa: str, format: str, dim: int) -> None:
    with using(isa):
        for tokens in (1, 63, 64, 65):
            compare(pages(1, dim, [(format, tokens, 128)], seed=tokens), min(tokens, 2), 2, tokens)


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("format", kv.FORMATS)
@pytest.mark.parametrize("dim", [64, 80])
def test_a_bias_of_minus_infinity_hides_a_slot(isa: str, format: str, dim: int) -> None:
    """Slots here and there, a whole page, and the first slot of all."""
    with using(isa):
        made = pages(1, dim, [(format, 256, 256), ("bf16", 70, 128)], seed=3, bias=True)
        bias = made.memory[1]
        bias[0] = bias[64:128] = bias[130:200:3] = -np.inf
        for rows in (1, 4, 60):
            compare(made, rows, 2, rows)
        compare(made, 30, 2, 5, window=150)


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("dim", [18, 80, 96])
def test_a_row_is_the_same_alone_and_in_any_chunk(isa: str, dim: int) -> None:
    made = pages(2, dim, PIECES)
    query = normal(1, 130, 6, dim)
    with using(isa):
        together = dispatch.attend(made.view, 0, query, scale=0.1, window=300)
        for rows in (1, 2, 8, 33, 65):
            some = dispatch.attend(made.view, 0, query[-rows:], scale=0.1, window=300)
            assert np.array_equal(some, together[-rows:])


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("format", ["bf16", "f32"])
@pytest.mark.parametrize("dim", SIZES)
def test_appended_rows_are_as_written(isa: str, format: str, dim: int) -> None:
    """Native appends leave the bytes that `kv.write` does, and attention finds them."""
    keys, values = normal(1, 150, 2, dim), normal(2, 150, 2, dim)
    with using(isa):
        made = open_view(1, 2, dim, 192, format)
        for start, stop in ((0, 1), (1, 100), (100, 150)):
            dispatch.append(made.view, 0, keys[start:stop], values[start:stop])
        for head in range(2):
            for page in range(3):
                part, count = slice(64 * page, min(64 * page + 64, 150)), min(64, 150 - 64 * page)
                wanted = aligned(kv.slab_bytes(format, 64, dim), fill=0xFF)
                kv.write(format, wanted, 64, dim, 0, keys[part, head], values[part, head])
                assert np.array_equal(made.memory[2 * page + head], wanted), count
        query = normal(3, 4, 4, dim)
        out = dispatch.attend(made.view, 0, query, scale=dim**-0.5)
        made.spans = [[Span(*kept(format, keys[:, head], values[:, head]))] for head in range(2)]
        made.slabs = [[(format, 150, 192, made.memory[0])]] * 2
        for head in range(4):
            wanted, _, slack = oracle(made, head // 2, query[:, head])
            compare_rows(out[:, head], wanted, slack)


def kept(format: str, *numbers: Floats) -> list[Floats]:
    """Numbers as a plain format keeps them."""
    return [one.astype(kv.DTYPES[format]).astype(np.float32) for one in numbers]


@pytest.mark.parametrize("isa", EXACT)
@pytest.mark.parametrize("format", CODES)
@pytest.mark.parametrize("dim", SIZES)
def test_pages_are_rounded_to_the_same_codes(isa: str, format: str, dim: int) -> None:
    """Native compression of bf16 and f32 slabs equals `kv.write` of the same tokens, padded channels included."""
    for source_format in ("bf16", "f32"):
        source = aligned(2 * kv.slab_bytes(source_format, 128, dim)).reshape(2, -1)
        target = aligned(2 * kv.slab_bytes(format, 128, dim)).reshape(2, -1)
        wanted = aligned(target.size).reshape(2, -1)
        for row in range(2):
            kv.write(source_format, source[row], 128, dim, 0, normal(row, 101, dim), normal(row + 2, 101, dim))
            kv.write(format, wanted[row], 128, dim, 0, *kv.read(source_format, source[row], 128, dim, 0, 101))
        ids = kv.FORMATS.index(source_format), kv.FORMATS.index(format)
        with using(isa):
            assert dispatch.compress(source, ids[0], 128, target, ids[1], 128, dim, 0, 101)
        for row in range(2):
            found, expected = (kv.read(format, slabs[row], 128, dim, 0, 101) for slabs in (target, wanted))
            assert all(np.array_equal(*both) for both in zip(found, expected, strict=True))
        kv_batch.quantise(source, source_format, 128, wanted, format, 128, dim, 0, 101)
        with using(isa):
            dispatch.compress(source, ids[0], 128, target, ids[1], 128, dim, 0, 101)
        assert np.array_equal(target, wanted)


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("dim", [16, 42, 80, 250])
@pytest.mark.parametrize("mean", [False, True])
def test_witnesses(isa: str, dim: int, mean: bool) -> None:
    made, group, rows, forced = pages(2, dim, PIECES, seed=1), 3, 40, 60
    query, judged = normal(2, rows, 2 * group, dim), [(4, 4, 300), (0, 90, 411)]
    with using(isa):
        table = dispatch.witness(made.view, 0, query, judged, forced=forced, scale=dim**-0.5, mean=mean)
        for head, (sinks, low, high) in enumerate(judged):
            chosen = np.r_[0:sinks, low:high, made.view.tokens(0) - forced : made.view.tokens(0)]
            members = [scores(made, head, query[:, head * group + member])[:, chosen] for member in range(group)]
            weights = np.stack([softmax_of_last(one, rows) for one in members])
            given = (weights.mean(0) if mean else weights.max(0)).max(0)[sinks : sinks + high - low]
            np.testing.assert_allclose(doubles(table[head, : high - low]), given, rtol=0, atol=NEAR)


def scores(made: Pages, head: int, query: Floats) -> Doubles:
    """Of rows [rows, d] and all slots, before any mask, as the kernels round: natural logarithms of weights."""
    scale = query.shape[1] ** -0.5
    if native().isa() == "avx512":
        pages_of_head = list(rounded_attention.pages_of(made, head))
        return rounded_attention.log2_scores(query, pages_of_head, scale=scale) * np.log(2)
    return doubles(query) @ stored(made, head)[0].T * scale


def softmax_of_last(scored: Doubles, rows: int) -> Doubles:
    """Of rows that are the last of the slots: [rows, slots]."""
    slots = scored.shape[1]
    seen = np.arange(slots) <= np.arange(slots - rows, slots)[:, None]
    weights = np.where(seen, np.exp(scored - scored.max()), 0)
    probabilities: Doubles = weights / weights.sum(1, keepdims=True)
    return probabilities


@pytest.mark.parametrize("dim", [0, 8, 14, 65, 258, 320 + 2, 1088])
def test_other_sizes_are_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"an even number from 16 to 256, or a multiple of 64 up to 1024, not {dim}"):
        native().View(1, 1, dim)


def test_the_sizes_that_are_taken() -> None:
    for dim in (*range(16, 257, 2), *range(320, 1025, 64)):
        assert native().View(1, 1, dim).head_dim(0) == dim
