"""Bipolar integers (arXiv 2409.17870, §3.1): bit i stands for +2^i or −2^i, so n bits give the odd numbers of
−(2^n − 1) to 2^n − 1. A number is kept as its code u = 0..2^n − 1, the bits themselves; it is 2u − (2^n − 1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Bytes, Floats
from thrifty.kernels.reference.affine import Halves, to_float16
from thrifty.kernels.reference.matmul import fused_multiply_add
from thrifty.kernels.reference.packing import TILE_COLUMNS, TILE_ROWS

FIT_ROUNDS = 12


def numbers(codes: Bytes, bits: int) -> npt.NDArray[np.int32]:
    """The odd numbers that codes stand for, same shape."""
    return 2 * codes.astype(np.int32) - ((1 << bits) - 1)


def round_activations(group: Floats, bits: int) -> tuple[Bytes, Floats]:
    """fp32 [rows, columns] → codes uint8, same shape, and scales fp32 [rows]: x ≈ scale·(2u − (2^bits − 1)), with the
    largest magnitude at the end of the range. A row of zeros has scale 0.
    """
    most = np.float32((1 << bits) - 1)
    scales = np.abs(group).max(axis=1) / most
    divisor = np.where(scales == 0, np.float32(1), scales)[:, None]
    codes = np.clip(np.rint((group / divisor + most) * np.float32(0.5)), 0, most)
    return codes.astype(np.uint8), scales


def fit_weights(group: Floats, bits: int) -> tuple[Bytes, Halves]:
    """fp32 [rows, columns] → codes uint8, same shape, and scales fp16 [rows] of little squared error.

    The nearest codes for the scale and the best scale for the codes, in turns; of one bit that is mean|w|. The paper
    takes weights that are rounded already. A row of zeros has scale 0.
    """
    most = (1 << bits) - 1
    wide = group.astype(np.float64)
    scale = np.abs(wide).max(axis=1) / most
    best, least = to_float16(scale.astype(np.float32), "group scale"), np.full(len(group), np.inf)
    for _ in range(FIT_ROUNDS):
        rounded = to_float16(scale.astype(np.float32), "group scale")
        values = numbers(_nearest(wide, rounded, most), bits)
        error = np.square(wide - rounded.astype(np.float64)[:, None] * values).sum(axis=1)
        best, least = np.where(error < least, rounded, best), np.minimum(error, least)
        scale = np.maximum((wide * values).sum(axis=1) / np.square(values).sum(axis=1), 0)
    return _nearest(wide, best, most), best


def _nearest(group: npt.NDArray[np.float64], scales: Halves, most: int) -> Bytes:
    steps = group / np.where(scales == 0, np.float16(1), scales).astype(np.float64)[:, None]
    return np.clip(np.rint((steps + most) / 2), 0, most).astype(np.uint8)


def pack_planes(codes: Bytes, bits: int) -> Bytes:
    """uint8 [rows, columns] (multiples of 16 and 32) → uint8 [rows/16, columns/32, 64·bits]: of a block of 16 rows and
    32 columns a plane of 64 bytes a bit, the lowest first; in it 4 bytes a row, whose bit c is column c.
    """
    rows, columns = codes.shape
    blocks = codes.reshape(rows // TILE_ROWS, TILE_ROWS, columns // TILE_COLUMNS, TILE_COLUMNS).transpose(0, 2, 1, 3)
    planes = [np.packbits(blocks >> np.uint8(bit) & np.uint8(1), axis=3, bitorder="little") for bit in range(bits)]
    return np.stack(planes, axis=2).reshape(*blocks.shape[:2], 64 * bits)


def unpack_planes(tiles: Bytes, bits: int) -> Bytes:
    """The inverse of `pack_planes`."""
    count, blocks, _ = tiles.shape
    planes = np.unpackbits(tiles.reshape(count, blocks, bits, TILE_ROWS, 4), axis=4, bitorder="little")
    return _codes(planes, 2).transpose(0, 2, 1, 3).reshape(count * TILE_ROWS, blocks * TILE_COLUMNS)


def unpack_plane_rows(tiles: Bytes, bits: int, rows: npt.NDArray[np.int64]) -> Bytes:
    """The codes of single rows: int64 [n] → uint8 [n, 32·blocks], touching only those rows' bytes."""
    count, blocks, _ = tiles.shape
    picked = tiles.reshape(count, blocks, bits, TILE_ROWS, 4)[rows // TILE_ROWS, :, :, rows % TILE_ROWS]
    planes = np.unpackbits(picked, axis=3, bitorder="little")  # [n, blocks, bits, 32]
    return _codes(planes, 2).reshape(len(rows), blocks * TILE_COLUMNS)


def _codes(planes: Bytes, axis: int) -> Bytes:
    """Bits of 0 and 1 along an axis → codes without it."""
    turned = np.moveaxis(planes, axis, 0)
    codes = np.zeros(turned.shape[1:], np.uint8)
    for bit, plane in enumerate(turned):
        codes |= plane << np.uint8(bit)
    return codes


def bipolar_matmul(
    activations: Floats, codes: Bytes, scales: Floats, bits: int, activation_bits: int, group: int
) -> Floats:
    """activations fp32 [m, in], rounded to activation_bits a row and group × weights → fp32 [m, out].

    codes: uint8 [out, in]; scales: fp32 [out, groups]. Groups in order: acc = fma(Σ w·x, scale·xs, acc) with exact sums
    of whole numbers.
    """
    result = np.zeros((len(activations), len(codes)), np.float32)
    for place, first in enumerate(range(0, codes.shape[1], group)):
        part = slice(first, first + group)
        rounded, xs = round_activations(activations[:, part].astype(np.float32, copy=False), activation_bits)
        values = numbers(rounded, activation_bits).astype(np.float64)
        sums = values @ numbers(codes[:, part], bits).astype(np.float64).T  # below 2**31: exact
        result = fused_multiply_add(sums.astype(np.float32), scales[:, place] * xs[:, None], result)
    return result
