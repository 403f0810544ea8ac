"""Native attention over spans against the reference, and its independence of batch, chunking and span sizes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tests.unit.kernels.native_pages import ISAS, Pages, aligned, native, normal, open_view, pages, using

from thrifty.arrays import Array, Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.kernels import dispatch
from thrifty.kernels.reference import attention as reference
from thrifty.kernels.reference.packing import unpack_lanes

MIXED = (
    ("int8", 256, 256), ("int4", 100, 128), ("bf16", 64, 64), ("int2", 192, 192), ("f32", 64, 64),
    ("int2g16", 137, 192), ("int4g16", 50, 64), ("bf16", 290, 320),
)  # fmt: skip
SHAPES = [(64, 3, 3), (128, 1, 2), (256, 4, 1), (64, 7, 1), (192, 2, 1)]  # head_dim, group, kv_heads


def close_to_reference(made: Pages, query: Floats, group: int, window: int | None, softcap: float) -> None:
    slots = made.view.tokens(0, 0)
    sums = np.zeros((query.shape[1], slots), np.float32)
    scale = query.shape[2] ** -0.5
    out = dispatch.attend(made.view, 0, query, scale=scale, window=window, softcap=softcap, accumulate=sums)
    for head, spans in enumerate(made.spans):
        mine = slice(head * group, (head + 1) * group)
        wanted = reference.attend(query[:, mine], spans, scale=scale, window=window, softcap=softcap, column_sums=True)
        limits, mean = {"rtol": 1e-4, "atol": 5e-6}, 1e-5
        if native().isa() == "avx512" and made.formats != {"f32"}:  # products take operands of bf16, or of int8
            limits, mean = {"rtol": 2e-2, "atol": 2e-2}, 6e-3
        if native().isa() == "avx512" and made.formats & {"int4", "int2", "int4g16", "int2g16"}:
            limits, mean = {"rtol": 4e-2, "atol": 8e-2}, 2e-2
        np.testing.assert_allclose(out[:, mine], wanted.out, **limits)
        np.testing.assert_allclose(sums[mine], wanted.column_sums, **limits)
        assert np.abs(out[:, mine] - wanted.out).mean() < mean


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim, group, kv_heads", SHAPES)
@pytest.mark.parametrize(
    "window, softcap, bias", [(None, 0.0, False), (100, 0.0, True), (None, 20.0, True), (400, 5.0, False)]
)
def test_reference(
    isa: str, head_dim: int, group: int, kv_heads: int, window: int | None, softcap: float, bias: bool
) -> None:
    made = pages(kv_heads, head_dim, MIXED, bias=bias)
    query = normal(70, kv_heads * group, head_dim)
    with using(isa):
        close_to_reference(made, query, group, window, softcap)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", kv.FORMATS)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65])
def test_every_format_at_page_edges(isa: str, format: str, tokens: int) -> None:
    made = pages(1, 64, [(format, tokens, 128)])
    with using(isa):
        close_to_reference(made, normal(1, 2, 64), 2, None, 0.0)


@pytest.mark.parametrize("format", ["int8", "int4", "int2", "int4g16", "int2g16"])
@pytest.mark.parametrize(
    "head_dim, tokens, rows", [(64, 64, 1), (128, 192, 2), (64, 37, 5), (64, 20, 1), (256, 100, 3)]
)
def test_products_with_codes(format: str, head_dim: int, tokens: int, rows: int) -> None:
    """The equations of attention_codes.hpp slot by slot: scores from rounded q·scale and exact codes, weights alike."""
    made = pages(1, head_dim, [(format, tokens, 192)])
    query = normal(rows, 1, head_dim, seed=head_dim + tokens)
    sums = np.zeros((1, tokens), np.float32)
    with using("avx512"):
        out = dispatch.attend(made.view, 0, query, scale=0.125, accumulate=sums)
    bits = kv.codes(format).bits
    middle = ((1 << bits) - 1) / 2
    found = codes_of(made.memory[0], format, 192, head_dim)
    keys, key_scale, key_minimum, values, value_scale, value_minimum = (part[:tokens] for part in found)
    expected = np.zeros(tokens)
    for row in range(rows):
        seen = tokens - (rows - 1 - row)
        q = query[row, 0] * np.float32(0.125 * math.log2(math.e))  # scores are in units of log2
        base = (q.astype(np.float64) * (key_minimum + middle * key_scale)[:seen]).sum(1)
        score = (rounded(q * key_scale, bits)[:seen] * (keys[:seen].astype(np.float64) - middle)).sum(1) + base
        p = np.exp2(score - score.max())
        highest = np.array([score[: page - page % 64 + 64].max() for page in range(seen)])  # so far, page by page
        online = np.zeros(tokens)
        online[:seen] = np.exp2(score - highest)
        base = online[:, None] * (value_minimum + middle * value_scale)
        weights = rounded(online[:, None].astype(np.float32) * value_scale, bits)
        numbers = weights * (values.astype(np.float64) - middle) + base
        wanted = (numbers[:seen] * np.exp2(highest - score.max())[:, None]).sum(0) / p.sum()
        near = 2e-5 if bits == 8 else 2e-3  # a weight at the middle of two codes may fall to either
        np.testing.assert_allclose(out[row, 0], wanted, rtol=near, atol=near)
        expected[:seen] += p / p.sum()
    np.testing.assert_allclose(sums[0], expected, rtol=1e-5, atol=1e-6)


def rounded(x: Floats, bits: int) -> Array:
    """x [tokens, d] as codes are multiplied with it: whole steps, one step for 64 slots × 64 channels."""
    result = np.empty(x.shape)
    for start, column in itertools.product(range(0, len(x), 64), range(0, x.shape[1], 64)):
        part = x[start : start + 64, column : column + 64]
        step = np.abs(part).max() * np.float32(1 / (127 * 128 if bits == 8 else 127))
        result[start : start + 64, column : column + 64] = np.round(part * (1 / step)).astype(np.float64) * step
    return result


def codes_of(slab: Bytes, format: str, capacity: int, head_dim: int) -> list[Array]:
    """Codes, scales and minimums [tokens, head_dim] of keys, then of values."""
    bits, group = kv.codes(format).bits, kv.codes(format).group
    where = kv._arrays(format, slab, capacity, head_dim)
    found = [unpack_lanes(where.keys, bits, 64).swapaxes(1, 2).reshape(-1, head_dim)]
    by_group = where.key_parameters.astype(np.float32).swapaxes(0, 1)  # [scale or minimum, pages, group, d]
    found += [part.reshape(-1, head_dim).repeat(group, axis=0) for part in by_group]
    found.append(unpack_lanes(where.values, bits, head_dim).reshape(-1, head_dim))
    by_group = where.value_parameters.astype(np.float32).transpose(1, 0, 3, 2)  # [scale or minimum, pages, 64, d/g]
    return found + [part.reshape(-1, head_dim // group).repeat(group, axis=1) for part in by_group]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim, group, kv_heads", [(64, 3, 3), (256, 4, 1), (64, 9, 1)])
@pytest.mark.parametrize("window", [None, 1, 100])
def test_a_row_is_the_same_alone_and_in_any_chunk(
    isa: str, head_dim: int, group: int, kv_heads: int, window: int | None
) -> None:
    made = pages(kv_heads, head_dim, MIXED)
    query = normal(130, kv_heads * group, head_dim)
    with using(isa):
        together = dispatch.attend(made.view, 0, query, scale=0.1, window=window)
        for rows in (1, 2, 8, 33, 65):
            some = dispatch.attend(made.view, 0, query[-rows:], scale=0.1, window=window)
            assert np.array_equal(some, together[-rows:])


@pytest.mark.parametrize("isa", ISAS)
def test_rows_appended_one_by_one_or_in_chunks_or_as_one_span(isa: str) -> None:
    total, heads = 331, 2
    keys, values = normal(2, total, heads, 64)
    query = normal(total, heads * 3, 64, seed=1)
    results = []
    with using(isa):
        for sizes in ([total], [128, 128, 75], [1] * total):
            made, rows, start = open_view(1, heads, 64, total + 64), [], 0
            for size in sizes:
                part = slice(start, start + size)
                dispatch.append(made.view, 0, keys[part], values[part])
                rows.append(dispatch.attend(made.view, 0, query[part], scale=0.2))
                start += size
            results.append(np.concatenate(rows))
        whole = native().View(1, heads, 64)
        slabs = []
        for head in range(heads):
            slab = aligned(kv.slab_bytes("bf16", 384, 64))
            kv.write("bf16", slab, 384, 64, 0, keys[:, head], values[:, head])
            whole.push(0, head, slab, total, 384, kv.FORMATS.index("bf16"))
            slabs.append(slab)
        results.append(dispatch.attend(whole, 0, query, scale=0.2))
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_heads_of_different_lengths() -> None:
    made = pages(2, 64, [("bf16", 600, 640)])
    extra = pages(1, 64, [("int4", 320, 320)], seed=3)
    slab = extra.memory[0]
    made.view.push(0, 1, slab, 320, 320, kv.FORMATS.index("int4"), sealed=True)
    made.spans[1] += extra.spans[0]
    query = normal(5, 4, 64)
    out = dispatch.attend(made.view, 0, query, scale=0.1)
    for head, spans in enumerate(made.spans):
        mine = slice(2 * head, 2 * head + 2)
        wanted = reference.attend(query[:, mine], spans, scale=0.1).out
        np.testing.assert_allclose(out[:, mine], wanted, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_window_does_not_notice_dropped_pages(rows: int) -> None:
    pieces = [("bf16", 64, 64)] * 12
    kept, trimmed = pages(1, 64, pieces), pages(1, 64, pieces)
    query = normal(rows, 2, 64)
    trimmed.view.drop_front(0, 0, 5)
    assert trimmed.view.tokens(0, 0) == 7 * 64
    both = [dispatch.attend(made.view, 0, query, scale=0.1, window=200) for made in (kept, trimmed)]
    assert np.array_equal(*both)


def test_threads_do_not_change_a_bit() -> None:
    module = native()
    if module.available_threads() < 2:
        pytest.skip("one processor only")
    made, before = pages(2, 64, [("bf16", 700, 704)]), module.threads()
    results = []
    try:
        for threads, rows in itertools.product((1, 2), (1, 50)):
            module.set_threads(threads)
            query = normal(50, 4, 64)[-rows:]
            results.append(dispatch.attend(made.view, 0, query, scale=0.1)[-1])
    finally:
        module.set_threads(before)
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_wrong_calls_are_refused() -> None:
    made = pages(2, 64, [("bf16", 10, 64)])
    query = normal(1, 4, 64)
    with pytest.raises(KernelError, match="query heads .3. must be a multiple of the view's KV heads .2."):
        dispatch.attend(made.view, 0, normal(1, 3, 64), scale=1.0)
    with pytest.raises(KernelError, match=r"query has shape \(1, 4, 32\), expected \[rows, heads, 64\]"):
        dispatch.attend(made.view, 0, query[..., :32], scale=1.0)
    with pytest.raises(KernelError, match="11 query rows need at least as many slots; layer 0 head 0 holds 10"):
        dispatch.attend(made.view, 0, normal(11, 4, 64), scale=1.0)
    with pytest.raises(KernelError, match="window 0 must be at least 1"):
        dispatch.attend(made.view, 0, query, scale=1.0, window=0)
    with pytest.raises(KernelError, match=r"accumulate is float32 \(4, 9\), expected float32 \(4, 10\)"):
        dispatch.attend(made.view, 0, query, scale=1.0, accumulate=np.zeros((4, 9), np.float32))
