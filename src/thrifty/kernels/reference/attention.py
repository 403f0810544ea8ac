"""Attention of one KV head's queries over a list of spans, in blocks of 64 slots with an online softmax.

Blocks start at each span's first slot and are visited in order, so a row's result does not depend on batch or
chunking.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.errors import KernelError

BLOCK = 64


@dataclass(frozen=True)
class Span:
    """Consecutive slots of one KV head. keys, values: fp32 [slots, head_dim]; bias: fp32 [slots], added to
    the logits.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Attended:
    """out: fp32 [rows, queries, head_dim]. column_sums: fp32 [queries, slots], the probabilities summed over
    rows.

    probabilities: fp32 [rows, queries, slots]. Both are None unless asked for.
    """

    out: Tensor
    column_sums: Tensor | None = None
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class _Block:
    """One block of at most 64 slots and the rows that see any of them. slot: index of its first slot over all
    spans.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None
    slot: int
    rows: slice


def attend(
    queries: Tensor,
    spans: Sequence[Span],
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float = 0.0,
    column_sums: bool = False,
    probabilities: bool = False,
) -> Attended:
    """queries fp32 [rows, queries, head_dim] (the query heads that share this KV head) over all slots of
    `spans`.

    Logits are scale·q·k, then softcap·tanh(logit/softcap) where softcap > 0, then + bias. Causal: the rows
    are the last slots' own, so row i of n sees all slots except the last n−1−i. window: a row sees only the
    last `window` of those. Differentiable. Raises KernelError where a row would see no slot.
    """
    rows, heads, dimension = queries.shape
    slots = sum(len(span.keys) for span in spans)
    if rows and slots < (rows if causal else 1):
        raise KernelError(f"{rows} query rows over {slots} slots: a row would see none; append keys and values first")
    if window is not None and window < 1:
        raise KernelError(f"attention window {window} must be at least 1 (None for no window)")
    limits = torch.arange(slots - rows + 1, slots + 1) if causal else torch.full((rows,), slots)
    blocks = list(_blocks(spans, rows, slots, causal, window))

    def logits(block: _Block) -> Tensor:
        return _logits(queries, block, limits, scale, window, softcap)

    peak = queries.new_full((rows, heads), -math.inf)
    total = queries.new_zeros(rows, heads)
    out = queries.new_zeros(rows, heads, dimension)
    for block in blocks:
        peak, total, out = _accumulate(logits(block), block, peak, total, out)
    out = out / total[..., None]
    if not (column_sums or probabilities):
        return Attended(out)
    sums = queries.new_zeros(heads, slots) if column_sums else None
    dense = queries.new_zeros(rows, heads, slots) if probabilities else None
    for block in blocks:
        chance = torch.exp(logits(block) - peak[block.rows, :, None]) / total[block.rows, :, None]
        here = slice(block.slot, block.slot + len(block.keys))
        if sums is not None:
            sums[:, here] = chance.sum(dim=0)
        if dense is not None:
            dense[block.rows, :, here] = chance
    return Attended(out, sums, dense)


def _blocks(spans: Sequence[Span], rows: int, slots: int, causal: bool, window: int | None) -> Iterator[_Block]:
    """The blocks that some row sees. Skipping the others changes no bit of the result."""
    slot = 0
    before = slots - rows  # causal row i sees slots < before + i + 1
    for span in spans:
        for start in range(0, len(span.keys), BLOCK):
            keys = span.keys[start : start + BLOCK]
            end = slot + len(keys)
            first = max(0, slot - before) if causal else 0
            last = rows
            if window is not None:
                last = min(rows, end - 1 + window - before) if causal else (rows if end > slots - window else 0)
            if first < last:
                bias = None if span.bias is None else span.bias[start : start + BLOCK]
                yield _Block(keys, span.values[start : start + BLOCK], bias, slot, slice(first, last))
            slot = end


def _logits(queries: Tensor, block: _Block, limits: Tensor, scale: float, window: int | None, softcap: float) -> Tensor:
    """[rows of the block, queries, slots of the block], −inf where a row does not see a slot."""
    logits = (queries[block.rows] @ block.keys.T) * scale
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    if block.bias is not None:
        logits = logits + block.bias
    slots = torch.arange(block.slot, block.slot + len(block.keys))
    limit = limits[block.rows, None]
    hidden = slots >= limit
    if window is not None:
        hidden |= slots < limit - window
    return logits.masked_fill(hidden[:, None, :], -math.inf)


def _accumulate(
    logits: Tensor, block: _Block, peak: Tensor, total: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the online softmax for the block's rows; the other rows pass through."""
    rows = block.rows
    new_peak = torch.maximum(peak[rows], logits.amax(dim=-1))
    reference = torch.where(new_peak == -math.inf, torch.zeros_like(new_peak), new_peak)
    weights = torch.exp(logits - reference[..., None])
    decay = torch.exp(peak[rows] - reference)
    new_total = total[rows] * decay + weights.sum(dim=-1)
    new_out = out[rows] * decay[..., None] + weights @ block.values
    return _replace(peak, rows, new_peak), _replace(total, rows, new_total), _replace(out, rows, new_out)


def _replace(whole: Tensor, rows: slice, part: Tensor) -> Tensor:
    """`whole` with some rows exchanged, out of place so that gradients flow."""
    if rows.start == 0 and rows.stop == len(whole):
        return part
    return torch.cat((whole[: rows.start], part, whole[rows.stop :]))
