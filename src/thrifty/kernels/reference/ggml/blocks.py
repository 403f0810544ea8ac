"""What the families of ggml's types share: codes with one or two levels of scales, and the reading of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Bytes, Floats

GROUP = 32  # columns of a group, and of a block of a superblock
SUPERBLOCK = 256  # columns

Halves = npt.NDArray[np.float16]
SignedBytes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Grouped:
    """Codes of some rows with one level of scales: w = scale·(code − offset) + minimum, or scale·table[code].

    codes: uint8 [rows, columns]. scales, minimums (or None): fp16 [rows, columns/32]. table: int8 [16] or None.
    """

    codes: Bytes
    offset: int
    scales: Halves
    minimums: Halves | None = None
    table: SignedBytes | None = None

    def values(self) -> Floats:
        """fp32 [rows, columns]: products are exact, a minimum is added with one rounding."""
        rows, columns = self.codes.shape
        grouped = signed(self.codes, self.offset, self.table).reshape(rows, -1, GROUP)
        with np.errstate(invalid="ignore"):  # a damaged file's scale, which is for the caller to refuse
            grouped *= self.scales.astype(np.float32)[:, :, None]
            if self.minimums is not None:
                grouped += self.minimums.astype(np.float32)[:, :, None]
        return grouped.reshape(rows, columns)


@dataclass(frozen=True)
class TwoLevel:
    """Codes of some rows with two levels of scales, in superblocks of 256 columns.

    w = d·scale·(code − offset) − dmin·minimum, or d·scale·table[code]. codes: uint8 [rows, columns]. scales: int8
    [rows, superblocks, 8 or 16], one for 32 or 16 columns, below zero where the type has it so; minimums: uint8 of the
    same shape, or None. d, dmin (or None): fp16 [rows, superblocks]. table: int8 [16] or None.
    """

    codes: Bytes
    offset: int
    scales: SignedBytes
    d: Halves
    minimums: Bytes | None = None
    dmin: Halves | None = None
    table: SignedBytes | None = None

    def values(self) -> Floats:
        """fp32 [rows, columns]: products are exact, a minimum is taken off with one rounding."""
        rows, superblocks, count = self.scales.shape
        grouped = signed(self.codes, self.offset, self.table).reshape(rows, superblocks, count, SUPERBLOCK // count)
        with np.errstate(invalid="ignore", over="ignore"):
            grouped *= (self.d.astype(np.float32)[:, :, None] * self.scales)[..., None]
            if self.minimums is not None and self.dmin is not None:
                grouped -= (self.dmin.astype(np.float32)[:, :, None] * self.minimums)[..., None]
        return grouped.reshape(self.codes.shape)


def signed(codes: Bytes, offset: int, table: SignedBytes | None) -> Floats:
    """What a scale multiplies, fp32 of the same shape."""
    if table is not None:
        return table.astype(np.float32)[codes]
    exact = codes.astype(np.float32)
    exact -= offset
    return exact


def blocks(rows: Bytes, size: int) -> Bytes:
    """Raw rows uint8 [rows, row bytes] → uint8 [rows, blocks, size]."""
    return np.ascontiguousarray(rows).reshape(rows.shape[0], -1, size)


def halves(raw: Bytes, start: int) -> Halves:
    """The fp16 number at byte `start` of each block: [rows, blocks]."""
    return np.ascontiguousarray(raw[:, :, start : start + 2]).view("<f2")[:, :, 0]


def nibbles(packed: Bytes) -> Bytes:
    """[..., n] bytes → [..., 2n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def flat(codes: Bytes) -> Bytes:
    """[rows, ...] → [rows, columns]."""
    return codes.reshape(codes.shape[0], -1)


def fields(packed: Bytes, bits: int) -> Bytes:
    """Fields of `bits` bits of bytes [..., n] → [..., 8/bits, n]: all lowest fields first, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)
