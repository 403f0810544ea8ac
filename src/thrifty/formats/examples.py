"""A layer of every variant of every stored format, of random numbers: for lists of what there is and what it takes, for
benchmarks, and for the tests that every format is held to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product

import numpy as np

from thrifty.arrays import BFLOAT16, Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import codebook, group, signs, sparse_2_4, zero_point
from thrifty.formats.linear import (
    BitPlaneLinear,
    CodebookLinear,
    DenseLinear,
    GroupLinear,
    PackedLinear,
    SignLinear,
    Sparse24Linear,
    SuperblockLinear,
    ZeroPointLinear,
)
from thrifty.kernels.reference import superblock
from thrifty.kernels.reference.codebooks import CODEBOOKS
from thrifty.kernels.reference.sparse_2_4 import largest_two

_CODED: tuple[sparse_2_4.Values, ...] = ("int8", "int4")
_PLANES = ((1, 1), (1, 8), (2, 2), (2, 8), (3, 4), (4, 4), (4, 8), (8, 8))


def examples(rows: int, columns: int) -> Iterator[PackedLinear]:
    """Every variant as a layer [rows, columns]; columns a multiple of 256."""
    for make in EXAMPLES.values():
        yield from make(rows, columns)


def _groups(rows: int, columns: int) -> Iterator[PackedLinear]:
    for bits, size, has_minimum in product(group.BITS, group.GROUPS, (False, True)):
        if _is_option(bits, size):
            codes, scales = _codes(rows, columns, bits), _scales(rows, -(-columns // size))
            signed = codes.astype(np.int16) - 128 if bits == 8 else codes
            yield GroupLinear.from_codes(signed, scales, -scales if has_minimum else None, bits, size)
    for name in CODEBOOKS:
        codes, scales = _codes(rows, columns, 4), _scales(rows, columns // 32)
        yield GroupLinear.from_codes(codes, scales, None, 4, 32, codebook=name)


def _is_option(bits: int, size: int) -> bool:
    try:
        group.check_options(bits, size)
    except KernelError:
        return False
    return True


def _zero_points(rows: int, columns: int) -> Iterator[PackedLinear]:
    for bits, size in product(zero_point.BITS, group.GROUPS):
        groups = columns // size
        zeros = _codes(rows, groups, bits)
        yield ZeroPointLinear.from_codes(_codes(rows, columns, bits), _scales(rows, groups), zeros, bits, size)


def _codebooks(rows: int, columns: int) -> Iterator[PackedLinear]:
    for bits, size in product(codebook.BITS, (64, 128)):
        table, scales = _weight(1, 1 << bits)[0], _scales(rows, columns // size)
        yield CodebookLinear.from_codes(_codes(rows, columns, bits), scales, table, bits, size)


def _superblocks(rows: int, columns: int) -> Iterator[PackedLinear]:
    tiles, superblocks = -(-rows // 16), columns // superblock.SUPERBLOCK
    for name, layout in superblock.TYPES.items():
        records = _codes(tiles * superblocks, layout.record_bytes, 8).reshape(tiles, superblocks, -1)
        scales = (_scales(tiles * superblocks, 16) / 16).astype(np.float16).reshape(tiles, superblocks, 16)
        yield SuperblockLinear(rows, columns, name, records, scales, scales if layout.has_minimum else None)


def _dense(rows: int, columns: int) -> Iterator[PackedLinear]:
    weight = _weight(rows, columns)
    yield DenseLinear.from_weight(weight, BFLOAT16, packed=True)
    for dtype in (np.float16, np.float32):
        yield DenseLinear.from_weight(weight, dtype)


def _sparse_2_4(rows: int, columns: int) -> Iterator[PackedLinear]:
    weight = _weight(rows, columns)
    mask = largest_two(np.abs(weight))
    yield Sparse24Linear.from_weight(weight, mask, "bf16")
    for values, size in product(_CODED, sparse_2_4.GROUPS):
        yield Sparse24Linear.from_weight(weight, mask, values, size)


def _signs(rows: int, columns: int) -> Iterator[PackedLinear]:
    """Groups of three widths, and a scale a row."""
    for levels, size in product(signs.LEVELS, (*group.GROUPS, columns)):
        yield SignLinear.quantize(_weight(rows, columns), levels, size)


def _bit_planes(rows: int, columns: int) -> Iterator[PackedLinear]:
    """Some of the 64 pairs of widths."""
    for (bits, activation_bits), size in product(_PLANES, (64, 128)):
        codes, scales = _codes(rows, columns, bits), _scales(rows, columns // size)
        yield BitPlaneLinear.from_codes(codes, scales, bits, activation_bits, size)


def _codes(rows: int, columns: int, bits: int) -> Bytes:
    return np.random.default_rng(bits).integers(0, 1 << bits, (rows, columns), np.uint8)


def _scales(rows: int, groups: int) -> Floats:
    """Numbers that a float16 holds."""
    random = 0.01 + np.random.default_rng(groups).random((rows, groups), np.float32) / np.float32(16)
    return random.astype(np.float16).astype(np.float32)


def _weight(rows: int, columns: int) -> Floats:
    return np.random.default_rng(columns).standard_normal((rows, columns), np.float32)


EXAMPLES: Mapping[str, Callable[[int, int], Iterator[PackedLinear]]] = {
    GroupLinear.kind: _groups,
    ZeroPointLinear.kind: _zero_points,
    SuperblockLinear.kind: _superblocks,
    CodebookLinear.kind: _codebooks,
    DenseLinear.kind: _dense,
    Sparse24Linear.kind: _sparse_2_4,
    SignLinear.kind: _signs,
    BitPlaneLinear.kind: _bit_planes,
}
"""By a format's kind. A test fails for a format that has no entry."""
