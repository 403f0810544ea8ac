"""The attention of a prompt's newest queries, computed again from the cache for methods that score by it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView


def window_attention(kv: LayerView, head: int, queries: Tensor) -> Tensor:
    """Probabilities [group, window, slots] fp32 of one KV head: causal softmax attention of the newest rows.

    queries: [window, heads, head_dim], the rows of the newest `window` slots. Scale, softcap and logit biases are those
    that the model attends with.
    """
    model, window = kv.info.model, len(queries)
    keys, bias = kv.keys(head), kv.bias(head)
    own = queries[:, head * model.group : (head + 1) * model.group].transpose(0, 1).float()
    logits = (own @ keys.T) * model.scale
    if model.softcap:
        logits = torch.tanh(logits / model.softcap) * model.softcap
    logits = logits + bias
    later = torch.ones(window, window, dtype=torch.bool).triu(1)
    logits[:, :, len(keys) - window :].masked_fill_(later, -math.inf)
    return logits.softmax(dim=-1)
