"""Stored linears as rows of GGUF's blocks, some rows at a time: the inverse of `kernels.reference.ggml`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from thrifty.arrays import Array, Bytes, Integers
from thrifty.formats.gguf import type_of
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear, SuperblockLinear
from thrifty.kernels.reference import packing, superblock
from thrifty.kernels.reference.ggml.blocks import GROUP, SUPERBLOCK
from thrifty.models.export.gguf_superblocks import superblock_rows

ROWS = 1024  # at a time

# Columns and bytes of a block by type.
_BLOCK = {
    **{name: (GROUP, size) for name, size in
       {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "IQ4_NL": 18}.items()},
    **{name: (SUPERBLOCK, size) for name, size in
       {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136}.items()},
}  # fmt: skip
_PLAIN = {"F32": 4, "F16": 2, "BF16": 2}


def writable(linear: PackedLinear) -> str | None:
    """The type that `rows_of` writes a linear in, with its values as they are; None where it cannot."""
    name = type_of(linear)
    if name in _BLOCK:
        return name if linear.in_features % _BLOCK[name][0] == 0 else None
    return name if name in _PLAIN else None


def row_bytes(name: str, columns: int) -> int:
    """Bytes of a row in a type."""
    if name in _PLAIN:
        return columns * _PLAIN[name]
    width, size = _BLOCK[name]
    return columns // width * size


def rows_of(linear: PackedLinear, order: Integers | None = None) -> Iterator[Bytes]:
    """Its rows as the file has them, uint8 [n, row bytes], n at most ROWS. order: int64 [out], rows by place."""
    places = np.arange(linear.out_features) if order is None else order
    for start in range(0, linear.out_features, ROWS):
        part = places[start : start + ROWS]
        if isinstance(linear, SuperblockLinear):
            arrays = (linear.records, linear.scales, linear.minimums)
            yield superblock_rows(linear.type, superblock.unpack_rows(linear.layout, *arrays, part))
        else:
            yield _blocks(linear, part) if isinstance(linear, GroupLinear) else _plain(linear, part)


def _plain(linear: PackedLinear, places: Integers) -> Bytes:
    assert isinstance(linear, DenseLinear), "a linear of another format has no type"
    values = linear.rows(places).astype(linear.weight.dtype)
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(places), -1)


def _blocks(linear: GroupLinear, places: Integers) -> Bytes:
    """Scale and minimum of every block, fifth bits, then codes."""
    tile, lane = places // 16, places % 16
    codes = packing.unpack_code_rows(linear.codes, linear.bits, places)[:, : linear.in_features]
    grouped = codes.reshape(len(places), -1, GROUP)
    parts = [_halves(linear.scales[tile, :, lane])]
    if linear.minimums is not None:
        parts.append(_halves(linear.minimums[tile, :, lane]))
    if linear.bits == 8:
        parts.append(grouped ^ np.uint8(128))  # as int8
    else:
        if linear.bits == 5:
            parts.append(np.packbits(grouped >> np.uint8(4), axis=-1, bitorder="little"))
        low = grouped & np.uint8(15)
        parts.append(low[..., : GROUP // 2] | low[..., GROUP // 2 :] << np.uint8(4))
    return np.concatenate(parts, axis=-1).reshape(len(places), -1)


def _halves(values: Array) -> Bytes:
    """fp16 [n, groups] → uint8 [n, groups, 2]."""
    return np.ascontiguousarray(values[..., None]).view(np.uint8)
