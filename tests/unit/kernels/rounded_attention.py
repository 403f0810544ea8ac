"""The oracle of attention where products take rounded operands (AVX-512): the same roundings, all else in fp64.

Queries and weights meet bf16 pages as bf16. Codes meet them, multiplied with the codes' scales, as whole numbers with
one step for 64 channels of a page: of 15 bits for codes of 8 bits, else of 8. Sums of the softmax are of exact weights.
What is left is the order of sums, and a weight that its own last bit rounds up here and down there: `Rounded.slack`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.unit.kernels.native_pages import Pages

from thrifty.arrays import BFLOAT16, Floats
from thrifty.formats import kv
from thrifty.kernels.reference.packing import unpack_lanes

Doubles = np.ndarray[Any, np.dtype[np.float64]]
LOG2E = np.float32(1.44269504088896341)
CHUNK_PAGES = 4


@dataclass(frozen=True)
class Part:
    """64 numbers along the summed axis of a page. codes [64 summed, outputs], scales and minimums [64 summed, outputs]:
    fp32, `groups` different columns each."""

    codes: Doubles
    scales: Floats
    minimums: Floats


@dataclass(frozen=True)
class Page:
    """Up to 64 slots. keys [slots, d] and values [slots, d] of plain formats, parts of the others: of keys by 64
    channels (outputs: slots), of values by 64 channels (summed: slots). bias [slots]."""

    format: str
    slots: int
    bias: Doubles
    keys: Floats | None = None
    values: Floats | None = None
    key_parts: tuple[Part, ...] = ()
    value_parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Rounded:
    """out [rows, d]; probabilities [rows, slots]; slack [rows, 1]: what one weight rounded the other way adds."""

    out: Doubles
    probabilities: Doubles
    slack: Doubles


def attend(
    query: Floats, made: Pages, head: int, *, scale: float, window: int | None = None, softcap: float = 0.0
) -> Rounded:
    """The last rows of one head: query fp32 [rows, d] over the pages of a KV head."""
    pages = list(pages_of(made, head))
    scored = log2_scores(query, pages, scale=scale, softcap=softcap)
    rows, slots = scored.shape
    own, slot = np.arange(slots - rows, slots)[:, None], np.arange(slots)
    scored = np.where((slot <= own) & (slot > own - (window or slots)), scored, -np.inf)
    top = np.full((rows, 1), -np.inf)
    total, out, slack = np.zeros((rows, 1)), np.zeros((rows, query.shape[1])), np.zeros((rows, 1))
    chunk_top = top
    first = 0
    for number, page in enumerate(pages):
        if number % CHUNK_PAGES == 0:
            chunk_top = np.full((rows, 1), -np.inf)
        here = scored[:, first : first + page.slots]
        first += page.slots
        chunk_top = np.maximum(chunk_top, here.max(1, keepdims=True))
        weights = _power(here, chunk_top)
        summed, step = _values(weights.astype(np.float32), page, query.shape[1])
        new_top = np.maximum(top, chunk_top)
        before, now = _power(top, new_top), _power(chunk_top, new_top)
        total = total * before + weights.sum(1, keepdims=True) * now
        out, slack = out * before + summed * now, np.maximum(slack * before, step * now)
        top = new_top
    return Rounded(out / total, _power(scored, top) / total, slack / total)


def log2_scores(query: Floats, pages: list[Page], *, scale: float, softcap: float = 0.0) -> Doubles:
    """Scores [rows, slots] in units of log2, with soft cap and biases, before any mask."""
    query = query * (np.float32(scale) * LOG2E)
    scored = np.concatenate([_scores(query, page) for page in pages], axis=1)
    if softcap:
        cap = softcap * float(LOG2E)
        scored = cap * np.tanh(scored / cap)
    return scored + np.concatenate([page.bias for page in pages]) * float(LOG2E)


def pages_of(made: Pages, head: int) -> Iterator[Page]:
    """The pages of a KV head in the view's order."""
    for (format, tokens, capacity, slab), span in zip(made.slabs[head], made.spans[head], strict=True):
        bias = np.zeros(tokens) if span.bias is None else np.asarray(span.bias, np.float64)
        for first in range(0, tokens, kv.PAGE):
            part = slice(first, min(first + kv.PAGE, tokens))
            count = part.stop - part.start
            if kv.is_quantised(format):
                parts = _code_parts(format, slab, capacity, made.view.head_dim(0), first // kv.PAGE, count)
                yield Page(format, count, bias[part], key_parts=parts[0], value_parts=parts[1])
            else:
                yield Page(format, count, bias[part], span.keys[part], span.values[part])


def _code_parts(
    format: str, slab: Any, capacity: int, head_dim: int, page: int, count: int
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    how, where, dim = kv.codes(format), kv._arrays(format, slab, capacity, head_dim), kv.stored_dim(format, head_dim)
    keys = unpack_lanes(where.keys[page], how.bits, kv.PAGE)[:, :count].astype(np.float64)  # [channels, slots]
    values = unpack_lanes(where.values[page], how.bits, dim)[:count].astype(np.float64)  # [slots, channels]
    key_group = np.arange(count) // how.group
    key_scales, key_minimums = (x[key_group].T.astype(np.float32) for x in where.key_parameters[page])
    value_group = np.arange(dim) // how.group
    of_values = where.value_parameters[page][:, value_group, :count]
    value_scales, value_minimums = (x.T.astype(np.float32) for x in of_values)
    slices = [slice(c, c + 64) for c in range(0, dim, 64)]
    return (
        tuple(Part(keys[one], key_scales[one], key_minimums[one]) for one in slices),
        tuple(Part(values[:, one], value_scales[:, one], value_minimums[:, one]) for one in slices),
    )


def _scores(query: Floats, page: Page) -> Doubles:
    if page.keys is not None:
        operand = query if page.format == "f32" else _bf16(query)
        return operand.astype(np.float64) @ page.keys.astype(np.float64).T
    wide = np.pad(query, ((0, 0), (0, -query.shape[1] % 64)))
    scores = np.zeros((len(query), page.slots))
    for number, part in enumerate(page.key_parts):
        scores += _product(wide[:, 64 * number : 64 * number + 64], part, kv.codes(page.format).bits)[0]
    return scores


def _values(weights: Floats, page: Page, dim: int) -> tuple[Doubles, Doubles]:
    """Weights [rows, slots] → [rows, d], and [rows, 1] of what one rounded weight may move."""
    if page.values is not None:
        operand = weights if page.format == "f32" else _bf16(weights)
        step = np.zeros(1) if page.format == "f32" else 2.0**-8 * np.abs(page.values).max()
        return operand.astype(np.float64) @ page.values.astype(np.float64), weights.max(1, keepdims=True) * step
    products = [_product(weights, part, kv.codes(page.format).bits) for part in page.value_parts]
    return np.concatenate([found for found, _ in products], axis=1)[:, :dim], np.max([step for _, step in products], 0)


def _product(numbers: Floats, part: Part, bits: int) -> tuple[Doubles, Doubles]:
    """Numbers [rows, summed] times what the codes stand for [summed, outputs] → [rows, outputs], and the effect
    [rows, 1] of one operand that is rounded to its neighbour."""
    middle = ((1 << bits) - 1) / 2
    scaled = numbers[:, :, None] * part.scales  # fp32, as the kernel multiplies
    most = np.abs(scaled).max((1, 2), keepdims=True)
    unit = most * np.float32(1 / (127 * 128 if bits == 8 else 127))
    inverse = np.float32(1) / np.maximum(unit, np.float32(1e-30))
    step = unit.astype(np.float64)
    operand = np.rint(scaled * inverse).astype(np.float64) * step
    exact = numbers.astype(np.float64) @ (part.minimums.astype(np.float64) + middle * part.scales.astype(np.float64))
    return (operand * (part.codes - middle)).sum(1) + exact, step[:, :, 0] * middle


def _bf16(numbers: Floats) -> Floats:
    rounded: Floats = numbers.astype(BFLOAT16).astype(np.float32)
    return rounded


def _power(exponents: Doubles, less: Doubles) -> Doubles:
    """2^(exponents − less); 0 where both are −inf."""
    return np.exp2(exponents - np.where(np.isneginf(less), 0, less))
