"""A layer of every variant of every stored format, of zeros: for lists of what there is and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product

import numpy as np

from thrifty.arrays import BFLOAT16
from thrifty.errors import KernelError
from thrifty.formats import codebook, group, zero_point
from thrifty.formats.linear import (
    BitPlaneLinear,
    CodebookLinear,
    DenseLinear,
    GroupLinear,
    PackedLinear,
    RowTableLinear,
    SignLinear,
    SparseLinear,
    SuperblockLinear,
    VectorLinear,
    ZeroPointLinear,
)
from thrifty.formats.packed import formats
from thrifty.kernels.reference import superblock
from thrifty.kernels.reference.codebooks import CODEBOOKS


def examples(rows: int, columns: int) -> Iterator[PackedLinear]:
    """Every variant as a layer [rows, columns]; columns a multiple of 256."""
    for make in EXAMPLES.values():
        yield from make(rows, columns)


def _groups(rows: int, columns: int) -> Iterator[PackedLinear]:
    codes = np.zeros((rows, columns), np.uint8)
    for bits, size, has_minimum in product(group.BITS, group.GROUPS, (False, True)):
        if _is_option(bits, size):
            scales = np.zeros((rows, -(-columns // size)), np.float16)
            yield GroupLinear.from_codes(codes, scales, scales if has_minimum else None, bits, size)
    for name in CODEBOOKS:
        scales = np.zeros((rows, columns // 32), np.float16)
        yield GroupLinear.from_codes(codes, scales, None, 4, 32, codebook=name)


def _is_option(bits: int, size: int) -> bool:
    try:
        group.check_options(bits, size)
    except KernelError:
        return False
    return True


def _zero_points(rows: int, columns: int) -> Iterator[PackedLinear]:
    codes = np.zeros((rows, columns), np.uint8)
    for bits, size in product(zero_point.BITS, group.GROUPS):
        parameters = np.zeros((rows, columns // size), np.float16)
        yield ZeroPointLinear.from_codes(codes, parameters, parameters.astype(np.uint8), bits, size)


def _codebooks(rows: int, columns: int) -> Iterator[PackedLinear]:
    codes = np.zeros((rows, columns), np.uint8)
    for bits, size in product(codebook.BITS, (64, 128)):
        scales = np.zeros((rows, columns // size), np.float32)
        yield CodebookLinear.from_codes(codes, scales, np.zeros(1 << bits, np.float32), bits, size)


def _superblocks(rows: int, columns: int) -> Iterator[PackedLinear]:
    shape = (-(-rows // 16), columns // superblock.SUPERBLOCK)
    for name, layout in superblock.TYPES.items():
        records, scales = np.zeros((*shape, layout.record_bytes), np.uint8), np.zeros((*shape, 16), np.float16)
        yield SuperblockLinear(rows, columns, name, records, scales, scales if layout.has_minimum else None)


def _dense(rows: int, columns: int) -> Iterator[PackedLinear]:
    weight = np.zeros((rows, columns), np.float32)
    yield DenseLinear.from_weight(weight, BFLOAT16, packed=True)
    for dtype in (np.float16, np.float32):
        yield DenseLinear.from_weight(weight, dtype)


EXAMPLES: Mapping[str, Callable[[int, int], Iterator[PackedLinear]]] = {
    **{kind.kind: kind.examples for kind in formats()},
    GroupLinear.kind: _groups,
    ZeroPointLinear.kind: _zero_points,
    SuperblockLinear.kind: _superblocks,
    CodebookLinear.kind: _codebooks,
    DenseLinear.kind: _dense,
    SignLinear.kind: SignLinear.examples,
    BitPlaneLinear.kind: BitPlaneLinear.examples,
    RowTableLinear.kind: RowTableLinear.examples,
    VectorLinear.kind: VectorLinear.examples,
    SparseLinear.kind: SparseLinear.examples,
}
"""By a format's kind. A test fails for a format that has no entry."""
