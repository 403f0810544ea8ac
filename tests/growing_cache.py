"""The plainest KV cache there is: the oracle of incremental decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.models.config.model_config import ModelConfig
from thrifty.reference.attention import attention


class GrowingCache:
    """An `Attend` that remembers the keys and values of one sequence, layer by layer, in full precision.

    Every call appends its rows (mutates the cache) and attends to all rows so far.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.keys: list[Tensor | None] = [None] * len(config.layers)
        self.values: list[Tensor | None] = [None] * len(config.layers)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = self.keys[layer] = _appended(self.keys[layer], key)
        values = self.values[layer] = _appended(self.values[layer], value)
        return attention(
            query,
            keys,
            values,
            scale=self.config.query_scale,
            window=self.config.layers[layer].window,
            softcap=self.config.attention_softcap,
        )


def _appended(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat((old, new))
