"""Byte layouts of packed weights and caches, as plain reshapes.

Weight tiles hold 16 rows × 32 columns, so that one 64-byte vector carries 4 columns of every row; `pack_lanes`
is the cache's order of a page's codes. The C++ kernels read the same bytes. Where neighbouring bytes stay together
they are moved as words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Integers
from thrifty.errors import KernelError

TILE_ROWS = 16
TILE_COLUMNS = 32
PACK = 64
PACK_LANES = 16
PLANE_BITS = (1, 2, 4, 8)
PLANES: Mapping[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""The planes of codes of so many bits, lowest bits first."""
_MASKS = {bits: np.uint32(((1 << bits) - 1) * 0x01010101) for bits in PLANE_BITS}  # of a word of four bytes


def padded(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def pad_to(array: Array, rows: int, columns: int) -> Array:
    """A 2-D array grown to [rows, columns] with zeros, or itself where it has that shape."""
    if array.shape == (rows, columns):
        return array
    grown = np.zeros((rows, columns), array.dtype)
    grown[: array.shape[0], : array.shape[1]] = array
    return grown


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """Weight codes uint8 [rows, columns] (multiples of 16 and 32) → tiles uint8 [rows/16, columns/32,
    64·bits].

    The codes of a block lie in planes one behind the other, the lowest bits first, see `PLANES` and `pack_plane`.
    """
    rows, columns = codes.shape
    if rows % TILE_ROWS or columns % TILE_COLUMNS or codes.dtype != np.uint8:
        raise KernelError(f"codes must be uint8 in tiles of 16x32, found {codes.dtype} {codes.shape}: pad them first")
    tiles, blocks = rows // TILE_ROWS, columns // TILE_COLUMNS
    if bits in PLANE_BITS:
        return pack_plane(codes, bits)
    packed, place, done = np.empty((tiles, blocks, 64 * bits), np.uint8), 0, 0
    for width in PLANES[bits]:
        part = (codes >> np.uint8(done)) & np.uint8((1 << width) - 1)
        packed[:, :, place : place + 64 * width] = pack_plane(part, width)
        place, done = place + 64 * width, done + width
    return packed


def pack_rows(codes: Bytes, bits: int, rows_at_a_time: int = 1024) -> Bytes:
    """`pack_codes` of uint8 [rows, columns] of any size, padded with zeros, some rows at a time (a multiple of 16)."""
    rows, columns = padded(len(codes), TILE_ROWS), padded(codes.shape[1], TILE_COLUMNS)
    stored = np.empty((rows // TILE_ROWS, columns // TILE_COLUMNS, 64 * bits), np.uint8)
    for start in range(0, len(codes), rows_at_a_time):
        part = codes[start : start + rows_at_a_time]
        tiles = pack_codes(pad_to(part, padded(len(part), TILE_ROWS), columns), bits)
        stored[start // TILE_ROWS : start // TILE_ROWS + len(tiles)] = tiles
    return stored


def pack_plane(codes: Bytes, bits: int) -> Bytes:
    """One plane: codes uint8 [rows, columns] below 2**bits → uint8 [rows/16, columns/32, 64·bits].

    A *vector* v of 8 has column 4v+j of row r at byte 4r+j. 8 bit: vectors one behind the other. 4 bit: vector v of the
    first 4 in low nibbles, vector 4+v in the high nibbles of the same 64 bytes. 2 bit: vectors 4w+k in bits 2k of 64
    bytes w. 1 bit: vector v in bit v of 64 bytes.
    """
    rows, columns = codes.shape
    tiles, blocks = rows // TILE_ROWS, columns // TILE_COLUMNS
    words = np.ascontiguousarray(codes).view(np.uint32)  # four columns of a row
    if bits == 8:
        vectors = words.reshape(tiles, 16, blocks, 8).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(vectors).view(np.uint8).reshape(tiles, blocks, 512)
    shifts = _shifts(bits)
    if bits == 4:  # of the two halves, not of neighbours
        parts = words.reshape(tiles, 16, blocks, 2, 4).transpose(3, 0, 2, 4, 1)
    else:
        parts = words.reshape(tiles, 16, blocks, bits, len(shifts)).transpose(4, 0, 2, 3, 1)
    both = parts[0].copy()
    for part, shift in zip(parts[1:], shifts[1:], strict=True):
        both |= part << shift
    return both.view(np.uint8).reshape(tiles, blocks, 64 * bits)


def unpack_codes(tiles: Bytes, bits: int) -> Bytes:
    """Inverse of `pack_codes`: uint8 [tiles, blocks, 64·bits] → uint8 [16·tiles, 32·blocks]."""
    codes, place, done = None, 0, 0
    for width in PLANES[bits]:
        part = unpack_plane(tiles[:, :, place : place + 64 * width], width)
        codes = part if codes is None else codes | part << np.uint8(done)
        place, done = place + 64 * width, done + width
    assert codes is not None
    return codes


def unpack_plane(plane: Bytes, bits: int) -> Bytes:
    """Inverse of `pack_plane`: uint8 [tiles, blocks, 64·bits] → uint8 [16·tiles, 32·blocks]."""
    count, blocks, _ = plane.shape
    words = np.ascontiguousarray(plane).view(np.uint32).reshape(count, blocks, bits, 16).transpose(0, 3, 1, 2)
    if bits == 8:
        return np.ascontiguousarray(words).view(np.uint8).reshape(count * 16, blocks * 32)
    shifts = _shifts(bits)
    columns = np.empty((count, 16, blocks, 8), np.uint32)  # [tile, row, block, vector]
    shape = (count, 16, blocks, 2, 4) if bits == 4 else (count, 16, blocks, bits, len(shifts))
    parts = columns.reshape(shape)
    for place, shift in enumerate(shifts):
        to = parts[:, :, :, place] if bits == 4 else parts[..., place]
        np.bitwise_and(words >> shift, _MASKS[bits], out=to)
    return columns.view(np.uint8).reshape(count * 16, blocks * 32)


def unpack_code_rows(tiles: Bytes, bits: int, rows: Integers) -> Bytes:
    """The codes of single rows: int64 [n] → uint8 [n, 32·blocks], touching only those rows' bytes."""
    count, blocks, _ = tiles.shape
    vectors = tiles.reshape(count, blocks, bits, 16, 4)[rows // 16, :, :, rows % 16]  # [n, blocks, bits, 4]
    codes, place, done = np.zeros((len(rows), blocks * 32), np.uint8), 0, 0
    for width in PLANES[bits]:
        part = vectors[:, :, place : place + width]
        codes |= _spread(part, width).reshape(len(rows), blocks * 32) << np.uint8(done)
        place, done = place + width, done + width
    return codes


def _spread(part: Bytes, bits: int) -> Bytes:
    """One row's bytes of a plane [n, blocks, bits, 4] → its codes [n, blocks, 8 vectors, 4]."""
    if bits == 8:
        return part
    mask = np.uint8((1 << bits) - 1)
    pieces = [(part >> np.uint8(shift)) & mask for shift in _shifts(bits)]
    if bits == 4:
        return np.concatenate(pieces, axis=2)
    return np.stack(pieces, axis=3)  # vectors 4w+k of 2 bits, v of 1 bit: the shift runs fastest


def _shifts(bits: int) -> range:
    """The shifts of the vectors that share 64 bytes of a plane."""
    return range(0, 8, bits)


def pack_parameters(values: Array) -> Array:
    """Per-group numbers [rows, groups] (rows a multiple of 16) → [rows/16, groups, 16]."""
    rows, groups = values.shape
    return np.ascontiguousarray(values.reshape(rows // 16, 16, groups).transpose(0, 2, 1))


def unpack_parameters(tiles: Array) -> Array:
    """Inverse of `pack_parameters`: [tiles, groups, 16] → [16·tiles, groups]."""
    count, groups, _ = tiles.shape
    return tiles.transpose(0, 2, 1).reshape(count * 16, groups)


def pack_pairs(weight: Array) -> Array:
    """[rows, columns] (multiples of 16 and 2) → [rows/16, columns/2, 16, 2]: pairs of columns for bf16 dot
    products.
    """
    rows, columns = weight.shape
    pairs = np.ascontiguousarray(weight).view(_pair_of(weight)).reshape(rows // 16, 16, columns // 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).view(weight.dtype).reshape(rows // 16, columns // 2, 16, 2)


def unpack_pairs(tiles: Array) -> Array:
    """Inverse of `pack_pairs`."""
    count, pairs, _, _ = tiles.shape
    whole = np.ascontiguousarray(tiles).view(_pair_of(tiles)).reshape(count, pairs, 16)
    return np.ascontiguousarray(whole.transpose(0, 2, 1)).view(tiles.dtype).reshape(count * 16, pairs * 2)


def _pair_of(array: Array) -> np.dtype[Any]:
    """The unsigned type as large as two numbers of a 2- or 4-byte type."""
    return np.dtype(f"u{2 * array.itemsize}")


def pack_lanes(codes: Bytes, bits: int) -> Bytes:
    """uint8 codes [..., rows, lanes] (multiples of 32/bits and 16) → uint8 [..., rows·lanes·bits/8], the cache's order.

    One 64-byte vector holds 32/bits rows of 16 lanes: the 32-bit word of a lane has row 2k+p in its half p at bit
    bits·k, so that a shift leaves pairs of rows, as dot products of pairs read them. Vectors go lane by lane, then on
    to the next rows.
    """
    *outer, rows, lanes = codes.shape
    parts = 32 // bits
    assert rows % parts == 0 and lanes % PACK_LANES == 0
    split = codes.reshape(*outer, rows // parts, parts, lanes)
    words = split[..., 0, :].astype(np.uint32)
    for row in range(1, parts):
        words |= split[..., row, :].astype(np.uint32) << _shift(row, bits)
    return words.reshape(*outer, rows // parts * lanes).view(np.uint8)


def unpack_lanes(packed: Bytes, bits: int, lanes: int) -> Bytes:
    """Inverse of `pack_lanes`: uint8 [..., bytes] → uint8 [..., rows, lanes]."""
    *outer, size = packed.shape
    parts, mask = 32 // bits, np.uint32((1 << bits) - 1)
    groups = size // (4 * lanes)
    words = packed.view(np.uint32).reshape(*outer, groups, lanes)
    codes = np.empty((*outer, groups, parts, lanes), np.uint8)
    for row in range(parts):
        codes[..., row, :] = (words >> _shift(row, bits)) & mask
    return codes.reshape(*outer, groups * parts, lanes)


def _shift(row: int, bits: int) -> int:
    """The first bit of a row's code in its lane's word."""
    return 16 * (row % 2) + bits * (row // 2)
