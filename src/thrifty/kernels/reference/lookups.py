"""Codes that native kernels look up: their order in memory, and products with the kernels' numerics."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.matmul import fused_multiply_add, plain_matmul
from thrifty.kernels.reference.packing import TILE_COLUMNS, TILE_ROWS, pad_to, padded

VECTOR_BITS = (4, 8, 12, 16)


def exchanged(codes: Bytes) -> Bytes:
    """Codes uint8 [rows, columns] (multiples of 16 and 32) in the order in which row tables are looked up, and back.

    In every four rows x sixteen columns, what row k has in the four columns from 4c on changes places with what row c
    has in those from 4k on. `packing.pack_codes` of that puts sixteen columns of a row into sixteen neighbouring bytes,
    which one shuffle of bytes looks up in the row's table.
    """
    rows, columns = codes.shape
    parts = codes.reshape(rows // 4, 4, columns // 16, 4, 4)
    return np.ascontiguousarray(parts.transpose(0, 3, 2, 1, 4)).reshape(rows, columns)


def pack_vector_codes(codes: Integers, bits: int, length: int) -> Bytes:
    """Codes [vectors, columns] below 2^bits, of vectors of `length` rows, → uint8 [rows/16, columns/32, bytes].

    A block of 16 rows x 32 columns has its codes column by column. 8 bits: bytes. 4 bits: the first half of them in the
    low halves of bytes, the second in the high ones. 12 and 16 bits: the low 8 bits, then the rest so.
    """
    each = TILE_ROWS // length
    vectors, columns = codes.shape
    wide = pad_to(codes, padded(vectors, each), padded(columns, TILE_COLUMNS))
    tiles, blocks = len(wide) // each, wide.shape[1] // TILE_COLUMNS
    flat = wide.reshape(tiles, each, blocks, TILE_COLUMNS).transpose(0, 2, 3, 1).reshape(tiles, blocks, -1)
    planes = []
    for first in range(0, bits, 8):
        part = ((flat >> first) & 255).astype(np.uint8)
        if bits - first == 4:
            half = part.shape[2] // 2
            part = part[:, :, :half] | part[:, :, half:] << np.uint8(4)
        planes.append(part)
    return np.ascontiguousarray(np.concatenate(planes, axis=2))


def unpack_vector_codes(packed: Bytes, bits: int, length: int) -> Integers:
    """The inverse, with the padding: uint8 [tiles, blocks, bytes] → int64 [16·tiles/length, 32·blocks]."""
    tiles, blocks, _ = packed.shape
    each = TILE_ROWS // length
    count, place = TILE_COLUMNS * each, 0
    flat = np.zeros((tiles, blocks, count), np.int64)
    for first in range(0, bits, 8):
        if bits - first == 4:
            part = packed[:, :, place : place + count // 2]
            part = np.concatenate((part & np.uint8(15), part >> np.uint8(4)), axis=2)
        else:
            part = packed[:, :, place : place + count]
        flat |= part.astype(np.int64) << first
        place += count
    return flat.reshape(tiles, blocks, TILE_COLUMNS, each).transpose(0, 3, 1, 2).reshape(tiles * each, -1)


def vector_matmul(activations: Floats, values: Floats, scales: Floats, offsets: Floats) -> Floats:
    """activations fp32 [m, in] × (value · scale + offset) → fp32 [m, out].

    values: fp32 [out, in]. scales, offsets: fp32 [in], numbers of fp16. Columns are scaled first. Even columns go to
    one sum and odd ones to another, in order, each with one rounding for product and sum; then comes the product of the
    row with the offsets (`plain_matmul`).
    """
    scaled = activations * scales
    sums = np.zeros((2, len(activations), len(values)), np.float32)
    for column in range(values.shape[1]):
        sums[column % 2] = fused_multiply_add(scaled[:, None, column], values[None, :, column], sums[column % 2])
    return (sums[0] + sums[1]) + plain_matmul(activations, offsets[None])


def rounded_activations(activations: Floats) -> Floats:
    """fp32 [m, in] as kernels of codes read them: int8 times the scale of 32 columns."""
    codes, scales = quantise_activations(activations)
    exact = codes.astype(np.float32) * scales[..., None]
    return exact.reshape(len(activations), -1)[:, : activations.shape[1]]


def overlay_sums(activations: Floats, starts: Array, columns: Array, values: Floats) -> Floats:
    """What single weights on top add to outputs: fp32 [m, in] → fp32 [m, out], each row's products in order.

    starts: int [out + 1]; row r has the places starts[r] to starts[r + 1] of columns and values.
    """
    counts = np.diff(starts)
    sums = np.zeros((len(activations), len(counts)), np.float32)
    for place in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > place)
        entries = starts[rows] + place
        sums[:, rows] += values[entries] * activations[:, columns[entries]]
    return sums
