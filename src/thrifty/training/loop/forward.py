"""Many sequences through the reference decoder in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.models.config.model_config import ModelConfig
from thrifty.reference.attention import Attend, causal
from thrifty.reference.decoder import Decoder
from thrifty.reference.recurrent import Recur, from_zero


def logits_of(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Logits fp32 [sequences, tokens, vocabulary] of whole sequences, int64 [sequences, tokens]. Under autograd."""
    count, length = tokens.shape
    positions = torch.arange(length).repeat(count)
    attend, recur = attend_each(decoder.config, length), recur_each(length)
    flat: Tensor = decoder(tokens.flatten(), positions, attend, length, recur)
    return flat.unflatten(0, (count, length))


def attend_each(config: ModelConfig, length: int) -> Attend:
    """Causal attention of rows that are whole sequences of `length` tokens, one behind the other."""
    whole = causal(config)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = zip(query.split(length), key.split(length), value.split(length), strict=True)
        return torch.cat([whole(layer, *part) for part in parts])

    return attend


def recur_each(length: int) -> Recur:
    """The recurrence of such rows: each sequence begins with a state of zeros."""

    def recur(layer: int, query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
        parts = zip(*(rows.split(length) for rows in (query, key, value, decay)), strict=True)
        return torch.cat([from_zero(layer, *part) for part in parts])

    return recur
