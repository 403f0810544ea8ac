"""Rows with two levels of scales as GGUF's K types and IQ4_XS: the inverse of `kernels.reference.ggml.k_quants`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from thrifty.arrays import Array, Bytes
from thrifty.kernels.reference.ggml.blocks import SUPERBLOCK, TwoLevel

Parts = list[Bytes]


def superblock_rows(type: str, rows: TwoLevel) -> Bytes:
    """Rows as the file has them, uint8 [rows, row bytes]. type: such as "q4_k"."""
    codes = rows.codes.reshape(len(rows.codes), -1, SUPERBLOCK)
    return np.concatenate(WRITERS[type](rows, codes), axis=-1).reshape(len(codes), -1)


def _q2_k(rows: TwoLevel, codes: Bytes) -> Parts:
    assert rows.minimums is not None and rows.dmin is not None
    scales = rows.scales.view(np.uint8) | rows.minimums << np.uint8(4)
    return [scales, _two_bits(codes), _halves(rows.d), _halves(rows.dmin)]


def _q3_k(rows: TwoLevel, codes: Bytes) -> Parts:
    stored = (rows.scales + np.int8(32)).view(np.uint8)
    pairs = _joined((stored >> np.uint8(4)).reshape(*stored.shape[:2], 4, 4), 2)
    scales = np.concatenate([_nibbles(stored & np.uint8(15)), pairs], axis=-1)
    return [_high_bits(codes >> np.uint8(2)), _two_bits(codes & np.uint8(3)), scales, _halves(rows.d)]


def _q4_k(rows: TwoLevel, codes: Bytes) -> Parts:
    return [*_heads(rows), _six_bits(rows), _low_nibbles(codes)]


def _q5_k(rows: TwoLevel, codes: Bytes) -> Parts:
    return [*_heads(rows), _six_bits(rows), _high_bits(codes >> np.uint8(4)), _low_nibbles(codes & np.uint8(15))]


def _q6_k(rows: TwoLevel, codes: Bytes) -> Parts:
    shape = codes.shape[:2]
    low = _nibbles((codes & np.uint8(15)).reshape(*shape, 2, 128)).reshape(*shape, 128)
    high = _joined((codes >> np.uint8(4)).reshape(*shape, 2, 4, 32), 2).reshape(*shape, 64)
    return [low, high, rows.scales.view(np.uint8), _halves(rows.d)]


def _iq4_xs(rows: TwoLevel, codes: Bytes) -> Parts:
    shape = codes.shape[:2]
    stored = (rows.scales + np.int8(32)).view(np.uint8)
    high = _joined((stored >> np.uint8(4)).reshape(*shape, 2, 4).swapaxes(-1, -2), 2)
    nibbles = stored & np.uint8(15)
    low = nibbles[..., 0::2] | nibbles[..., 1::2] << np.uint8(4)
    return [_halves(rows.d), high, low, _nibbles(codes.reshape(*shape, 8, 32)).reshape(*shape, 128)]


WRITERS: Mapping[str, Callable[[TwoLevel, Bytes], Parts]] = {
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_xs": _iq4_xs,
}
"""By type: the parts of a superblock in the file's order, each uint8 [rows, superblocks, bytes]."""


def _heads(rows: TwoLevel) -> Parts:
    assert rows.dmin is not None
    return [_halves(rows.d), _halves(rows.dmin)]


def _six_bits(rows: TwoLevel) -> Bytes:
    """Eight scales and minimums of 6 bits in 12 bytes."""
    assert rows.minimums is not None
    scales, minimums, four = rows.scales.view(np.uint8), rows.minimums, np.uint8(4)
    first = scales[..., :4] | (scales[..., 4:] >> four) << np.uint8(6)
    second = minimums[..., :4] | (minimums[..., 4:] >> four) << np.uint8(6)
    third = (scales[..., 4:] & np.uint8(15)) | minimums[..., 4:] << four
    return np.concatenate([first, second, third], axis=-1)


def _two_bits(codes: Bytes) -> Bytes:
    """256 codes of 2 bits in 64 bytes: 128 columns share 32."""
    return _joined(codes.reshape(*codes.shape[:2], 2, 4, 32), 2).reshape(*codes.shape[:2], 64)


def _low_nibbles(codes: Bytes) -> Bytes:
    """256 codes of 4 bits in 128 bytes: 64 columns share 32."""
    return _nibbles(codes.reshape(*codes.shape[:2], 4, 64)).reshape(*codes.shape[:2], 128)


def _high_bits(bits: Bytes) -> Bytes:
    """256 bits in 32 bytes: bit b of byte l is of column 32b + l."""
    return _joined((bits & np.uint8(1)).reshape(*bits.shape[:2], 8, 32), 1)


def _nibbles(codes: Bytes) -> Bytes:
    """[..., 2n] → [..., n]: the first half in the low nibbles."""
    half = codes.shape[-1] // 2
    return codes[..., :half] | codes[..., half:] << np.uint8(4)


def _joined(parts: Bytes, bits: int) -> Bytes:
    """[..., 8/bits, n] fields of `bits` bits → [..., n], the first in the lowest bits."""
    words = np.zeros((*parts.shape[:-2], parts.shape[-1]), np.uint8)
    for place in range(8 // bits):
        words |= parts[..., place, :] << np.uint8(bits * place)
    return words


def _halves(values: Array) -> Bytes:
    """fp16 [rows, superblocks] → uint8 [rows, superblocks, 2]."""
    return np.ascontiguousarray(values[..., None]).view(np.uint8)
