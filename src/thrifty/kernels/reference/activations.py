"""Activations as int8 in blocks of 32 columns, the only activation quantisation of integer matmuls."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.reference.packing import TILE_COLUMNS, pad_to, padded


def quantise_activations(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Each block of 32 columns to int8 with scale max|x|/127, rounding half to even.

    activations: fp32 [rows, columns] → codes int8 [rows, blocks, 32] (columns padded with zeros), scales fp32
    [rows, blocks]. A block of zeros has scale 0 and codes 0. Every row depends on itself alone.
    """
    rows, columns = activations.shape
    wide = pad_to(activations.float(), rows, padded(columns, TILE_COLUMNS))
    blocks = wide.view(rows, -1, TILE_COLUMNS)
    scales = blocks.abs().amax(dim=-1) / 127
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (blocks / divisor[..., None]).round().clamp(-127, 127)
    return torch.where(scales[..., None] == 0, torch.zeros_like(codes), codes).to(torch.int8), scales
