"""Linear weights as integer codes, for activations that are int8 with one scale a row of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.dense import DenseLinear
from thrifty.formats.packed import TILE, NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import affine, packing
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.matmul import token_matmul

BITS = (4, 8)
Rounding = Callable[[Floats], tuple[Array, Halves]]
"""Rows fp32 [n, in] to codes, integers [n, in], and scales fp16 [n, groups]."""


class TokenWiseLinear(PackedLinear):
    """w[r, c] = scale[r, g]·code[r, c] with g = c // group; a row is one group where `group` is not below its columns.

    bits 4: codes −8..7, 8: −128..127. An activation row x is rounded to int8 as a whole, by max|x|/127, where other
    formats take a scale every 32 columns. threshold (8 bits): features with |x[c]| ≥ threshold, found in each row by
    itself, are left out of that and multiplied in fp32; None: none are.

    Layouts as in `GroupLinear`: codes plus 8 or 128, uint8 [rows/16, columns/32, 64·bits], scales fp16 [rows/16,
    groups, 16]; `group` is a multiple of 32, the last one may be short.
    """

    kind = "token wise"
    described = ("bits", "group", "threshold")

    def __init__(
        self, out_features: int, in_features: int, bits: int, group: int,
        codes: Array, scales: Array, threshold: float | None = None, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape, type or option."""
        super().__init__(out_features, in_features, bias)
        _check_options(bits, group, threshold)
        self.bits, self.group, self.threshold = bits, group, threshold
        tiles, blocks = -(-out_features // 16), -(-in_features // 32)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * bits))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, -(-in_features // group), 16))

    @classmethod
    def rounded(
        cls, linear: PackedLinear, rounding: Rounding, bits: int, group: int | None, threshold: float | None = None
    ) -> TokenWiseLinear:
        """What another layer stores, bias included, rounded a tile of rows at a time without ever expanding all of it.

        group: columns that share a scale, None for a whole row. Raises KernelError for NaN or infinity, and for codes
        that the bits do not hold.
        """
        rows, columns = linear.out_features, linear.in_features
        group = whole_row(columns) if group is None else group
        _check_options(bits, group, threshold)
        tiles, groups = -(-rows // 16), -(-columns // group)
        codes = np.empty((tiles, -(-columns // 32), 64 * bits), np.uint8)
        scales = np.zeros((tiles, groups, 16), np.float16)
        for start in range(0, rows, TILE):
            weight = linear.tile(start, min(start + TILE, rows))
            affine.require_finite(weight, f"weight rows {start}..{start + len(weight) - 1}")
            own, scale = rounding(weight)
            part = slice(start // 16, -(-(start + len(own)) // 16))
            codes[part] = packing.pack_rows(_unsigned(own, bits), bits)
            scales[part] = packing.pack_parameters(packing.pad_to(scale, packing.padded(len(own), 16), groups))
        return cls(rows, columns, bits, group, codes, scales, threshold, linear.bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[TokenWiseLinear]:
        weight = np.random.default_rng(seed).standard_normal((out_features, in_features), np.float32)
        for bits, group, threshold in ((4, None, None), (4, 128, None), (8, None, None), (8, 32, None), (8, None, 2.0)):
            rounding = partial(_evenly, bits=bits, group=group or in_features)
            yield cls.rounded(DenseLinear.from_weight(weight), rounding, bits, group, threshold)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        outliers = {} if self.threshold is None else {"threshold": self.threshold}
        return f"int{self.bits}_token", {**self._arrays(), "group": self.group, **outliers}

    @property
    def label(self) -> str:
        part = "row" if self.group >= self.in_features else f"g{self.group}"
        return f"int{self.bits}-{part}-{'token' if self.threshold is None else 'outliers'}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        codes = packing.unpack_codes(self.codes[part], self.bits)
        return self._expand(codes, packing.unpack_parameters(self.scales[part]))[: stop - start]

    def rows(self, indices: Array) -> Floats:
        check_rows(indices, self.out_features)
        codes = packing.unpack_code_rows(self.codes, self.bits, indices)
        return self._expand(codes, self.scales[indices // 16, :, indices % 16])

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        scales = packing.unpack_parameters(self.scales).astype(np.float32)
        codes = packing.unpack_codes(self.codes, self.bits).astype(np.int16) - np.int16(self._offset)
        return token_matmul(x, codes, scales, self.group, self.threshold)[:, : self.out_features]

    @property
    def _offset(self) -> int:
        """What a stored code is above its value."""
        return 1 << (self.bits - 1)

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> TokenWiseLinear:
        threshold = meta.get("threshold")
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            raise CheckpointError(f"linear field 'threshold' is {threshold!r}; expected a number above 0, or null")
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "bits", BITS),
            field(meta, "group"),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            threshold,
            tensors.get("bias"),
        )

    def _expand(self, codes: Bytes, scales: Halves) -> Floats:
        """Codes as stored uint8 [n, padded], scales fp16 [n, groups] → fp32 [n, in_features]."""
        rows, groups = scales.shape
        values = codes.astype(np.float32) - np.float32(self._offset)
        grouped = packing.pad_to(values, rows, groups * self.group).reshape(rows, groups, self.group)
        return (grouped * scales.astype(np.float32)[..., None]).reshape(rows, -1)[:, : self.in_features]


def whole_row(columns: int) -> int:
    """The group that spans a row of so many columns."""
    return packing.padded(columns, packing.TILE_COLUMNS)


def _evenly(rows: Floats, bits: int, group: int) -> tuple[Array, Halves]:
    """Codes and scales of whole groups, the greatest number of each at the greatest code."""
    grouped = rows.reshape(len(rows), -1, group)
    scales = affine.to_float16(np.abs(grouped).max(axis=2) / np.float32(2 ** (bits - 1) - 1), "group scale")
    codes = np.rint(grouped / scales.astype(np.float32)[..., None])
    return np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int16).reshape(rows.shape), scales


def _unsigned(codes: Array, bits: int) -> Bytes:
    """Codes as they are stored. Raises KernelError for codes that the bits do not hold."""
    middle = 1 << (bits - 1)
    if codes.size and not -middle <= int(codes.min()) <= int(codes.max()) < middle:
        raise KernelError(
            f"{bits}-bit codes must be in {-middle}..{middle - 1}, found {int(codes.min())}..{int(codes.max())}"
        )
    return (codes.astype(np.int16) + np.int16(middle)).astype(np.uint8)


def _check_options(bits: int, group: int, threshold: float | None) -> None:
    if bits not in BITS or group < 32 or group % 32:
        raise KernelError(
            f"{bits}-bit codes for token-wise activations in groups of {group}: bits are 4 or 8, groups multiples of 32"
        )
    if threshold is not None and (bits != 8 or not 0 < threshold < math.inf):
        raise KernelError(
            f"a threshold of {threshold} for outliers of {bits}-bit codes: it is a finite number above 0, with 8 bits"
        )
