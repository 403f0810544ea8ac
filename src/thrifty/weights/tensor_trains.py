"""Matrices as trains of tensors: their shapes, honest counts of their numbers, and n − 1 truncated SVDs in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Floats
from thrifty.weights.low_rank_fit import factors

LANES = 16  # rows that native code computes side by side: what the last site gives is whole lanes of them


@dataclass(frozen=True)
class Shape:
    """rows: o_1 … o_n, columns: i_1 … i_n of the sites."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, out_features: int, in_features: int, sites: int, block: int) -> Shape:
        """All rows sites but the last, and all column sites but the first, have the largest size that divides what is
        there and is at most `block`; the last row site keeps whole lanes. A block of 1 with two sites is the plain SVD.
        """
        rows: list[int] = []
        for _ in range(sites - 1):
            rows.append(_divisor(out_features, block, LANES))
            out_features //= rows[-1]
        columns: list[int] = []
        for _ in range(sites - 1):
            columns.append(_divisor(in_features, block, 1))
            in_features //= columns[-1]
        return cls((*rows, out_features), (in_features, *reversed(columns)))

    def bonds(self, chi: int) -> tuple[int, ...]:
        """χ_0 … χ_n: at most χ, and at most the rank that the matrix of each SVD can have."""
        sizes = [outs * ins for outs, ins in zip(self.rows, self.columns, strict=True)]
        found = [1]
        for site in range(1, len(sizes)):
            found.append(min(chi, found[-1] * sizes[site - 1], math.prod(sizes[site:])))
        return (*found, 1)

    def parameters(self, chi: int) -> int:
        """Numbers in all tensors: Σ χ_k−1·o_k·i_k·χ_k (two sites: χ·(o_1·i_1 + o_2·i_2))."""
        bonds = self.bonds(chi)
        return sum(
            bonds[site] * outs * ins * bonds[site + 1]
            for site, (outs, ins) in enumerate(zip(self.rows, self.columns, strict=True))
        )

    def chi_of(self, count: int) -> int:
        """The largest χ whose tensors have at most `count` numbers; 1 where none has."""
        low, high = 1, math.prod(self.rows) * math.prod(self.columns)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.parameters(middle) <= count else (low, middle - 1)
            if self.bonds(low) == self.bonds(high):  # larger ones change nothing
                break
        return max(self.bonds(low)[1:-1])


def decomposed(weight: Floats, shape: Shape, chi: int, seed: int = 0) -> list[Floats]:
    """The tensors of a matrix [out, in], fp32 [o_k·χ_k, i_k·χ_k−1] as `formats.tensor_train` has them.

    Rows and columns are interleaved to (o_1, i_1, o_2, i_2, …). From the left, each SVD takes the largest χ_k singular
    values of what is left: U is a site's tensor, S·Vᵀ goes on (arXiv 2401.14109, §2). In the end √S lies on both sides
    of every bond, so that all tensors are of one size.
    """
    sites, bonds = len(shape.rows), shape.bonds(chi)
    order = [axis for site in range(sites) for axis in (site, sites + site)]
    left = weight.reshape(*shape.rows, *shape.columns).transpose(order)
    tensors: list[Floats] = []
    root = np.ones(1, np.float32)
    for site in range(sites):
        if site + 1 < sites:
            matrix = np.ascontiguousarray(left).reshape(bonds[site] * shape.rows[site] * shape.columns[site], -1)
            tensor, down = factors(matrix, bonds[site + 1], seed)
            next_root = np.sqrt(np.square(down, dtype=np.float64).sum(axis=1))  # √S, since rows of Vᵀ have length 1
        else:
            tensor, down, next_root = np.ascontiguousarray(left), left, np.ones(1)
        scaled = tensor.reshape(bonds[site], -1) / np.where(root > 0, root, 1)[:, None]
        cube = scaled.reshape(bonds[site], shape.rows[site], shape.columns[site], bonds[site + 1])
        site_rows = cube.transpose(1, 3, 2, 0).reshape(shape.rows[site] * bonds[site + 1], -1)
        tensors.append(np.ascontiguousarray(site_rows, np.float32))
        left, root = down * next_root[:, None] if site + 1 < sites else left, next_root
    return tensors


def _divisor(size: int, most: int, unit: int) -> int:
    """The largest number up to `most` that divides `size` so that whole units are left; 1 where none does."""
    fitting = (found for found in range(most, 0, -1) if size % (found * unit) == 0)
    return next(fitting, 1)
