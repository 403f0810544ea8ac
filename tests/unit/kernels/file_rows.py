"""Rows of GGUF types made of any bits, and their codes and scales read one by one: an oracle of the tests' own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array, Bytes, Floats
from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.matmul import fused_multiply_add

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


@dataclass(frozen=True)
class FileType:
    """A GGUF type: the layer's layout, columns and bytes of a block, where its fp16 scale and minimum lie."""

    layout: str
    columns: int
    size: int
    scale: int
    minimum: int | None
    code_bytes: int  # of the codes, or the record, of 16 rows
    sub_columns: int = 0  # 0: one level


TYPES = {
    "Q4_0": FileType("int4", 32, 18, 0, None, 256),
    "Q4_1": FileType("int4", 32, 20, 0, 2, 256),
    "Q5_0": FileType("int5", 32, 22, 0, None, 320),
    "Q5_1": FileType("int5", 32, 24, 0, 2, 320),
    "Q8_0": FileType("int8", 32, 34, 0, None, 512),
    "IQ4_NL": FileType("iq4_nl", 32, 18, 0, None, 256),
    "Q2_K": FileType("q2_k", 256, 84, 80, 82, 1280, 16),
    "Q3_K": FileType("q3_k", 256, 110, 108, None, 1728, 16),
    "Q4_K": FileType("q4_k", 256, 144, 0, 2, 2240, 32),
    "Q5_K": FileType("q5_k", 256, 176, 0, 2, 2752, 32),
    "Q6_K": FileType("q6_k", 256, 210, 208, None, 3328, 16),
    "IQ4_XS": FileType("iq4_xs", 256, 136, 0, None, 2144, 32),
}


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> Bytes:
    """uint8 [rows, row bytes]: any bits, but for scales and minimums of moderate size."""
    source, known = np.random.default_rng(seed), TYPES[kind]
    blocks = source.integers(0, 256, (rows, columns // known.columns, known.size), np.uint8)
    for at in (known.scale, known.minimum):
        if at is not None:
            halves = source.normal(0, 0.01, blocks.shape[:2]).astype(np.float16)
            blocks[:, :, at : at + 2] = halves[:, :, None].view(np.uint8)
    return blocks.reshape(rows, -1)


@dataclass(frozen=True)
class Decoded:
    """w = scale · sub · value − minimum · sub_minimum (two levels), or scale · value + minimum.

    values: int [rows, columns]; scales, minimums: fp32 [rows, blocks of the file]; sub_scales, sub_minimums: int
    [rows, columns / sub_columns].
    """

    values: Array
    scales: Floats
    minimums: Floats | None
    sub_scales: Array | None
    sub_minimums: Array | None

    def weights(self, known: FileType) -> Floats:
        """fp32 [rows, columns]."""
        scales = self.scales.repeat(known.columns, 1)
        minimums = 0 if self.minimums is None else self.minimums.repeat(known.columns, 1)
        if self.sub_scales is None:
            return scales * self.values.astype(np.float32) + minimums
        scales = scales * self.sub_scales.repeat(known.sub_columns, 1).astype(np.float32)
        if self.sub_minimums is not None:
            minimums = minimums * self.sub_minimums.repeat(known.sub_columns, 1).astype(np.float32)
        return scales * self.values.astype(np.float32) - minimums


def decode(kind: str, raw: Bytes) -> Decoded:
    """Every column by itself, as ggml's dequantize_row functions read it."""
    known = TYPES[kind]
    blocks = raw.reshape(len(raw), -1, known.size)
    values = np.stack([_value(kind, blocks, column) for column in range(known.columns)], 2).reshape(len(raw), -1)
    subs = minimums = None
    if known.sub_columns:
        pairs = [_sub_scale(kind, blocks, i) for i in range(256 // known.sub_columns)]
        subs = np.stack([scale for scale, _ in pairs], 2).reshape(len(raw), -1)
        if known.minimum is not None:
            minimums = np.stack([minimum for _, minimum in pairs], 2).reshape(len(raw), -1)
    minimum = None if known.minimum is None else _half(blocks, known.minimum)
    return Decoded(values, _half(blocks, known.scale), minimum, subs, minimums)


def product(kind: str, raw: Bytes, x: Floats) -> Floats:
    """x fp32 [m, columns] · Wᵀ → fp32 [m, rows] with the numerics of the kernels, in their order."""
    known, weights = TYPES[kind], decode(kind, raw)
    q, xs = quantise_activations(x)
    total = np.zeros((len(x), len(raw)), np.float32)
    s, t = total, total
    for block in range(q.shape[1]):
        unit = block * 32 // known.columns
        values = weights.values[:, 32 * block : 32 * block + 32]
        if weights.sub_scales is None:
            total = fused_multiply_add(_dots(q[:, block], values), weights.scales[:, unit] * xs[:, block, None], total)
            if weights.minimums is not None:
                total = fused_multiply_add(weights.minimums[:, unit], _sum(q[:, block]) * xs[:, block, None], total)
            continue
        if block % 8 == 0:
            s, t = np.zeros_like(total), np.zeros_like(total)
        s, t = _add_block(known, weights, block, values, q[:, block], xs[:, block, None], s, t)
        if block % 8 == 7:
            total = fused_multiply_add(weights.scales[:, unit], s, total)
            if weights.minimums is not None:
                total = fused_multiply_add(-weights.minimums[:, unit], t, total)
    return total


def _add_block(
    known: FileType, weights: Decoded, block: int, values: Array, q: Array, xs: Floats, s: Floats, t: Floats
) -> tuple[Floats, Floats]:
    """The sums of scales and of minimums with one more block."""
    assert weights.sub_scales is not None
    parts = 32 // known.sub_columns
    subs = weights.sub_scales[:, parts * block : parts * (block + 1)].astype(np.float32)
    if parts == 1:
        s = fused_multiply_add(_dots(q, values), subs[:, 0] * xs, s)
    else:
        first = _dots(q[:, :16], values[:, :16]) * subs[:, 0]
        s = fused_multiply_add(fused_multiply_add(_dots(q[:, 16:], values[:, 16:]), subs[:, 1], first), xs, s)
    if weights.sub_minimums is not None:
        for part in range(parts):
            columns = slice(part * known.sub_columns, (part + 1) * known.sub_columns)
            minimum = weights.sub_minimums[:, parts * block + part].astype(np.float32)
            t = fused_multiply_add(minimum, _sum(q[:, columns]) * xs, t)
    return s, t


def _dots(q: Array, values: Array) -> Floats:
    return (q.astype(np.int64) @ values.T.astype(np.int64)).astype(np.float32)


def _sum(q: Array) -> Floats:
    return q.sum(axis=1, keepdims=True, dtype=np.int64).astype(np.float32)


def _half(blocks: Bytes, at: int) -> Floats:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0].astype(np.float32)


def _value(kind: str, blocks: Bytes, column: int) -> Array:
    """What the scale multiplies at one column of every block: int [rows, blocks]."""
    bits = blocks.astype(np.int64)
    block, c = column // 32, column % 32
    if kind == "Q8_0":
        return bits[:, :, 2 + c].astype(np.uint8).view(np.int8)
    if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"):
        low = TYPES[kind].size - 16
        code = bits[:, :, low + c % 16] >> 4 * (c // 16) & 15
        if kind in ("Q5_0", "Q5_1"):
            code = code | (bits[:, :, low - 4 + c // 8] >> c % 8 & 1) << 4
        return IQ4[code] if kind == "IQ4_NL" else code - {"Q4_0": 8, "Q5_0": 16}.get(kind, 0)
    if kind in ("Q4_K", "Q5_K"):
        code = bits[:, :, (16 if kind == "Q4_K" else 48) + 32 * (block // 2) + c] >> 4 * (block % 2) & 15
        return code if kind == "Q4_K" else code | (bits[:, :, 16 + c] >> block & 1) << 4
    half, part = block // 4, block % 4
    if kind == "Q6_K":
        low = bits[:, :, 64 * half + 32 * (part % 2) + c] >> 4 * (part // 2) & 15
        return (low | (bits[:, :, 128 + 32 * half + c] >> 2 * part & 3) << 4) - 32
    if kind == "Q2_K":
        return bits[:, :, 16 + 32 * half + c] >> 2 * part & 3
    if kind == "Q3_K":
        code = bits[:, :, 32 + 32 * half + c] >> 2 * part & 3
        return code + 4 * (bits[:, :, c] >> block & 1) - 4
    return IQ4[bits[:, :, 8 + 16 * block + c % 16] >> 4 * (c // 16) & 15]


def _sub_scale(kind: str, blocks: Bytes, i: int) -> tuple[Array, Array | None]:
    """Sub-scale and sub-minimum i of every superblock: int [rows, superblocks]."""
    bits = blocks.astype(np.int64)
    if kind == "Q2_K":
        return bits[:, :, i] & 15, bits[:, :, i] >> 4
    if kind == "Q6_K":
        return bits[:, :, 192 + i].astype(np.uint8).view(np.int8).astype(np.int64), None
    if kind == "Q3_K":
        low = bits[:, :, 96 + i % 8] >> 4 * (i // 8) & 15
        return (low | (bits[:, :, 104 + i % 4] >> 2 * (i // 4) & 3) << 4) - 32, None
    if kind == "IQ4_XS":
        high = bits[:, :, 2 + i // 4] >> 2 * (i % 4) & 3
        return (bits[:, :, 4 + i // 2] >> 4 * (i % 2) & 15 | high << 4) - 32, None
    packed = bits[:, :, 4:16]
    if i < 4:
        return packed[:, :, i] & 63, packed[:, :, i + 4] & 63
    scale = packed[:, :, i + 4] & 15 | packed[:, :, i - 4] >> 6 << 4
    return scale, packed[:, :, i + 4] >> 4 | packed[:, :, i] >> 6 << 4
