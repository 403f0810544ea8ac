"""The types of one level with blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (ggml's quantisation formats)."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Bytes
from thrifty.kernels.reference.ggml.blocks import Grouped, blocks, flat, halves, nibbles


def q4_0(rows: Bytes) -> Grouped:
    """18 bytes: scale, 32 codes of 4 bits; w = scale·(code − 8)."""
    raw = blocks(rows, 18)
    return Grouped(flat(nibbles(raw[:, :, 2:])), 8, halves(raw, 0))


def q4_1(rows: Bytes) -> Grouped:
    """20 bytes: scale, minimum, 32 codes of 4 bits."""
    raw = blocks(rows, 20)
    return Grouped(flat(nibbles(raw[:, :, 4:])), 0, halves(raw, 0), halves(raw, 2))


def q5_0(rows: Bytes) -> Grouped:
    """22 bytes: scale, fifth bits, 32 low nibbles; w = scale·(code − 16)."""
    raw = blocks(rows, 22)
    codes = nibbles(raw[:, :, 6:]) | _fifth_bits(raw[:, :, 2:6])
    return Grouped(flat(codes), 16, halves(raw, 0))


def q5_1(rows: Bytes) -> Grouped:
    """24 bytes: scale, minimum, fifth bits, 32 low nibbles."""
    raw = blocks(rows, 24)
    codes = nibbles(raw[:, :, 8:]) | _fifth_bits(raw[:, :, 4:8])
    return Grouped(flat(codes), 0, halves(raw, 0), halves(raw, 2))


def q8_0(rows: Bytes) -> Grouped:
    """34 bytes: scale, 32 signed codes, given plus 128."""
    raw = blocks(rows, 34)
    return Grouped(flat(raw[:, :, 2:] ^ np.uint8(128)), 128, halves(raw, 0))


def _fifth_bits(packed: Bytes) -> Bytes:
    """4 bytes [..., 4] → [..., 32], each 0 or 16."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)
