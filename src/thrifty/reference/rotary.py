"""Rotary position embeddings in torch, by the tables of `models.rope`."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.models import rope as tables
from thrifty.models.config.model_config import RopeConfig
from thrifty.reference.arrays import tensor_of

Rotation = tuple[Tensor, Tensor]


def rotation(rope: RopeConfig, positions: Tensor, sequence_length: int | Tensor | None = None) -> Rotation:
    """Cosines and sines, each [tokens, dimension / 2] fp32, for `positions` [tokens] (integers), or [3,
    tokens] (see `models.rope.rotation`).

    `sequence_length` is the length in tokens of the sequence that the rows belong to: one number, or
    [tokens] where rows belong to different sequences; by default the highest position plus one.
    """
    lengths = sequence_length.numpy() if isinstance(sequence_length, Tensor) else sequence_length
    cosines, sines = tables.rotation(rope, positions.numpy(), lengths)
    return tensor_of(cosines), tensor_of(sines)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first 2·half channels of every head of x [tokens, heads, head_dim]; cos, sin: [tokens,
    half].
    """
    half = cos.shape[-1]
    if half == 0:
        return x
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
