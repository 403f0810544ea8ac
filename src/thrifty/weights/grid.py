"""Evenly spaced grids, one a row and group of columns: what weights are rounded to, a column or a matrix at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.formats.linear import GroupLinear
from thrifty.formats.packed import TILE
from thrifty.kernels.reference import affine
from thrifty.kernels.reference.affine import Halves


@dataclass(frozen=True)
class Steps:
    """The grids of some groups: w = scale · code + base, code a whole number in low..high.

    scale, base: fp32 [...], values that float16 holds exactly. base: 0 where a grid is symmetric.
    """

    scale: Floats
    base: Floats
    low: int
    high: int

    def codes(self, values: Floats) -> Floats:
        """The nearest codes of values [..., n], whole numbers in fp32; 0 where the scale is 0."""
        divisor = np.where(self.scale == 0, np.float32(np.inf), self.scale)[..., None]
        codes: Floats = np.divide(values - self.base[..., None], divisor)
        np.rint(codes, out=codes)
        return np.clip(codes, self.low, self.high, out=codes)

    def values(self, codes: Floats) -> Floats:
        """What codes [..., n] stand for, fp32."""
        values: Floats = codes * self.scale[..., None]
        values += self.base[..., None]
        return values


@dataclass(frozen=True)
class Grid:
    """Codes of `bits` in groups of `group` columns, as GroupLinear stores them. symmetric: no base."""

    bits: int
    group: int
    symmetric: bool = False

    @property
    def low(self) -> int:
        """The least code."""
        return -(1 << (self.bits - 1)) if self.symmetric or self.bits == 8 else 0

    @property
    def high(self) -> int:
        """The greatest code."""
        return self.low + (1 << self.bits) - 1

    def groups(self, columns: int) -> int:
        """How many groups so many columns make; the last may be short."""
        return -(-columns // self.group)

    def steps(self, scale: Floats, base: Floats | None = None) -> Steps:
        """Grids of scales and bases fp32 [...], rounded to float16. Raises KernelError beyond float16's range."""
        halves = affine.to_float16(scale, "group scale").astype(np.float32)
        if base is None:
            return Steps(halves, np.zeros_like(halves), self.low, self.high)
        return Steps(halves, affine.to_float16(base, "group minimum").astype(np.float32), self.low, self.high)

    def fit(self, groups: Floats) -> Steps:
        """The grids that round-to-nearest chooses for groups fp32 [..., n]: from the least to the greatest number, or
        symmetric about 0. They are those of `GroupLinear.quantize`.
        """
        _, scale, base = self._nearest(groups)
        return self._steps_of(scale, base)

    def nearest(self, groups: Floats) -> Floats:
        """Round-to-nearest of groups fp32 [..., n], back as fp32."""
        codes, scale, base = self._nearest(groups)
        return self._steps_of(scale, base).values(codes.astype(np.float32))

    def rounded(self, weight: Floats) -> Floats:
        """Round-to-nearest of fp32 [rows, columns], back as fp32: what `GroupLinear.quantize` stores."""
        result = np.empty_like(weight)
        for start in range(0, len(weight), TILE):
            part = weight[start : start + TILE]
            values = self.nearest(self.split(part))
            result[start : start + TILE] = values.reshape(len(part), -1)[:, : weight.shape[1]]
        return result

    def split(self, weight: Floats) -> Floats:
        """[rows, columns] → [rows, groups, group]; a short last group repeats its last column, which widens no grid."""
        rows, columns = weight.shape
        missing = self.groups(columns) * self.group - columns
        full = np.concatenate((weight, weight[:, -1:].repeat(missing, axis=1)), axis=1) if missing else weight
        return full.reshape(rows, -1, self.group)

    def stored(self, codes: Array, steps: Steps, bias: Array | None) -> GroupLinear:
        """The layer of codes [rows, columns] on grids [rows, groups]; its bytes are those of round-to-nearest."""
        if self.symmetric and self.bits < 8:
            codes = codes - self.low  # as they are stored, they are not below zero
        minimums = None if self.symmetric else steps.base
        return GroupLinear.from_codes(codes.astype(np.int16), steps.scale, minimums, self.bits, self.group, bias)

    def _steps_of(self, scale: Halves, base: Halves | None) -> Steps:
        wide = scale.astype(np.float32)
        return Steps(wide, np.zeros_like(wide) if base is None else base.astype(np.float32), self.low, self.high)

    def _nearest(self, groups: Floats) -> tuple[Array, Halves, Halves | None]:
        """Codes in low..high, scales and bases of groups [..., n]."""
        if not self.symmetric:
            if self.bits == 8:
                return affine.centred8(groups)
            return affine.affine(groups, self.high)
        if self.bits == 8:
            return *affine.symmetric8(groups), None
        codes, scale = affine.symmetric(groups, self.bits)
        return codes.astype(np.int16) + np.int16(self.low), scale, None
