"""Linear weights of one bit (−1, 1) or three values (−1, 0, 1), with one float16 scale per group of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import TILE, NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import affine, packing, signs
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.matmul import group_matmul

LEVELS = (2, 3)
MOST_COLUMNS = 1 << 20
_LAYOUTS = {2: "binary", 3: "ternary"}
_BITS = {2: 1, 3: 2}


class SignLinear(PackedLinear):
    """w[r, c] = scale[r, g]·v[r, c] with g = c // group; v is −1 or 1 (levels 2), or −1, 0 or 1 (levels 3).

    Codes of levels 2 are bits, 1 for v = 1. Codes of levels 3 are v + 1 in two bits: five values a byte would take 1.6
    bits, but twice the instructions to unpack. Layouts as in `GroupLinear`: codes uint8 [rows/16, columns/32, 64·bits],
    scales fp16 [rows/16, groups, 16]. A group is any multiple of 32 columns; one that is no shorter than the row is
    one scale a row.
    """

    kind = "signs"
    described = ("levels", "group")

    def __init__(
        self, out_features: int, in_features: int, levels: int, group: int,
        codes: Array, scales: Array, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        _check_options(levels, group)
        self.levels, self.group = levels, group
        tiles, blocks, groups = -(-out_features // 16), -(-in_features // 32), -(-in_features // group)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * _BITS[levels]))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, groups, 16))

    @classmethod
    def quantize(cls, weight: Array, levels: int, group: int, bias: Array | None = None) -> SignLinear:
        """Weight [out, in] of any float dtype, rounded as `reference.signs` says, a tile of rows at a time.

        Raises KernelError for NaN or infinity, or where a scale is beyond float16.
        """

        def tile(start: int, stop: int) -> Floats:
            return weight[start:stop].astype(np.float32, copy=False)

        return cls._rounded(tile, weight.shape[0], weight.shape[1], levels, group, bias)

    @classmethod
    def requantize(cls, linear: PackedLinear, levels: int, group: int) -> SignLinear:
        """`quantize` of what another layer stores, bias included, without ever expanding all of it."""
        return cls._rounded(linear.tile, linear.out_features, linear.in_features, levels, group, linear.bias)

    @classmethod
    def _rounded(
        cls,
        tile: Callable[[int, int], Floats],
        out_features: int,
        in_features: int,
        levels: int,
        group: int,
        bias: Array | None,
    ) -> SignLinear:
        _check_options(levels, group)
        values = np.empty((out_features, in_features), np.int8)
        scales = np.empty((out_features, -(-in_features // group)), np.float16)
        for start in range(0, out_features, TILE):
            rows = tile(start, min(start + TILE, out_features))
            affine.require_finite(rows, f"weight rows {start}..{start + len(rows) - 1}")
            for place, first in enumerate(range(0, in_features, group)):
                part = slice(first, first + group)
                rounded = (signs.binary if levels == 2 else signs.ternary)(rows[:, part])
                values[start : start + len(rows), part], scales[start : start + len(rows), place] = rounded
        return cls.from_signs(values, scales, levels, group, bias)

    @classmethod
    def from_signs(cls, values: Array, scales: Array, levels: int, group: int, bias: Array | None = None) -> SignLinear:
        """From plain values, any integer dtype [out, in]: −1 or 1, with levels 3 also 0.

        scales: [out, groups], rounded to float16. Raises KernelError where a value is another.
        """
        _check_options(levels, group)
        allowed = (-1, 1) if levels == 2 else (-1, 0, 1)
        wrong = ~np.isin(values, allowed)
        if wrong.any():
            raise KernelError(f"{_LAYOUTS[levels]} weights are {allowed}, found {int(values[wrong][0])}")
        codes = (values > 0 if levels == 2 else values + 1).astype(np.uint8)
        rows, groups = packing.padded(len(codes), 16), -(-codes.shape[1] // group)
        if scales.shape != (len(codes), groups):
            raise KernelError(f"group scales are {scales.shape}, expected ({len(codes)}, {groups})")
        halves = packing.pad_to(affine.to_float16(scales.astype(np.float32), "group scale"), rows, groups)
        stored = packing.pack_rows(codes, _BITS[levels])
        return cls(len(codes), codes.shape[1], levels, group, stored, packing.pack_parameters(halves), bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[SignLinear]:
        weight = np.random.default_rng(seed).standard_normal((out_features, in_features), np.float32)
        for levels in LEVELS:
            yield cls.quantize(weight, levels, 128)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return _LAYOUTS[self.levels], {"codes": self.codes, "scales": self.scales, "group": self.group}

    @property
    def label(self) -> str:
        return f"{_LAYOUTS[self.levels]}-g{self.group}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        codes = packing.unpack_codes(self.codes[part], _BITS[self.levels])
        return self._expand(codes, packing.unpack_parameters(self.scales[part]))[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        codes = packing.unpack_code_rows(self.codes, _BITS[self.levels], indices)
        return self._expand(codes, self.scales[indices // 16, :, indices % 16])

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        values = self._values(packing.unpack_codes(self.codes, _BITS[self.levels]))
        scales = packing.unpack_parameters(self.scales).astype(np.float32)
        return group_matmul(x, values, scales, None, self.group)[:, : self.out_features]

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> SignLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "levels", LEVELS),
            field(meta, "group"),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("bias"),
        )

    def _values(self, codes: Bytes) -> npt.NDArray[np.int8]:
        """Codes as stored → what the scale multiplies, same shape."""
        plain = codes.astype(np.int8)
        return 2 * plain - 1 if self.levels == 2 else plain - 1

    def _expand(self, codes: Bytes, scales: Halves) -> Floats:
        """Codes uint8 [n, padded], scales fp16 [n, groups] → fp32 [n, in_features]."""
        values = self._values(codes)[:, : self.in_features].astype(np.float32)
        places = np.arange(self.in_features) // self.group
        return values * scales.astype(np.float32)[:, places]


def _check_options(levels: int, group: int) -> None:
    if levels not in LEVELS or group < 32 or group % 32 or group > MOST_COLUMNS:
        raise KernelError(
            f"signs of {levels} levels in groups of {group}: levels are 2 or 3, groups multiples of 32 up to "
            f"{MOST_COLUMNS}"
        )
