"""Attention of one KV head's queries over a list of spans, in blocks of 64 slots with an online softmax.

Blocks start at each span's first slot and are visited in order, so a row's result does not depend on batch or
chunking.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import KernelError

BLOCK = 64


@dataclass(frozen=True)
class Span:
    """Consecutive slots of one KV head. keys, values: fp32 [slots, head_dim]; bias: fp32 [slots], added to
    the logits.
    """

    keys: Floats
    values: Floats
    bias: Floats | None = None


@dataclass(frozen=True)
class Attended:
    """out: fp32 [rows, queries, head_dim]. column_sums: fp32 [queries, slots], the probabilities summed over
    rows.

    probabilities: fp32 [rows, queries, slots]. Both are None unless asked for.
    """

    out: Floats
    column_sums: Floats | None = None
    probabilities: Floats | None = None


@dataclass(frozen=True)
class _Block:
    """One block of at most 64 slots and the rows that see any of them. slot: index of its first slot over all
    spans.
    """

    keys: Floats
    values: Floats
    bias: Floats | None
    slot: int
    rows: slice


def attend(
    queries: Floats,
    spans: Sequence[Span],
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float = 0.0,
    column_sums: bool = False,
    probabilities: bool = False,
    ahead: Array | None = None,
) -> Attended:
    """queries fp32 [rows, queries, head_dim] (the query heads that share this KV head) over all slots of
    `spans`.

    Logits are scale·q·k, then softcap·tanh(logit/softcap) where softcap > 0, then + bias. Causal: the rows
    are the last slots' own, so row i of n sees all slots except the last n−1−i. window: a row sees only the
    last `window` of those. ahead: integers [rows], how many slots behind its own a causal row sees as well. Raises
    KernelError where a row would see no slot.
    """
    rows, heads, dimension = queries.shape
    slots = sum(len(span.keys) for span in spans)
    if rows and slots < (rows if causal else 1):
        raise KernelError(f"{rows} query rows over {slots} slots: a row would see none; append keys and values first")
    if window is not None and window < 1:
        raise KernelError(f"attention window {window} must be at least 1 (None for no window)")
    own = limits = np.arange(slots - rows + 1, slots + 1) if causal else np.full(rows, slots)
    if ahead is not None:
        limits = limits + ahead
    furthest = 0 if ahead is None else int(np.max(ahead, initial=0))
    blocks = list(_blocks(spans, rows, slots, causal, window, furthest))

    def logits(block: _Block) -> Floats:
        return _logits(queries, block, limits, own, scale, window, softcap)

    peak = np.full((rows, heads), -math.inf, np.float32)
    total = np.zeros((rows, heads), np.float32)
    out = np.zeros((rows, heads, dimension), np.float32)
    for block in blocks:
        _accumulate(logits(block), block, peak, total, out)
    out /= total[..., None]
    if not (column_sums or probabilities):
        return Attended(out)
    sums = np.zeros((heads, slots), np.float32) if column_sums else None
    dense = np.zeros((rows, heads, slots), np.float32) if probabilities else None
    for block in blocks:
        chance = np.exp(logits(block) - peak[block.rows, :, None]) / total[block.rows, :, None]
        here = slice(block.slot, block.slot + len(block.keys))
        if sums is not None:
            sums[:, here] = chance.sum(axis=0)
        if dense is not None:
            dense[block.rows, :, here] = chance
    return Attended(out, sums, dense)


def _blocks(
    spans: Sequence[Span], rows: int, slots: int, causal: bool, window: int | None, ahead: int
) -> Iterator[_Block]:
    """The blocks that some row sees. Skipping the others changes no bit of the result. ahead: the furthest of any."""
    slot = 0
    before = slots - rows  # causal row i sees slots < before + i + 1
    for span in spans:
        for start in range(0, len(span.keys), BLOCK):
            keys = span.keys[start : start + BLOCK]
            end = slot + len(keys)
            first = max(0, slot - before - ahead) if causal else 0
            last = rows
            if window is not None:
                last = min(rows, end - 1 + window - before) if causal else (rows if end > slots - window else 0)
            if first < last:
                bias = None if span.bias is None else span.bias[start : start + BLOCK]
                yield _Block(keys, span.values[start : start + BLOCK], bias, slot, slice(first, last))
            slot = end


def _logits(
    queries: Floats,
    block: _Block,
    limits: Integers,
    own: Integers,
    scale: float,
    window: int | None,
    softcap: float,
) -> Floats:
    """[rows of the block, queries, slots of the block], −inf where a row does not see a slot. limits, own: one behind
    the last slot that a row sees, and one behind its own, from which its window counts.
    """
    rows = queries[block.rows]
    count, heads, dimension = rows.shape
    logits = (rows.reshape(count * heads, dimension) @ block.keys.T).reshape(count, heads, len(block.keys))
    logits *= scale
    if softcap:
        logits = np.tanh(logits / softcap) * softcap
    if block.bias is not None:
        logits += block.bias
    slots = np.arange(block.slot, block.slot + len(block.keys))
    limit = limits[block.rows, None]
    hidden = slots >= limit
    if window is not None:
        hidden |= slots < own[block.rows, None] - window
    if hidden.any():
        logits[np.broadcast_to(hidden[:, None, :], logits.shape)] = -math.inf
    return logits


def _accumulate(logits: Floats, block: _Block, peak: Floats, total: Floats, out: Floats) -> None:
    """One step of the online softmax, in place, for the block's rows."""
    rows = block.rows
    new_peak = np.maximum(peak[rows], logits.max(axis=-1))
    reference = np.where(new_peak == -math.inf, np.float32(0), new_peak)
    weights = np.exp(logits - reference[..., None])
    decay = np.exp(peak[rows] - reference)
    peak[rows] = new_peak
    total[rows] = total[rows] * decay + weights.sum(axis=-1)
    weighted = (weights.reshape(-1, len(block.keys)) @ block.values).reshape(out[rows].shape)
    out[rows] = out[rows] * decay[..., None] + weighted
