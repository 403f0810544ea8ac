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


def causal(config: ModelConfig, tree: Tensor | None = None) -> Attend:
    """Attention within the given tokens only, which are one whole sequence in order. Works under autograd.

    tree: see `attention`, for the last tokens.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(
            query,
            key,
            value,
            scale=config.query_scale,
            window=config.layers[layer].window,
            softcap=config.attention_softcap,
            tree=tree,
        )

    return attend


def of_each(mix: Callable[..., Tensor], tokens: int) -> Callable[..., Tensor]:
    """An `Attend` or `Recur` for rows of several sequences of `tokens` each: `mix`, which takes one, on each."""

    def of_all(layer: int, *parts: Tensor) -> Tensor:
        pieces = zip(*(part.split(tokens) for part in parts), strict=True)
        return torch.cat([mix(layer, *piece) for piece in pieces])

    return of_all


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    tree: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last n of s tokens; row i sees the slots up to s - n + i, the last `window`
    of them.

    query: [n, heads, d]; key, value: [s, kv_heads, d]; scores are fp32; the result is [n, heads, d] of
    query's dtype. tree: bool [m, m], the last m tokens are a tree: token i of them sees those of its row, itself and
    earlier ones, and all older slots; a window counts what lies on its path (SpecInfer, arXiv 2305.09781, §4.2).
    """
    rows, slots = query.shape[0], key.shape[0]
    if tree is not None:
        return _block(query, key, value, scale, softcap, on_tree(tree, slots, window)[slots - rows :])
    blocks = []
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        last = slots - rows + stop  # one past the last slot that this block sees
        first = 0 if window is None else max(0, last - (stop - start) + 1 - window)
        visible = in_line(stop - start, last - first, window, query.device)
        blocks.append(_block(query[start:stop], key[first:last], value[first:last], scale, softcap, visible))
    return torch.cat(blocks) if len(blocks) != 1 else blocks[0]


def in_line(rows: int, slots: int, window: int | None, device: torch.device) -> Tensor:
    """bool [rows, slots]: what each of the last rows of `slots` tokens sees."""
    row = torch.arange(slots - rows, slots, device=device)[:, None]
    slot = torch.arange(slots, device=device)
    visible = slot <= row
    if window is not None:
        visible &= slot > row - window
    return visible


def on_tree(tree: Tensor, slots: int, window: int | None) -> Tensor:
    """bool [slots, slots]: what each of `slots` tokens sees, of which the last are the rows of a tree, bool [m, m]."""
    older = slots - len(tree)
    visible = torch.zeros(slots, slots, dtype=torch.bool, device=tree.device)
    visible[:older, :older] = in_line(older, older, window, tree.device)
    visible[older:, :older] = True
    visible[older:, older:] = tree
    if window is not None:
        depth = tree.sum(1)
        visible[older:, :older] = torch.arange(older, device=tree.device) >= (older + depth - window)[:, None]
    return visible


def _block(query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, visible: Tensor) -> Tensor:
    """visible: bool [rows, slots]."""
    rows, heads, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.float().reshape(rows, kv_heads, heads // kv_heads, width)
    scores = torch.einsum("nkgd,skd->kgns", grouped, key.float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    mixed = torch.einsum("kgns,skd->nkgd", scores.softmax(-1), value.float())
    return mixed.reshape(rows, heads, width).to(query.dtype)
