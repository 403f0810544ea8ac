"""Two of every four columns: masks, and the order of bytes in which native kernels read what is kept.

A block of 16 rows × 32 columns is a vector of 32-bit words, one a row, whose bit c says whether column c is kept, and
behind it the kept numbers in their order: codes of 8 and 4 bits as planes of half as many columns, bf16 as a vector of
pairs for every four columns (`linear/layouts/sparse.hpp`). Of a bf16 weight that is 9 bits of 16, of int8 codes 5 of 8,
of int4 codes 3 of 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Flags, Floats, Integers
from thrifty.errors import KernelError
from thrifty.kernels.reference.packing import TILE_COLUMNS, TILE_ROWS, pad_to, padded

GROUP, KEPT = 4, 2
CANDIDATES: Flags = np.array(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], np.bool_
)
"""The masks of four columns that keep two: bool [6, 4]."""
PLACES: Integers = np.array(
    [
        [-1, -1, -1, -1], [0, -1, -1, 1], [-1, 0, -1, 1], [0, 1, -1, -1],
        [-1, -1, 0, 1], [0, -1, 1, -1], [-1, 0, 1, -1], [-1, -1, -1, -1],
    ],
    np.int64,
)  # fmt: skip
"""Which of the two kept numbers each column of a group has, −1 for none, by its mask's lowest three bits, which tell
the six masks apart: int64 [8, 4].
"""
BLOCK_BYTES: Mapping[int, int] = {4: 64 + 128, 8: 64 + 256, 16: 64 + 512}
"""Bytes of a block by the bits of a number."""


def check_mask(mask: Flags) -> None:
    """Raise KernelError where a mask bool [rows, columns] does not keep two of every four columns of a row."""
    rows, columns = mask.shape
    if columns % GROUP:
        raise KernelError(
            f"a row of {columns} columns is not whole groups of {GROUP}, of which {KEPT} are kept: leave this layer out"
        )
    counts = mask.reshape(rows, columns // GROUP, GROUP).sum(axis=-1)
    if (counts != KEPT).any():
        row, group = (int(place[0]) for place in np.nonzero(counts != KEPT))
        raise KernelError(
            f"the mask keeps {int(counts[row, group])} of columns {GROUP * group} to {GROUP * group + GROUP - 1} of "
            f"row {row}; it must keep {KEPT} of every {GROUP}"
        )


def largest_two(scores: Floats) -> Flags:
    """bool [rows, columns]: the two largest scores of every four columns; of equal ones the first."""
    rows, columns = scores.shape
    order = np.argsort(-scores.reshape(rows, columns // GROUP, GROUP), axis=-1, kind="stable")
    mask = np.zeros(order.shape, np.bool_)
    np.put_along_axis(mask, order[..., :KEPT], True, axis=-1)
    return mask.reshape(rows, columns)


def places(mask: Flags) -> Integers:
    """The columns that a mask [rows, columns] keeps, rising: int64 [rows, columns / 2]."""
    rows, columns = mask.shape
    return np.nonzero(mask)[1].reshape(rows, columns // GROUP * KEPT)


def pack(numbers: Array, mask: Flags, bits: int) -> Bytes:
    """Kept numbers and their mask → uint8 [rows/16, columns/32, block bytes], padded with zeros.

    numbers: [rows, columns / 2] in the order of `places`: two's complement codes uint8 (below 16 of 4 bits), or the
    bits of bf16 as uint16. Padding keeps the first two columns of a group.
    """
    rows, columns = mask.shape
    tall, wide = padded(rows, TILE_ROWS), padded(columns, TILE_COLUMNS)
    whole = np.zeros((tall, wide // GROUP, GROUP), np.bool_)
    whole[..., :KEPT] = True
    grouped = whole.reshape(tall, wide)
    grouped[:rows, :columns] = mask
    tiles, blocks = tall // TILE_ROWS, wide // TILE_COLUMNS
    packed = np.empty((tiles, blocks, BLOCK_BYTES[bits]), np.uint8)
    words = np.packbits(grouped.reshape(tiles, TILE_ROWS, blocks, TILE_COLUMNS), axis=-1, bitorder="little")
    packed[..., :64] = words.transpose(0, 2, 1, 3).reshape(tiles, blocks, 64)
    packed[..., 64:] = _pack_numbers(pad_to(numbers, tall, wide // 2), bits)
    return packed


def unpack(packed: Bytes, bits: int) -> tuple[Array, Flags]:
    """Inverse of `pack`: numbers [rows, columns / 2] and the mask, with their padding."""
    tiles, blocks, _ = packed.shape
    words = packed[..., :64].reshape(tiles, blocks, TILE_ROWS, 4).transpose(0, 2, 1, 3)
    mask = np.unpackbits(np.ascontiguousarray(words), axis=-1, bitorder="little")
    numbers = _unpack_numbers(np.ascontiguousarray(packed[..., 64:]), bits)
    return numbers, mask.reshape(TILE_ROWS * tiles, TILE_COLUMNS * blocks).astype(np.bool_)


def expand(numbers: Array, mask: Flags) -> Array:
    """What is kept at its columns, zeros elsewhere: [rows, columns] of the numbers' type. Groups are told apart by the
    mask's first three columns, as native code does: a damaged file gives wrong numbers and no error.
    """
    rows, columns = mask.shape
    first = mask.reshape(rows, columns // GROUP, GROUP)[..., :3].astype(np.uint8)
    place = PLACES[first[..., 0] | first[..., 1] << 1 | first[..., 2] << 2]
    pairs = numbers.reshape(rows, columns // GROUP, KEPT)
    whole = np.take_along_axis(pairs, np.maximum(place, 0), axis=-1)
    whole[place < 0] = 0
    return whole.reshape(rows, columns)


def signed(codes: Bytes, bits: int) -> npt.NDArray[np.int16]:
    """Two's complement codes of so many bits as whole numbers."""
    half = 1 << (bits - 1)
    return (codes.astype(np.int16) ^ np.int16(half)) - np.int16(half)


def _pack_numbers(numbers: Array, bits: int) -> Bytes:
    """[rows, columns / 2] (multiples of 16) → uint8 [tiles, blocks, bytes].

    Codes: vector v of four has kept number 4v+j of row r at byte 4r+j; of 4 bits the first two vectors lie in the low
    nibbles, the last two in the high ones. bf16: of each group of four columns a vector of pairs.
    """
    rows, kept = numbers.shape
    tiles, blocks = rows // TILE_ROWS, kept // 16
    if bits == 16:
        pairs = numbers.view(np.uint32).reshape(tiles, TILE_ROWS, blocks, 8).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pairs).view(np.uint8).reshape(tiles, blocks, 512)
    words = numbers.view(np.uint32).reshape(tiles, TILE_ROWS, blocks, 4).transpose(0, 2, 3, 1)
    if bits == 4:
        words = words[:, :, :2] | words[:, :, 2:] << np.uint32(4)
    return np.ascontiguousarray(words).view(np.uint8).reshape(tiles, blocks, 32 * bits)


def _unpack_numbers(packed: Bytes, bits: int) -> Array:
    """Inverse of `_pack_numbers`: uint8 codes, or uint16."""
    tiles, blocks, _ = packed.shape
    words = packed.view(np.uint32).reshape(tiles, blocks, -1, TILE_ROWS)
    if bits == 4:
        nibbles = np.uint32(0x0F0F0F0F)
        words = np.concatenate((words & nibbles, words >> np.uint32(4) & nibbles), axis=2)
    ordered = np.ascontiguousarray(words.transpose(0, 3, 1, 2))
    return ordered.view(np.uint16 if bits == 16 else np.uint8).reshape(TILE_ROWS * tiles, 16 * blocks)
