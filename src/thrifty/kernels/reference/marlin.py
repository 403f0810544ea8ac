"""MARLIN's order of 4-bit weights for GPUs (arXiv 2408.11743, §3.4; IST-DASLab/marlin, `Layer.pack`), and its product.

w[n, k] = scale[n, k // 128]·(code[n, k] − 8). The transposed codes are cut into tiles of 16 k × 16 n; four tiles beside
each other along n are one chunk of 128 words of 32 bits, so that a thread of a warp gets its share of all four tiles of
a tensor-core product from one load of 16 bytes. Word 16·(n % 8) + 4·(k % 8 // 2) + n // 16 of a chunk holds, for its n
and k within the chunk, the code in nibble k // 8 + 2·(n % 16 // 8) + 4·(k % 2): neighbours in k are 16 bits apart,
where one instruction turns both into halves of a register.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Bytes, Floats
from thrifty.errors import KernelError
from thrifty.kernels.reference.affine import Halves

GROUP = 128  # columns k of one scale
OUT_MULTIPLE = 256  # rows n
ZERO = 8  # the code of weight 0
_CHUNK = 64  # rows n of a chunk

Words = npt.NDArray[np.int32]


def pack(codes: Bytes, scales: Halves) -> tuple[Words, Halves]:
    """codes uint8 [n, k] below 16 and scales fp16 [n, k/128] → words int32 [k/16, 2n], scales fp16 [k/128, n].

    Scales of 64 rows n lie in the order 0, 8, …, 56, 1, 9, …. Raises KernelError for sizes that MARLIN does not have
    and for codes of more than 4 bits.
    """
    rows, columns = codes.shape
    check_sizes(rows, columns)
    if scales.shape != (rows, columns // GROUP) or scales.dtype != np.float16:
        raise KernelError(f"scales are {scales.dtype} {scales.shape}, expected float16 {(rows, columns // GROUP)}")
    if codes.dtype != np.uint8 or int(codes.max(initial=0)) > 15:
        raise KernelError(f"codes are {codes.dtype} up to {int(codes.max(initial=0))}; MARLIN has uint8 codes 0..15")
    # [k tile, k half, k quarter, k odd, chunk, n tile, n half, n lane] → words, and nibbles from the highest down.
    parts = codes.T.reshape(columns // 16, 2, 4, 2, rows // _CHUNK, 4, 2, 8)
    nibbles = parts.transpose(0, 4, 7, 2, 5, 3, 6, 1).reshape(columns // 16, 2 * rows, 8).astype(np.uint32)
    words = np.bitwise_or.reduce(nibbles << np.arange(0, 32, 4, dtype=np.uint32), axis=-1)
    ordered = scales.T.reshape(columns // GROUP, rows // _CHUNK, 8, 8).transpose(0, 1, 3, 2)
    return words.view(np.int32), np.ascontiguousarray(ordered).reshape(columns // GROUP, rows)


def unpack(words: Words, scales: Halves) -> tuple[Bytes, Halves]:
    """Inverse of `pack`."""
    tiles, width = words.shape
    rows = width // 2
    spread = words.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & np.uint32(15)
    parts = spread.astype(np.uint8).reshape(tiles, rows // _CHUNK, 8, 4, 4, 2, 2, 2)
    codes = parts.transpose(0, 7, 3, 5, 1, 4, 6, 2).reshape(16 * tiles, rows).T
    ordered = scales.reshape(len(scales), rows // _CHUNK, 8, 8).transpose(0, 1, 3, 2).reshape(len(scales), rows).T
    return np.ascontiguousarray(codes), np.ascontiguousarray(ordered)


def matmul(x: Halves, words: Words, scales: Halves) -> Floats:
    """x fp16 [m, k] · Wᵀ → fp32 [m, n]: sums of a group in fp32, then times the scale in fp32, groups in order."""
    codes, steps = unpack(words, scales)
    rows, columns = codes.shape
    if x.ndim != 2 or x.shape[1] != columns:
        raise KernelError(f"x has shape {x.shape}, expected [rows, {columns}]")
    y = np.zeros((len(x), rows), np.float32)
    for group in range(columns // GROUP):
        part = slice(group * GROUP, (group + 1) * GROUP)
        values = codes[:, part].astype(np.float32) - ZERO
        y += x[:, part].astype(np.float32) @ values.T * steps[:, group].astype(np.float32)
    return y


def check_sizes(rows: int, columns: int) -> None:
    """Raise KernelError unless a weight [rows n, columns k] has a MARLIN form."""
    if rows <= 0 or columns <= 0 or rows % OUT_MULTIPLE or columns % GROUP:
        raise KernelError(
            f"MARLIN takes weights of a multiple of {OUT_MULTIPLE} rows and of {GROUP} columns, "
            f"not {rows} × {columns}: "
            "keep such a layer in Thrifty's own int4 layout"
        )
