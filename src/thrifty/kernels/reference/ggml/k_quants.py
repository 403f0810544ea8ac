"""The K types, superblocks of 256 columns with two levels of scales: Q2_K to Q6_K (ggml's quantisation formats)."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Bytes
from thrifty.kernels.reference.ggml.blocks import SignedBytes, TwoLevel, blocks, fields, flat, halves, nibbles


def q2_k(rows: Bytes) -> TwoLevel:
    """84 bytes: 16 scales and minimums of 4 bits, 256 codes of 2 bits, d, dmin."""
    raw = blocks(rows, 84)
    packed = raw[:, :, :16]
    scales, minimums = (packed & 15).view(np.int8), packed >> np.uint8(4)
    codes = flat(_two_bits(raw[:, :, 16:80]))
    return TwoLevel(codes, 0, scales, halves(raw, 80), minimums, halves(raw, 82))


def q3_k(rows: Bytes) -> TwoLevel:
    """110 bytes: third bits, 256 codes of 2 bits, 16 scales of 6 bits plus 32, d; w = d·scale·(code − 4)."""
    raw = blocks(rows, 110)
    high = fields(raw[:, :, :32], 1)  # bit b of byte l is of column 32b + l
    codes = flat(_two_bits(raw[:, :, 32:96])) | flat(high << np.uint8(2))
    return TwoLevel(codes, 4, _q3_scales(raw[:, :, 96:108]), halves(raw, 108))


def q4_k(rows: Bytes) -> TwoLevel:
    """144 bytes: d, dmin, 8 scales and minimums of 6 bits, 256 codes of 4 bits."""
    raw = blocks(rows, 144)
    scales, minimums = _six_bits(raw[:, :, 4:16])
    return TwoLevel(flat(_low_nibbles(raw[:, :, 16:])), 0, scales, halves(raw, 0), minimums, halves(raw, 2))


def q5_k(rows: Bytes) -> TwoLevel:
    """176 bytes: as Q4_K, with fifth bits before the nibbles."""
    raw = blocks(rows, 176)
    scales, minimums = _six_bits(raw[:, :, 4:16])
    high = fields(raw[:, :, 16:48], 1)
    codes = flat(_low_nibbles(raw[:, :, 48:])) | flat(high << np.uint8(4))
    return TwoLevel(codes, 0, scales, halves(raw, 0), minimums, halves(raw, 2))


def q6_k(rows: Bytes) -> TwoLevel:
    """210 bytes: low nibbles, high pairs of bits, 16 scales of 8 bits, d; w = d·scale·(code − 32)."""
    raw = blocks(rows, 210)
    shape = raw.shape[:2]
    low = nibbles(raw[:, :, :128].reshape(*shape, 2, 64))
    high = fields(raw[:, :, 128:192].reshape(*shape, 2, 32), 2) << np.uint8(4)
    scales = np.ascontiguousarray(raw[:, :, 192:208]).view(np.int8)
    return TwoLevel(flat(low) | flat(high), 32, scales, halves(raw, 208))


def _two_bits(packed: Bytes) -> Bytes:
    """64 bytes [..., 64] → codes [..., 2, 4, 32]: 128 columns share 32 bytes."""
    return fields(packed.reshape(*packed.shape[:-1], 2, 32), 2)


def _low_nibbles(packed: Bytes) -> Bytes:
    """128 bytes [..., 128] → [..., 4, 64]: 64 columns share 32 bytes."""
    return nibbles(packed.reshape(*packed.shape[:-1], 4, 32))


def _six_bits(packed: Bytes) -> tuple[SignedBytes, Bytes]:
    """The eight scales and minimums of Q4_K and Q5_K: 12 bytes [..., 12] → two [..., 8]."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minimums = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales.view(np.int8), minimums


def _q3_scales(packed: Bytes) -> SignedBytes:
    """The sixteen scales of Q3_K: 8 bytes of low nibbles, 4 of high pairs of bits; stored plus 32."""
    high = fields(packed[..., 8:12], 2).reshape(*packed.shape[:-1], 16)
    return (nibbles(packed[..., :8]) | (high << np.uint8(4))).view(np.int8) - np.int8(32)
