"""Scores of slots: attention computed again from the cache, its reduction over query heads and neighbours, the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats, Integers, softmax
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView


def best(scores: Floats, count: int) -> Integers:
    """Slots of the `count` largest of scores [n], rising; of equal ones the first. All slots where n ≤ count."""
    if count <= 0:
        return np.zeros(0, np.int64)
    if count >= len(scores):
        return np.arange(len(scores))
    bound = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen = scores > bound
    chosen[np.flatnonzero(scores == bound)[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def best_and_newest(scores: Floats, best_count: int, count: int, newest: int) -> Integers:
    """Slots, rising, int64: the newest `newest` of `count`, and the `best_count` best of the older by scores
    [≥ count − newest].
    """
    older = max(0, count - newest)
    return np.concatenate((best(scores[:older], best_count), np.arange(older, count)))


def reduce_group(scores: Floats, how: str) -> Floats:
    """Scores of the query heads of a KV head [group, slots] → [slots]. how: "max", "sum" or "mean"."""
    if how == "max":
        return scores.max(axis=0)
    return scores.sum(axis=0) if how == "sum" else scores.mean(axis=0)


def pooled(scores: Floats, kernel: int, pooling: str) -> Floats:
    """[n] → [n]: the maximum of each slot and its kernel // 2 neighbours on either side, or their sum over `kernel`."""
    padded = np.pad(scores, kernel // 2, constant_values=-np.inf if pooling == "max" else 0.0)
    shifted = np.stack([padded[offset : offset + len(scores)] for offset in range(kernel)])
    return shifted.max(axis=0) if pooling == "max" else shifted.mean(axis=0)


def attention_map(
    queries: Floats,
    keys: Floats,
    sees: Integers,
    *,
    scale: float,
    softcap: float | None = None,
    bias: Floats | None = None,
) -> Floats:
    """Softmax probabilities [rows, slots] fp32 of queries [rows, head_dim] over keys [slots, head_dim] with logit
    biases [slots]: of row i over its first `sees[i]` slots, int64 [rows], and 0 behind them.
    """
    if dispatch.native() is not None:
        return dispatch.attention_map(queries, keys, sees, scale=scale, softcap=softcap or 0.0, bias=bias)
    return formula(queries, keys, sees, scale, softcap, bias)


def formula(
    queries: Floats, keys: Floats, sees: Integers, scale: float, softcap: float | None, bias: Floats | None
) -> Floats:
    """`attention_map` in NumPy: what the native one is held against, and what runs where native code is off."""
    logits = (queries @ keys.T) * scale
    if softcap:
        logits = np.tanh(logits / softcap) * softcap
    if bias is not None:
        logits += bias
    first = int(sees.min(initial=len(keys)))
    logits[:, first:][np.arange(first, len(keys)) >= sees[:, None]] = -np.inf
    return softmax(logits)


def window_attention(kv: LayerView, head: int, queries: Floats) -> Floats:
    """Probabilities [group, window, slots] fp32 of one KV head: causal softmax attention of the newest rows.

    queries: [window, heads, head_dim], the rows of the newest `window` slots. Scale, softcap and logit biases are those
    that the model attends with.
    """
    model, group, window = kv.info.model, kv.info.widths.group, len(queries)
    keys = kv.keys(head)
    own = np.moveaxis(queries[:, head * group : (head + 1) * group], 0, 1)
    sees = np.tile(np.arange(len(keys) - window, len(keys)) + 1, group)
    rows = own.reshape(-1, own.shape[2])
    probabilities = attention_map(rows, keys, sees, scale=model.scale, softcap=model.softcap, bias=kv.bias(head))
    return probabilities.reshape(group, window, len(keys))
