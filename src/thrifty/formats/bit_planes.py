"""Linear weights of 1 to 8 bits in bit planes, multiplied with activations of 1 to 8 bits by counting bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import TILE, NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import affine, bipolar, packing
from thrifty.kernels.reference.affine import Halves

BITS = tuple(range(1, 9))
MOST_COLUMNS = 1 << 16


class BitPlaneLinear(PackedLinear):
    """w[r, c] = scale[r, g]·(2·code[r, c] − (2^bits − 1)), g = c // group: odd whole numbers times a scale, no zero.

    Activations are rounded in the same way, to activation_bits with a scale a row and group: of this format that is a
    part of the product, natively or not. codes: uint8 [rows/16, columns/32, 64·bits], see `bipolar.pack_planes`; rows
    padded to 16 and columns to 32 with zero bits. scales: fp16 [rows/16, groups, 16]. A group is any multiple of 32
    columns; one that is no shorter than the row is one scale a row.
    """

    kind = "bit planes"
    described = ("bits", "activation_bits", "group")
    rounds_input = True

    def __init__(
        self, out_features: int, in_features: int, bits: int, activation_bits: int, group: int,
        codes: Array, scales: Array, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        check_options(in_features, bits, activation_bits, group)
        self.bits, self.activation_bits, self.group = bits, activation_bits, group
        tiles, blocks, groups = -(-out_features // 16), -(-in_features // 32), -(-in_features // group)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * bits))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, groups, 16))

    @classmethod
    def quantize(
        cls, weight: Array, bits: int, activation_bits: int, group: int, bias: Array | None = None
    ) -> BitPlaneLinear:
        """Weight [out, in] of any float dtype, rounded by `bipolar.fit_weights`, a tile of rows at a time.

        Raises KernelError for NaN or infinity, or where a scale is beyond float16.
        """

        def tile(start: int, stop: int) -> Floats:
            return weight[start:stop].astype(np.float32, copy=False)

        return cls._rounded(tile, (weight.shape[0], weight.shape[1]), (bits, activation_bits, group), bias)

    @classmethod
    def requantize(cls, linear: PackedLinear, bits: int, activation_bits: int, group: int) -> BitPlaneLinear:
        """`quantize` of what another layer stores, bias included, without ever expanding all of it."""
        sizes = (linear.out_features, linear.in_features)
        return cls._rounded(linear.tile, sizes, (bits, activation_bits, group), linear.bias)

    @classmethod
    def _rounded(
        cls,
        tile: Callable[[int, int], Floats],
        sizes: tuple[int, int],
        options: tuple[int, int, int],
        bias: Array | None,
    ) -> BitPlaneLinear:
        (out_features, in_features), (bits, activation_bits, group) = sizes, options
        check_options(in_features, bits, activation_bits, group)
        codes = np.empty(sizes, np.uint8)
        scales = np.empty((out_features, -(-in_features // group)), np.float16)
        for start in range(0, out_features, TILE):
            rows = tile(start, min(start + TILE, out_features))
            to = slice(start, start + len(rows))
            affine.require_finite(rows, f"weight rows {start}..{start + len(rows) - 1}")
            for place, first in enumerate(range(0, in_features, group)):
                part = slice(first, first + group)
                codes[to, part], scales[to, place] = bipolar.fit_weights(rows[:, part], bits)
        return cls.from_codes(codes, scales, bits, activation_bits, group, bias)

    @classmethod
    def from_codes(
        cls, codes: Bytes, scales: Array, bits: int, activation_bits: int, group: int, bias: Array | None = None
    ) -> BitPlaneLinear:
        """From plain codes uint8 [out, in], 0..2^bits − 1, and scales [out, groups], rounded to float16.

        Raises KernelError where a code is out of range.
        """
        out_features, in_features = codes.shape
        check_options(in_features, bits, activation_bits, group)
        if codes.dtype != np.uint8 or (codes.size and int(codes.max()) >= 1 << bits):
            raise KernelError(
                f"codes of {bits} bits are uint8 0 to {(1 << bits) - 1}, found {codes.dtype} {codes.max()}"
            )
        groups = -(-in_features // group)
        if scales.shape != (out_features, groups):
            raise KernelError(f"group scales are {scales.shape}, expected ({out_features}, {groups})")
        rows, columns = packing.padded(out_features, 16), packing.padded(in_features, 32)
        stored = bipolar.pack_planes(packing.pad_to(codes, rows, columns), bits)
        halves = packing.pad_to(affine.to_float16(scales.astype(np.float32), "group scale"), rows, groups)
        sizes = (out_features, in_features, bits, activation_bits, group)
        return cls(*sizes, stored, packing.pack_parameters(halves), bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[BitPlaneLinear]:
        weight = np.random.default_rng(seed).standard_normal((out_features, in_features), np.float32)
        for bits in ((1, 1), (1, 8), (2, 2), (2, 8), (3, 4), (4, 4), (4, 8)):
            yield cls.quantize(weight, *bits, 128)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return f"planes{self.bits}", {**self._arrays(), "group": self.group, "activation_bits": self.activation_bits}

    @property
    def label(self) -> str:
        return f"w{self.bits}a{self.activation_bits}-g{self.group}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        codes = bipolar.unpack_planes(self.codes[part], self.bits)
        return self._expand(codes, packing.unpack_parameters(self.scales[part]))[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        codes = bipolar.unpack_plane_rows(self.codes, self.bits, indices)
        return self._expand(codes, self.scales[indices // 16, :, indices % 16])

    def read(self, x: Floats) -> Floats:
        return x

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        codes = bipolar.unpack_planes(self.codes, self.bits)[: self.out_features, : self.in_features]
        scales = packing.unpack_parameters(self.scales).astype(np.float32)[: self.out_features]
        return bipolar.bipolar_matmul(x, codes, scales, self.bits, self.activation_bits, self.group)

    def round_input(self, x: Floats) -> Floats:
        """What the product makes of activations fp32 [m, in]: the nearest numbers of activation_bits, fp32."""
        rounded = np.empty(x.shape, np.float32)
        for first in range(0, self.in_features, self.group):
            part = slice(first, first + self.group)
            codes, scales = bipolar.round_activations(x[:, part], self.activation_bits)
            rounded[:, part] = bipolar.numbers(codes, self.activation_bits) * scales[:, None]
        return rounded

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> BitPlaneLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "bits", BITS),
            field(meta, "activation_bits", BITS),
            field(meta, "group"),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("bias"),
        )

    def _expand(self, codes: Bytes, scales: Halves) -> Floats:
        """Codes uint8 [n, padded], scales fp16 [n, groups] → fp32 [n, in_features]."""
        values = bipolar.numbers(codes[:, : self.in_features], self.bits).astype(np.float32)
        places = np.arange(self.in_features) // self.group
        return values * scales.astype(np.float32)[:, places]


def check_options(in_features: int, bits: int, activation_bits: int, group: int) -> None:
    """Raise KernelError for widths, groups and rows that the format does not have."""
    if bits not in BITS or activation_bits not in BITS:
        raise KernelError(
            f"bit planes of {bits}-bit weights and {activation_bits}-bit activations: both are 1 to 8 bits"
        )
    if group < 32 or group % 32 or group > MOST_COLUMNS:
        raise KernelError(f"group {group} of bit planes must be a multiple of 32 up to {MOST_COLUMNS}")
    if in_features > MOST_COLUMNS:
        raise KernelError(f"bit planes have at most {MOST_COLUMNS} columns, not {in_features}")
    most = min(in_features, group) * ((1 << bits) - 1) * ((1 << activation_bits) - 1)
    if most >= 1 << 31:
        raise KernelError(
            f"sums of {min(in_features, group)} products of {bits} and {activation_bits} bits do not fit 32 bits: use "
            "smaller groups"
        )
