"""Matmuls with the numerics of the native kernels, block by block in the same order.

A result element depends on its own activation row and weight row alone, so a row's result is the same in any
batch.
"""

from __future__ import annotations

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Floats
from thrifty.kernels.reference.activations import quantise_activations, quantise_tokens
from thrifty.kernels.reference.packing import TILE_COLUMNS, pad_to, padded


def fused_multiply_add(left: Floats, right: Floats, addend: Floats) -> Floats:
    """left·right + addend in fp32 with one rounding, as the hardware instruction; fp32 in and out.

    The product of two fp32 is exact in fp64. The sum is rounded to odd there, which makes the second
    rounding, to fp32, exact.
    """
    product, addend64 = left.astype(np.float64) * right.astype(np.float64), addend.astype(np.float64)
    total = product + addend64
    virtual = total - product
    error = (product - (total - virtual)) + (addend64 - virtual)
    toward = np.where(error > 0, np.inf, -np.inf)
    even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & even, np.nextafter(total, toward), total).astype(np.float32)


def group_matmul(activations: Floats, codes: Array, scales: Floats, minimums: Floats | None, group: int) -> Floats:
    """activations fp32 [m, in] × grouped weights → fp32 [m, out], with int8 activations as
    `quantise_activations` rounds them.

    codes: integers [out, in padded to 32]; scales, minimums: fp32 [out, in/group rounded up];
    w = scale·code + minimum. For each block b of 32 columns, in order: acc = fma(Σ code·q, scale·xs_b, acc),
    then with minimums acc = fma(minimum, xs_b·Σq, acc).
    """
    quantised, activation_scales = quantise_activations(activations)
    result = np.zeros((len(activations), len(codes)), np.float32)
    for block in range(codes.shape[1] // TILE_COLUMNS):
        weight_block = codes[:, block * TILE_COLUMNS : (block + 1) * TILE_COLUMNS].astype(np.float64)
        dots = (quantised[:, block].astype(np.float64) @ weight_block.T).astype(np.float32)  # below 2**20: exact
        scale_b = activation_scales[:, block, None]
        index = block * TILE_COLUMNS // group
        result = fused_multiply_add(dots, scales[:, index] * scale_b, result)
        if minimums is not None:
            sums = quantised[:, block].sum(axis=-1, keepdims=True, dtype=np.int32).astype(np.float32)
            result = fused_multiply_add(minimums[:, index], scale_b * sums, result)
    return result


def token_matmul(activations: Floats, codes: Array, scales: Floats, group: int, threshold: float | None) -> Floats:
    """activations fp32 [m, in] × grouped weights → fp32 [m, out], with activations as `quantise_tokens` rounds them.

    codes: integers [out, in padded to 32]; scales: fp32 [out, in/group rounded up]; w = scale·code. For each block b of
    32 columns, in order: acc = fma(Σ code·q, scale·xs, acc); then, for each outlier c of the row, in order:
    acc = fma(code, scale·x, acc).
    """
    quantised, token_scales, outliers = quantise_tokens(activations, threshold)
    result = np.zeros((len(activations), len(codes)), np.float32)
    for block in range(codes.shape[1] // TILE_COLUMNS):
        weight_block = codes[:, block * TILE_COLUMNS : (block + 1) * TILE_COLUMNS].astype(np.float64)
        dots = (quantised[:, block].astype(np.float64) @ weight_block.T).astype(np.float32)  # below 2**20: exact
        result = fused_multiply_add(dots, scales[:, block * TILE_COLUMNS // group] * token_scales[:, None], result)
    for row, column in zip(*np.nonzero(outliers), strict=True):
        scaled = scales[:, column // group] * activations[row, column]
        result[row] = fused_multiply_add(codes[:, column].astype(np.float32), scaled, result[row])
    return result


def bf16_matmul(activations: Floats, weight: Array) -> Floats:
    """activations fp32 [m, in] rounded to bf16 × weight bf16 [out, in] → fp32 [m, out].

    Pair of columns by pair, in each the second column first, as the hardware's pairwise dot product adds
    them.
    """
    exact = activations.astype(BFLOAT16).astype(np.float32)
    rounded = pad_to(exact, len(activations), padded(weight.shape[1], 2))
    wide = pad_to(weight.astype(np.float32), len(weight), rounded.shape[1])
    result = np.zeros((len(activations), len(weight)), np.float32)
    for first in range(0, rounded.shape[1], 2):
        result += rounded[:, first + 1, None] * wide[:, first + 1]  # exact products: one rounding each
        result += rounded[:, first, None] * wide[:, first]
    return result


def plain_matmul(activations: Floats, weight: Array) -> Floats:
    """activations fp32 [m, in] × plain rows fp32 or fp16 [out, in] → fp32 [m, out], each product and sum rounded.

    Columns go in turn to sixteen sums; what is left behind the last sixteen is added up first, then the sums in order.
    """
    exact = weight.astype(np.float32)
    columns = exact.shape[1]
    whole = columns - columns % 16
    sums = np.zeros((len(activations), len(exact), 16), np.float32)
    for first in range(0, whole, 16):
        sums += activations[:, None, first : first + 16] * exact[None, :, first : first + 16]
    result = np.zeros((len(activations), len(exact)), np.float32)
    for column in range(whole, columns):
        result += activations[:, None, column] * exact[None, :, column]
    for lane in range(16):
        result += sums[:, :, lane]
    return result


def table_matmul(activations: Floats, values: Floats, scales: Floats, group: int) -> Floats:
    """activations fp32 [m, in] × scale · value → fp32 [m, out], each product and sum rounded.

    values: fp32 [out, in], what the codes stand for. scales: fp32 [out, groups]. Within a group even columns go to one
    sum and odd ones to another, in order; groups are added in order, each scaled as a whole.
    """
    rows, columns = len(activations), values.shape[1]
    result = np.zeros((rows, len(values)), np.float32)
    for place, first in enumerate(range(0, columns, group)):
        sums = np.zeros((2, rows, len(values)), np.float32)
        for column in range(first, min(first + group, columns)):
            sums[column % 2] += activations[:, None, column] * values[None, :, column]
        result += scales[None, :, place] * (sums[0] + sums[1])
    return result
