"""Byte layouts of packed weights and caches, as plain reshapes.

Weight tiles hold 16 rows × 32 columns, so that one 64-byte vector carries 4 columns of every row; `pack_lanes`
is the cache's order of a page's codes. The C++ kernels read the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.errors import KernelError

TILE_ROWS = 16
TILE_COLUMNS = 32
PACK = 64
PACK_LANES = 16


def padded(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def pad_to(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """A 2-D tensor grown to [rows, columns] with zeros, or itself where it has that shape."""
    if tensor.shape == (rows, columns):
        return tensor
    grown = tensor.new_zeros(rows, columns)
    grown[: tensor.shape[0], : tensor.shape[1]] = tensor
    return grown


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Weight codes uint8 [rows, columns] (multiples of 16 and 32) → tiles uint8 [rows/16, columns/32,
    64·bits].

    4 bit: vector v of 4, byte 4r+j holds columns 4v+j (low nibble) and 16+4v+j (high) of row r.
    8 bit: vector v of 8, byte 4r+j holds column 4v+j of row r.
    """
    rows, columns = codes.shape
    if rows % TILE_ROWS or columns % TILE_COLUMNS or codes.dtype != torch.uint8:
        raise KernelError(
            f"codes must be uint8 in tiles of 16x32, found {codes.dtype} {tuple(codes.shape)}: pad them first"
        )
    tiles, blocks = rows // TILE_ROWS, columns // TILE_COLUMNS
    if bits == 8:
        return codes.view(tiles, 16, blocks, 8, 4).permute(0, 2, 3, 1, 4).reshape(tiles, blocks, 512)
    halves = codes.view(tiles, 16, blocks, 2, 4, 4).permute(3, 0, 2, 4, 1, 5)
    return (halves[0] | (halves[1] << 4)).reshape(tiles, blocks, 256)


def unpack_codes(tiles: Tensor, bits: int) -> Tensor:
    """Inverse of `pack_codes`: uint8 [tiles, blocks, 64·bits] → uint8 [16·tiles, 32·blocks]."""
    count, blocks, _ = tiles.shape
    if bits == 8:
        return tiles.view(count, blocks, 8, 16, 4).permute(0, 3, 1, 2, 4).reshape(count * 16, blocks * 32)
    vectors = tiles.view(count, blocks, 4, 16, 4)
    halves = torch.stack((vectors & 15, vectors >> 4), dim=2)  # [tile, block, half, vector, row, column]
    return halves.permute(0, 4, 1, 2, 3, 5).reshape(count * 16, blocks * 32)


def unpack_code_rows(tiles: Tensor, bits: int, rows: Tensor) -> Tensor:
    """The codes of single rows: int64 [n] → uint8 [n, 32·blocks], touching only those rows' bytes."""
    count, blocks, _ = tiles.shape
    vectors = tiles.view(count, blocks, bits, 16, 4)[rows // 16, :, :, rows % 16]  # [n, blocks, bits, 4]
    if bits == 8:
        return vectors.reshape(len(rows), blocks * 32)
    return torch.stack((vectors & 15, vectors >> 4), dim=2).reshape(len(rows), blocks * 32)


def pack_parameters(values: Tensor) -> Tensor:
    """Per-group numbers [rows, groups] (rows a multiple of 16) → [rows/16, groups, 16]."""
    rows, groups = values.shape
    return values.view(rows // 16, 16, groups).transpose(1, 2).contiguous()


def unpack_parameters(tiles: Tensor) -> Tensor:
    """Inverse of `pack_parameters`: [tiles, groups, 16] → [16·tiles, groups]."""
    count, groups, _ = tiles.shape
    return tiles.transpose(1, 2).reshape(count * 16, groups)


def pack_pairs(weight: Tensor) -> Tensor:
    """[rows, columns] (multiples of 16 and 2) → [rows/16, columns/2, 16, 2]: pairs of columns for bf16 dot
    products.
    """
    rows, columns = weight.shape
    return weight.view(rows // 16, 16, columns // 2, 2).transpose(1, 2).contiguous()


def unpack_pairs(tiles: Tensor) -> Tensor:
    """Inverse of `pack_pairs`."""
    count, pairs, _, _ = tiles.shape
    return tiles.transpose(1, 2).reshape(count * 16, pairs * 2)


def pack_lanes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., rows, lanes] (multiples of 32/bits and 16) → uint8 [..., rows·lanes·bits/8], the cache's order.

    One 64-byte vector holds 32/bits rows of 16 lanes: the 32-bit word of a lane has row 2k+p in its half p at bit
    bits·k, so that a shift leaves pairs of rows, as dot products of pairs read them. Vectors go lane by lane, then on
    to the next rows.
    """
    parts, lanes, halves = 32 // bits, codes.shape[-1] // PACK_LANES, 8 // bits
    # row = (byte of the half, place in that byte, half); a byte of the half holds 8/bits codes
    split = codes.unflatten(-1, (lanes, PACK_LANES)).unflatten(-3, (-1, 2, halves, 2))
    assert split.shape[-6] * parts == codes.shape[-2]
    packed = split[..., 0, :, :, :].clone()  # [..., group, byte, half, vector, lane]
    for place in range(1, halves):
        packed |= split[..., place, :, :, :] << (bits * place)
    return packed.movedim((-5, -4, -3, -2, -1), (-5, -1, -2, -4, -3)).flatten(-5)


def unpack_lanes(packed: Tensor, bits: int, lanes: int) -> Tensor:
    """Inverse of `pack_lanes`: uint8 [..., bytes] → uint8 [..., rows, lanes]."""
    mask, halves = (1 << bits) - 1, 8 // bits
    words = packed.unflatten(-1, (-1, lanes // PACK_LANES, PACK_LANES, 2, 2))  # [..., group, vector, lane, half, byte]
    words = words.movedim((-5, -4, -3, -2, -1), (-5, -2, -1, -3, -4))  # [..., group, byte, half, vector, lane]
    split = torch.stack([(words >> (bits * place)) & mask for place in range(halves)], dim=-4)
    return split.flatten(-2).flatten(-5, -2)
