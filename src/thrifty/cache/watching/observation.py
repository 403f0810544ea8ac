"""The attention of a prompt's newest queries, computed again from the cache for methods that score by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats, Integers, softmax
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView


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
    model, window = kv.info.model, len(queries)
    keys = kv.keys(head)
    own = np.moveaxis(queries[:, head * model.group : (head + 1) * model.group], 0, 1)
    sees = np.tile(np.arange(len(keys) - window, len(keys)) + 1, model.group)
    rows = own.reshape(-1, own.shape[2])
    found = attention_map(rows, keys, sees, scale=model.scale, softcap=model.softcap, bias=kv.bias(head))
    return found.reshape(model.group, window, len(keys))
