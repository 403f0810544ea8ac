"""The types of 4 bits whose codes stand for the values of a table: IQ4_NL, IQ4_XS (ggml's quantisation formats)."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Bytes
from thrifty.kernels.reference.codebooks import CODEBOOKS
from thrifty.kernels.reference.ggml.blocks import Grouped, SignedBytes, TwoLevel, blocks, fields, flat, halves, nibbles

TABLE = CODEBOOKS["iq4"]


def iq4_nl(rows: Bytes) -> Grouped:
    """18 bytes: scale, 32 codes of 4 bits."""
    raw = blocks(rows, 18)
    return Grouped(flat(nibbles(raw[:, :, 2:])), 0, halves(raw, 0), table=TABLE)


def iq4_xs(rows: Bytes) -> TwoLevel:
    """136 bytes: d, high pairs of bits and low nibbles of 8 scales plus 32, 256 codes of 4 bits."""
    raw = blocks(rows, 136)
    codes = nibbles(raw[:, :, 8:].reshape(*raw.shape[:2], 8, 16))
    return TwoLevel(flat(codes), 0, _scales(raw[:, :, 2:4], raw[:, :, 4:8]), halves(raw, 0), table=TABLE)


def _scales(high: Bytes, low: Bytes) -> SignedBytes:
    """2 bytes [..., 2] and 4 [..., 4] → [..., 8]; the scale 2i is in the low nibble of byte i."""
    low = np.stack([low & 15, low >> 4], axis=-1).reshape(*low.shape[:-1], 8)
    pairs = fields(high, 2).swapaxes(-1, -2).reshape(*high.shape[:-1], 8)
    return (low | (pairs << np.uint8(4))).view(np.int8) - np.int8(32)
