"""Weights with two levels of scales, 256 columns a superblock: the record's layout, and the product's numerics.

A record holds 16 rows (lanes) of a superblock: its sub-scales, then for each of 8 blocks of 32 columns the planes of
`packing.pack_codes`. It is a permutation of the bits that the file has, so that `pack` and `unpack` are inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.codebooks import CODEBOOKS
from thrifty.kernels.reference.ggml.blocks import Halves, SignedBytes, TwoLevel, signed
from thrifty.kernels.reference.matmul import fused_multiply_add
from thrifty.kernels.reference.packing import TILE_ROWS

SUPERBLOCK = 256  # columns
BLOCK = 32  # columns
BLOCKS = SUPERBLOCK // BLOCK

Words = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SuperblockType:
    """One type's layout: codes of `bits`, of which `offset` is taken off, or which stand for values of `codebook`;
    `count` sub-scales (8: one for 32 columns, 16: one for 16), stored plus `bias`, in `scale_bytes` of a record.
    """

    name: str
    bits: int
    offset: int
    count: int
    bias: int
    scale_bytes: int
    has_minimum: bool
    codebook: str | None
    pack_scales: Callable[[Bytes, Bytes | None], Bytes]
    unpack_scales: Callable[[Bytes], tuple[Bytes, Bytes | None]]

    @property
    def record_bytes(self) -> int:
        """Bytes of 16 rows of a superblock, without d and dmin."""
        return self.scale_bytes + BLOCKS * 64 * self.bits

    @property
    def table(self) -> SignedBytes | None:
        """The values that codes stand for, int8 [16]; None where they are numbers themselves."""
        return None if self.codebook is None else CODEBOOKS[self.codebook]


def pack(kind: SuperblockType, rows: TwoLevel) -> tuple[Bytes, Halves, Halves | None]:
    """Rows as records, uint8 [tiles, superblocks, record bytes], and d and dmin, fp16 [tiles, superblocks, 16].

    Rows are padded to 16 with zero bytes.
    """
    scales = _lanes((rows.scales + np.int8(kind.bias)).view(np.uint8))
    tiles, superblocks, _, _ = scales.shape
    records = np.empty((tiles, superblocks, kind.record_bytes), np.uint8)
    minimums = None if rows.minimums is None else _lanes(rows.minimums)
    records[:, :, : kind.scale_bytes] = kind.pack_scales(scales, minimums)
    codes = packing.pad_to(rows.codes, TILE_ROWS * tiles, SUPERBLOCK * superblocks)
    records[:, :, kind.scale_bytes :] = packing.pack_codes(codes, kind.bits).reshape(tiles, superblocks, -1)
    d, dmin = (None if each is None else _lanes(each[..., None])[:, :, 0] for each in (rows.d, rows.dmin))
    assert d is not None
    return records, np.ascontiguousarray(d), None if dmin is None else np.ascontiguousarray(dmin)


def unpack(kind: SuperblockType, records: Bytes, d: Halves, dmin: Halves | None) -> TwoLevel:
    """Inverse of `pack`, with the rows of padding."""
    tiles, superblocks, _ = records.shape
    scales, minimums = kind.unpack_scales(records[:, :, : kind.scale_bytes])
    planes = records[:, :, kind.scale_bytes :].reshape(tiles, superblocks * BLOCKS, 64 * kind.bits)
    return _two_level(
        kind,
        packing.unpack_codes(planes, kind.bits),
        _rows(scales),
        packing.unpack_parameters(d),
        None if minimums is None else _rows(minimums),
        None if dmin is None else packing.unpack_parameters(dmin),
    )


def unpack_rows(kind: SuperblockType, records: Bytes, d: Halves, dmin: Halves | None, rows: Integers) -> TwoLevel:
    """Single rows, int64 [n], touching only the records that hold them."""
    superblocks = records.shape[1]
    tile, lane = rows // TILE_ROWS, rows % TILE_ROWS
    scales, minimums = kind.unpack_scales(records[tile, :, : kind.scale_bytes])  # [n, superblocks, count, 16]
    each = np.arange(len(rows))
    planes = records[tile, :, kind.scale_bytes :].reshape(len(rows), superblocks * BLOCKS, 64 * kind.bits)
    return _two_level(
        kind,
        packing.unpack_code_rows(planes, kind.bits, TILE_ROWS * each + lane),
        scales[each, :, :, lane],
        d[tile, :, lane],
        None if minimums is None else minimums[each, :, :, lane],
        None if dmin is None else dmin[tile, :, lane],
    )


def _two_level(
    kind: SuperblockType,
    codes: Bytes,
    scales: Bytes,
    d: Halves,
    minimums: Bytes | None,
    dmin: Halves | None,
) -> TwoLevel:
    """scales: as stored, uint8 [rows, superblocks, count]."""
    own = np.ascontiguousarray(scales).view(np.int8) - np.int8(kind.bias)
    return TwoLevel(codes, kind.offset, own, d, minimums, dmin, kind.table)


def superblock_matmul(activations: Floats, rows: TwoLevel) -> Floats:
    """activations fp32 [m, in] × weights of two levels [out, in] → fp32 [m, out], with int8 activations as
    `quantise_activations` rounds them (scale xs and codes q a block).

    For each superblock s = t = 0; for each of its blocks, with dot = Σ (code − offset)·q of the columns of a sub-scale:
    8 sub-scales: s = fma(dot, sc·xs, s); 16: f = dot₀·sc₀, f = fma(dot₁, sc₁, f), s = fma(f, xs, s). Minimums, with
    8: t = fma(m, xs·Σq, t); with 16: t = fma(m₀, xs·Σ₀q, t), t = fma(m₁, xs·Σ₁q, t). Then acc = fma(d, s, acc), and
    with minimums acc = fma(−dmin, t, acc).
    """
    quantised, activation_scales = quantise_activations(activations)
    weights = _weights(rows)
    shape, places = (len(activations), len(rows.codes)), weights.shape[:4]
    scales = rows.scales.astype(np.float32).reshape(places)
    minimums = None if rows.minimums is None else rows.minimums.astype(np.float32).reshape(places)
    result = np.zeros(shape, np.float32)
    for superblock in range(places[1]):
        total, below = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for block in range(BLOCKS):
            place = superblock * BLOCKS + block
            codes = quantised[:, place].astype(np.float64).reshape(len(activations), places[3], -1)
            scale, here = activation_scales[:, place, None], (slice(None), superblock, block)
            total = _scaled(codes, weights[here], scales[here], scale, total)
            if minimums is not None:
                below = _shifted(codes, minimums[here], scale, below)
        result = fused_multiply_add(rows.d[:, superblock].astype(np.float32), total, result)
        if rows.dmin is not None:
            result = fused_multiply_add(-rows.dmin[:, superblock].astype(np.float32), below, result)
    return result


def _scaled(codes: Doubles, weights: Doubles, scales: Floats, activation_scale: Floats, total: Floats) -> Floats:
    """`total` and one block's dots under its sub-scales. codes: [m, parts, columns]; weights: [out, parts, columns];
    scales: [out, parts].
    """
    dots = [(codes[:, part] @ weights[:, part].T).astype(np.float32) for part in range(codes.shape[1])]  # exact
    if len(dots) == 1:
        return fused_multiply_add(dots[0], scales[:, 0] * activation_scale, total)
    both = fused_multiply_add(dots[1], scales[:, 1], dots[0] * scales[:, 0])
    return fused_multiply_add(both, activation_scale, total)


def _shifted(codes: Doubles, minimums: Floats, activation_scale: Floats, below: Floats) -> Floats:
    """`below` and one block's sums of activations under its minimums [out, parts]."""
    for part in range(codes.shape[1]):
        sums = codes[:, part].sum(axis=-1, keepdims=True).astype(np.float32)
        below = fused_multiply_add(minimums[:, part], activation_scale * sums, below)
    return below


def _weights(rows: TwoLevel) -> Doubles:
    """What activations are multiplied with, exact: fp64 [rows, superblocks, 8, sub-scales of a block, columns]."""
    count, superblocks, subs = rows.scales.shape
    exact = signed(rows.codes, rows.offset, rows.table).astype(np.float64)
    return exact.reshape(count, superblocks, BLOCKS, subs // BLOCKS, -1)


def _lanes(values: Array) -> Array:
    """[rows, superblocks, count] → [rows/16, superblocks, count, 16], rows padded with zeros."""
    rows, superblocks, count = values.shape
    whole = packing.pad_to(values.reshape(rows, -1), packing.padded(rows, TILE_ROWS), superblocks * count)
    return whole.reshape(-1, TILE_ROWS, superblocks, count).transpose(0, 2, 3, 1)


def _rows(values: Bytes) -> Bytes:
    """Inverse of `_lanes`."""
    tiles, superblocks, count, _ = values.shape
    return values.transpose(0, 3, 1, 2).reshape(tiles * TILE_ROWS, superblocks, count)


def _word(values: Bytes, bits: int) -> Words:
    """Fields [..., n, 16] of `bits` bits as one word a lane: field i in bits bits·i. uint32 [..., 16]."""
    word = np.zeros((*values.shape[:-2], TILE_ROWS), np.uint32)
    for place in range(values.shape[-2]):
        word |= values[..., place, :].astype(np.uint32) << np.uint32(bits * place)
    return word


def _fields(word: Words, bits: int, count: int) -> Bytes:
    """Inverse of `_word`: uint8 [..., count, 16]."""
    shifts = (bits * np.arange(count, dtype=np.uint32))[:, None]
    return ((word[..., None, :] >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint8)


def _bytes(words: list[Words]) -> Bytes:
    """Words [..., 16] one behind the other: uint8 [..., bytes]."""
    stacked = np.stack(words, axis=-2)
    return stacked.view(np.uint8).reshape(*stacked.shape[:-2], -1)


def _words(raw: Bytes) -> Words:
    """uint8 [..., 64·n] → uint32 [..., n, 16]."""
    return np.ascontiguousarray(raw).view(np.uint32).reshape(*raw.shape[:-1], raw.shape[-1] // 64, TILE_ROWS)


def _pack_q4(scales: Bytes, minimums: Bytes | None) -> Bytes:
    """8 scales and minimums of 6 bits: low nibbles of scales, of minimums, then pairs of high bits of both."""
    assert minimums is not None
    both = np.concatenate([scales, minimums], axis=-2)
    return _bytes([_word(scales & np.uint8(15), 4), _word(minimums & np.uint8(15), 4), _word(both >> np.uint8(4), 2)])


def _unpack_q4(raw: Bytes) -> tuple[Bytes, Bytes | None]:
    words = _words(raw)
    high = _fields(words[..., 2, :], 2, 16) << np.uint8(4)
    scales, minimums = _fields(words[..., 0, :], 4, 8), _fields(words[..., 1, :], 4, 8)
    return scales | high[..., :8, :], minimums | high[..., 8:, :]


def _pack_q6(scales: Bytes, minimums: Bytes | None) -> Bytes:
    """16 scales of 8 bits."""
    return _bytes([_word(scales[..., start : start + 4, :], 8) for start in range(0, 16, 4)])


def _unpack_q6(raw: Bytes) -> tuple[Bytes, Bytes | None]:
    words = _words(raw)
    return np.concatenate([_fields(words[..., place, :], 8, 4) for place in range(4)], axis=-2), None


def _pack_q3(scales: Bytes, minimums: Bytes | None) -> Bytes:
    """16 scales of 6 bits: low nibbles of the first eight, of the others, then pairs of high bits."""
    return _bytes(
        [
            _word(scales[..., :8, :] & np.uint8(15), 4),
            _word(scales[..., 8:, :] & np.uint8(15), 4),
            _word(scales >> np.uint8(4), 2),
        ]
    )


def _unpack_q3(raw: Bytes) -> tuple[Bytes, Bytes | None]:
    words = _words(raw)
    low = np.concatenate([_fields(words[..., 0, :], 4, 8), _fields(words[..., 1, :], 4, 8)], axis=-2)
    return low | _fields(words[..., 2, :], 2, 16) << np.uint8(4), None


def _pack_q2(scales: Bytes, minimums: Bytes | None) -> Bytes:
    """16 scales of 4 bits, then 16 minimums of 4 bits."""
    assert minimums is not None
    both = np.concatenate([scales, minimums], axis=-2)
    return _bytes([_word(both[..., start : start + 8, :], 4) for start in range(0, 32, 8)])


def _unpack_q2(raw: Bytes) -> tuple[Bytes, Bytes | None]:
    words = _words(raw)
    both = np.concatenate([_fields(words[..., place, :], 4, 8) for place in range(4)], axis=-2)
    return both[..., :16, :], both[..., 16:, :]


def _pack_iq4(scales: Bytes, minimums: Bytes | None) -> Bytes:
    """8 scales of 6 bits: low nibbles, then pairs of high bits as 16 lanes of two bytes."""
    low, high = _word(scales & np.uint8(15), 4), _word(scales >> np.uint8(4), 2).astype(np.uint16)
    return np.concatenate([low.view(np.uint8), high.view(np.uint8)], axis=-1)


def _unpack_iq4(raw: Bytes) -> tuple[Bytes, Bytes | None]:
    low = _words(raw[..., :64])[..., 0, :]
    high = np.ascontiguousarray(raw[..., 64:]).view(np.uint16).astype(np.uint32)
    return _fields(low, 4, 8) | _fields(high, 2, 8) << np.uint8(4), None


TYPES: Mapping[str, SuperblockType] = {
    "q2_k": SuperblockType("q2_k", 2, 0, 16, 0, 256, True, None, _pack_q2, _unpack_q2),
    "q3_k": SuperblockType("q3_k", 3, 4, 16, 32, 192, False, None, _pack_q3, _unpack_q3),
    "q4_k": SuperblockType("q4_k", 4, 0, 8, 0, 192, True, None, _pack_q4, _unpack_q4),
    "q5_k": SuperblockType("q5_k", 5, 0, 8, 0, 192, True, None, _pack_q4, _unpack_q4),
    "q6_k": SuperblockType("q6_k", 6, 32, 16, 0, 256, False, None, _pack_q6, _unpack_q6),
    "iq4_xs": SuperblockType("iq4_xs", 4, 0, 8, 32, 96, False, "iq4", _pack_iq4, _unpack_iq4),
}
"""By ggml's name in small letters, as native code calls them."""
