"""Rotary position embeddings in torch; `models.rope` has their frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.models.config import RopeConfig
from thrifty.models.rope import inverse_frequencies
from thrifty.reference.arrays import tensor_of

Rotation = tuple[Tensor, Tensor]


def rotation(rope: RopeConfig, positions: Tensor, sequence_length: int | Tensor | None = None) -> Rotation:
    """Cosines and sines, each [tokens, dimension / 2] fp32, for `positions` [tokens] (integers).

    `sequence_length` is the length in tokens of the sequence that the rows belong to: one number, or
    [tokens] where rows belong to different sequences; by default the highest position plus one.
    """
    if sequence_length is None:
        sequence_length = int(positions.max()) + 1 if positions.numel() else 1
    lengths = sequence_length.numpy() if isinstance(sequence_length, Tensor) else sequence_length
    frequencies, factor = inverse_frequencies(rope, lengths)
    angles = positions.float()[:, None] * tensor_of(frequencies)
    return angles.cos() * factor, angles.sin() * factor


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
