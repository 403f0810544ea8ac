"""Linear weights as small integer codes with one float16 scale and one integer zero point per group of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.group import GROUPS
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.affine import Halves, to_float16
from thrifty.kernels.reference.matmul import group_matmul

BITS = (2, 3, 4, 8)


class ZeroPointLinear(PackedLinear):
    """w[r, c] = scale[r, g]·(code[r, c] − zero[r, g]) with g = c // group: the layout of GPTQ and AWQ.

    Codes 0..2^bits − 1, zero points 0..255. scale·zero need not be a float16: the zero point is kept as it is, and
    the kernels work with scale·(code − z₀) + scale·(z₀ − zero) in fp32, where both products are exact; z₀ is 128 for 8
    bits, 0 for fewer. Layouts as in `GroupLinear`: codes uint8 [rows/16, columns/32, 64·bits], scales fp16 and zeros
    uint8 [rows/16, groups, 16].
    """

    kind = "zero point"
    described = ("bits", "group")

    def __init__(
        self, out_features: int, in_features: int, bits: int, group: int,
        codes: Array, scales: Array, zeros: Array, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        _check_options(bits, group)
        self.bits, self.group = bits, group
        tiles, blocks, groups = -(-out_features // 16), -(-in_features // 32), -(-in_features // group)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * bits))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, groups, 16))
        self.zeros: Bytes = check_tensor("zeros", zeros, np.uint8, (tiles, groups, 16))

    @classmethod
    def from_codes(
        cls, codes: Bytes, scales: Array, zeros: Array, bits: int, group: int, bias: Array | None = None
    ) -> ZeroPointLinear:
        """From plain codes uint8 [out, in]; scales, rounded to float16, and zeros, integers, [out, groups].

        Raises KernelError where a number is out of range.
        """
        _check_options(bits, group)
        for name, numbers, high in (("code", codes, (1 << bits) - 1), ("zero point", zeros, 255)):
            if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= high:
                raise KernelError(f"a {name} is {int(numbers.min())} to {int(numbers.max())}; 0 to {high} is allowed")
        stored, rows = packing.pack_rows(codes, bits), packing.padded(len(codes), 16)
        groups = scales.shape[1]
        halves = packing.pad_to(to_float16(scales.astype(np.float32), "group scale"), rows, groups)
        zero = packing.pad_to(zeros.astype(np.uint8), rows, groups)
        parameters = packing.pack_parameters(halves), packing.pack_parameters(zero)
        return cls(len(codes), codes.shape[1], bits, group, stored, *parameters, bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[ZeroPointLinear]:
        random = np.random.default_rng(seed)
        for bits, group in product(BITS, GROUPS):
            groups = -(-in_features // group)
            codes = random.integers(0, 1 << bits, (out_features, in_features), np.uint8)
            zeros = random.integers(0, 1 << bits, (out_features, groups))
            yield cls.from_codes(codes, random.random((out_features, groups)) / 16, zeros, bits, group)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return f"int{self.bits}", {**self._arrays(), "group": self.group}

    @property
    def label(self) -> str:
        return f"int{self.bits}-g{self.group}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        parameters = packing.unpack_parameters(self.scales[part]), packing.unpack_parameters(self.zeros[part])
        return self._expand(packing.unpack_codes(self.codes[part], self.bits), *parameters)[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        tile, lane = indices // 16, indices % 16
        codes = packing.unpack_code_rows(self.codes, self.bits, indices)
        return self._expand(codes, self.scales[tile, :, lane], self.zeros[tile, :, lane])

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        scales = packing.unpack_parameters(self.scales).astype(np.float32)
        zeros = packing.unpack_parameters(self.zeros).astype(np.float32)
        codes = packing.unpack_codes(self.codes, self.bits).astype(np.int16) - np.int16(self._middle)
        minimums = scales * (np.float32(self._middle) - zeros)
        return group_matmul(x, codes, scales, minimums, self.group)[:, : self.out_features]

    @property
    def _middle(self) -> int:
        """What a stored code is above the code that the scale multiplies in the kernels."""
        return 128 if self.bits == 8 else 0

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales, "zeros": self.zeros}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> ZeroPointLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "bits", BITS),
            field(meta, "group", GROUPS),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("zeros"),  # type: ignore[arg-type]
            tensors.get("bias"),
        )

    def _expand(self, codes: Bytes, scales: Halves, zeros: Bytes) -> Floats:
        """Codes uint8 [n, padded], scales and zeros [n, groups] → fp32 [n, in_features], every product exact."""
        rows, groups = scales.shape
        values = packing.pad_to(codes.astype(np.float32), rows, groups * self.group)
        grouped = values.reshape(rows, groups, self.group)
        grouped -= zeros.astype(np.float32)[..., None]
        grouped *= scales.astype(np.float32)[..., None]
        return grouped.reshape(rows, -1)[:, : self.in_features]


def _check_options(bits: int, group: int) -> None:
    if bits not in BITS or group not in GROUPS:
        raise KernelError(
            f"zero points of {bits}-bit codes in groups of {group}: bits are 2, 3, 4 or 8, groups are 32, 64 or 128"
        )
