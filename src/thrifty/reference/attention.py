"""Plain attention: the reference of every cache and kernel, and what training uses.

The decoder does not attend by itself: it is given an `Attend`, so that a cache, a kernel or one of these
can stand in its place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thrifty.models.config.model_config import ModelConfig

# (layer, query [t, heads, d], key [t, kv_heads, d], value [t, kv_heads, d]) -> [t, heads, d].
# Queries and keys come normalised and rotated; the callee scales by `config.query_scale`.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

ROWS = 256  # query rows scored at a time: bounds the score matrix to heads x ROWS x tokens


def causal(config: ModelConfig) -> Attend:
    """Attention within the given tokens only, which are one whole sequence in order. Works under autograd."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(
            query,
            key,
            value,
            scale=config.query_scale,
            window=config.layers[layer].window,
            softcap=config.attention_softcap,
        )

    return attend


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of the last n of s tokens; row i sees the slots up to s - n + i, the last `window`
    of them.

    query: [n, heads, d]; key, value: [s, kv_heads, d]; scores are fp32; the result is [n, heads, d] of
    query's dtype.
    """
    rows, slots = query.shape[0], key.shape[0]
    blocks = []
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        last = slots - rows + stop  # one past the last slot that this block sees
        first = 0 if window is None else max(0, last - (stop - start) + 1 - window)
        blocks.append(_block(query[start:stop], key[first:last], value[first:last], scale, window, softcap))
    return torch.cat(blocks) if len(blocks) != 1 else blocks[0]


def _block(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    rows, heads, width = query.shape
    slots, kv_heads, _ = key.shape
    grouped = query.float().reshape(rows, kv_heads, heads // kv_heads, width)
    scores = torch.einsum("nkgd,skd->kgns", grouped, key.float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    row = torch.arange(slots - rows, slots, device=query.device)[:, None]
    slot = torch.arange(slots, device=query.device)
    visible = slot <= row
    if window is not None:
        visible &= slot > row - window
    scores = scores.masked_fill(~visible, float("-inf"))
    mixed = torch.einsum("kgns,skd->nkgd", scores.softmax(-1), value.float())
    return mixed.reshape(rows, heads, width).to(query.dtype)
