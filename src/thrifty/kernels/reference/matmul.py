"""Matmuls with the numerics of the native kernels, block by block in the same order.

A result element depends on its own activation row and weight row alone, so a row's result is the same in any
batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.packing import TILE_COLUMNS, pad_to, padded


def fused_multiply_add(left: Tensor, right: Tensor, addend: Tensor) -> Tensor:
    """left·right + addend in fp32 with one rounding, as the hardware instruction; fp32 in and out.

    The product of two fp32 is exact in fp64. The sum is rounded to odd there, which makes the second
    rounding, to fp32, exact.
    """
    product, addend64 = left.double() * right.double(), addend.double()
    total = product + addend64
    virtual = total - product
    error = (product - (total - virtual)) + (addend64 - virtual)
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(total.dtype)
    even = (total.view(torch.int64) & 1) == 0
    return torch.where((error != 0) & even, torch.nextafter(total, toward), total).float()


def group_matmul(activations: Tensor, codes: Tensor, scales: Tensor, minimums: Tensor | None, group: int) -> Tensor:
    """activations fp32 [m, in] × grouped weights → fp32 [m, out], with int8 activations as
    `quantise_activations` rounds them.

    codes: integers [out, in padded to 32]; scales, minimums: fp32 [out, in/group rounded up];
    w = scale·code + minimum. For each block b of 32 columns, in order: acc = fma(Σ code·q, scale·xs_b, acc),
    then with minimums acc = fma(minimum, xs_b·Σq, acc).
    """
    quantised, activation_scales = quantise_activations(activations)
    result = torch.zeros(len(activations), len(codes))
    for block in range(codes.shape[1] // TILE_COLUMNS):
        weight_block = codes[:, block * TILE_COLUMNS : (block + 1) * TILE_COLUMNS].double()
        dots = (quantised[:, block].double() @ weight_block.T).float()  # integers below 2**20: exact
        scale_b = activation_scales[:, block, None]
        index = block * TILE_COLUMNS // group
        result = fused_multiply_add(dots, scales[:, index] * scale_b, result)
        if minimums is not None:
            sums = quantised[:, block].sum(dim=-1, keepdim=True, dtype=torch.int32).float()
            result = fused_multiply_add(minimums[:, index], scale_b * sums, result)
    return result


def bf16_matmul(activations: Tensor, weight: Tensor) -> Tensor:
    """activations fp32 [m, in] rounded to bf16 × weight bf16 [out, in] → fp32 [m, out].

    Pair of columns by pair, in each the second column first, as the hardware's pairwise dot product adds
    them.
    """
    rounded = pad_to(activations.to(torch.bfloat16).float(), len(activations), padded(weight.shape[1], 2))
    wide = pad_to(weight.float(), len(weight), rounded.shape[1])
    result = torch.zeros(len(activations), len(weight))
    for first in range(0, rounded.shape[1], 2):
        result += rounded[:, first + 1, None] * wide[:, first + 1]  # exact products: one rounding each
        result += rounded[:, first, None] * wide[:, first]
    return result
