"""Linear weights as small integer codes with one float16 scale (and minimum) per group of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import TILE, NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import affine, packing
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.codebooks import CODEBOOKS
from thrifty.kernels.reference.ggml.blocks import signed
from thrifty.kernels.reference.matmul import group_matmul

BITS = (2, 3, 4, 5, 8)
ROUNDED_BITS = (2, 3, 4, 8)
GROUPS = (32, 64, 128)


class GroupLinear(PackedLinear):
    """w[r, c] = scale[r, g]·code[r, c] + minimum[r, g] with g = c // group.

    bits 2, 3, 4: code 0..2^bits − 1; without minimums ("symmetric") w = scale·(code − 2^(bits−1)). bits 5: the same, in
    groups of 32 only. bits 8: code −128..127, stored plus 128; without minimums w = scale·code.
    codebook: a name of `codebooks.CODEBOOKS`, of 4 bits and without minimums: w = scale·table[code].

    Layouts: `packing.pack_codes` for codes uint8 [rows/16, columns/32, 64·bits], and scales, minimums fp16 [rows/16,
    groups, 16]; rows are padded to 16, columns to 32, the last group may be short.
    """

    kind = "group"
    described = ("bits", "group", "codebook")

    def __init__(
        self,
        out_features: int,
        in_features: int,
        bits: int,
        group: int,
        codes: Array,
        scales: Array,
        minimums: Array | None = None,
        bias: Array | None = None,
        codebook: str | None = None,
    ) -> None:
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        check_options(bits, group)
        if codebook is not None and (codebook not in CODEBOOKS or bits != 4 or minimums is not None):
            raise KernelError(
                f"codebook {codebook!r} does not go with {bits} bits{'' if minimums is None else ' and minimums'}; "
                f"codes of 4 bits without minimums take {', '.join(CODEBOOKS)}"
            )
        self.bits = bits
        self.group = group
        self.codebook = codebook
        tiles, blocks, groups = _tiles(out_features, in_features, group)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * bits))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, groups, 16))
        if minimums is not None:
            minimums = check_tensor("minimums", minimums, np.float16, (tiles, groups, 16))
        self.minimums: Halves | None = minimums

    @classmethod
    def quantize(
        cls, weight: Array, bits: int, group: int, symmetric: bool = False, bias: Array | None = None
    ) -> GroupLinear:
        """Round-to-nearest of weight [out, in] (any float dtype), a tile of rows at a time.

        Raises KernelError for NaN or infinity, or where a scale is beyond float16.
        """

        def tile(start: int, stop: int) -> Floats:
            return weight[start:stop].astype(np.float32, copy=False)

        return cls._rounded(tile, weight.shape[0], weight.shape[1], bits, group, symmetric, bias)

    @classmethod
    def requantize(cls, linear: PackedLinear, bits: int, group: int, symmetric: bool = False) -> GroupLinear:
        """`quantize` of what another layer stores, bias included, without ever expanding all of it."""
        sizes = (linear.out_features, linear.in_features)
        return cls._rounded(linear.tile, *sizes, bits, group, symmetric, linear.bias)

    @classmethod
    def _rounded(
        cls,
        tile: Callable[[int, int], Floats],
        out_features: int,
        in_features: int,
        bits: int,
        group: int,
        symmetric: bool,
        bias: Array | None,
    ) -> GroupLinear:
        _check_rounding(bits, group)
        builder = _Builder(out_features, in_features, bits, group, has_minimum=not symmetric)
        for start in range(0, out_features, TILE):
            rows = tile(start, min(start + TILE, out_features))
            affine.require_finite(rows, f"weight rows {start}..{start + len(rows) - 1}")
            builder.put(start, *_round(rows, bits, group, symmetric))
        return builder.build(bias)

    @classmethod
    def from_codes(
        cls,
        codes: Array,
        scales: Array,
        minimums: Array | None,
        bits: int,
        group: int,
        bias: Array | None = None,
        codebook: str | None = None,
    ) -> GroupLinear:
        """From plain codes, any integer dtype [out, in]: 0..2^bits − 1, or −128..127 for 8 bit.

        scales, minimums: [out, groups], rounded to float16. Raises KernelError where a number is out of
        range.
        """
        check_options(bits, group)
        low, high = (-128, 127) if bits == 8 else (0, (1 << bits) - 1)
        builder = _Builder(codes.shape[0], codes.shape[1], bits, group, has_minimum=minimums is not None)
        for start in range(0, builder.out_features, TILE):
            part = slice(start, start + TILE)
            tile = codes[part]
            if tile.size and (int(tile.min()) < low or int(tile.max()) > high):
                raise KernelError(
                    f"{bits}-bit codes must be in {low}..{high}, found {int(tile.min())}..{int(tile.max())}"
                )
            scale, minimum = affine.to_float16(scales[part].astype(np.float32), "group scale"), None
            if minimums is not None:
                minimum = affine.to_float16(minimums[part].astype(np.float32), "group minimum")
            builder.put(start, tile, scale, minimum)
        return builder.build(bias, codebook)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[GroupLinear]:
        random = np.random.default_rng(seed)
        weight = random.standard_normal((out_features, in_features), np.float32)
        scales = random.random((out_features, -(-in_features // 32))) / 16
        for bits in ROUNDED_BITS:
            for group, symmetric in product(GROUPS, (False, True)):
                yield cls.quantize(weight, bits, group, symmetric)
        for minimums in (None, -scales):
            yield cls.from_codes(random.integers(0, 32, weight.shape, np.uint8), scales, minimums, 5, 32)
        for name in CODEBOOKS:
            yield cls.from_codes(random.integers(0, 16, weight.shape, np.uint8), scales, None, 4, 32, codebook=name)

    @property
    def has_minimum(self) -> bool:
        """Whether groups carry a minimum; without, the codes are symmetric about zero."""
        return self.minimums is not None

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        layout = f"int{self.bits}" if self.codebook is None else f"{self.codebook}_nl"
        arrays: Mapping[str, Array | int | None] = {
            "codes": self.codes,
            "scales": self.scales,
            "minimums": self.minimums,
            "group": self.group,
        }
        return layout, arrays

    @property
    def label(self) -> str:
        return f"{self.codebook or f'int{self.bits}'}-g{self.group}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        codes = packing.unpack_codes(self.codes[part], self.bits)
        scales = packing.unpack_parameters(self.scales[part])
        minimums = None if self.minimums is None else packing.unpack_parameters(self.minimums[part])
        return self._expand(codes, scales, minimums)[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        tile, lane = indices // 16, indices % 16
        codes = packing.unpack_code_rows(self.codes, self.bits, indices)
        minimums = None if self.minimums is None else self.minimums[tile, :, lane]
        return self._expand(codes, self.scales[tile, :, lane], minimums)

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        scales = packing.unpack_parameters(self.scales).astype(np.float32)
        minimums = None
        if self.minimums is not None:
            minimums = packing.unpack_parameters(self.minimums).astype(np.float32)
        return group_matmul(x, self.unpacked_codes(), scales, minimums, self.group)[:, : self.out_features]

    def unpacked_codes(self) -> npt.NDArray[np.int16]:
        """The codes as w = scale·code + minimum takes them: int16 [rows, columns], with their padding."""
        codes = packing.unpack_codes(self.codes, self.bits)
        if self.codebook is not None:
            return CODEBOOKS[self.codebook].astype(np.int16)[codes]
        return codes.astype(np.int16) - np.int16(self._offset)

    @property
    def _offset(self) -> int:
        """What a stored code is above the code that the scale multiplies."""
        if self.bits == 8:
            return 128
        return 0 if self.has_minimum else 1 << (self.bits - 1)

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales, "minimums": self.minimums}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> GroupLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "bits", BITS),
            field(meta, "group", GROUPS),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("minimums"),
            tensors.get("bias"),
            field(meta, "codebook", (None, *CODEBOOKS)),
        )

    def _expand(self, codes: Bytes, scales: Halves, minimums: Halves | None) -> Floats:
        """Codes as stored uint8 [n, padded], parameters fp16 [n, groups] → fp32 [n, in_features]."""
        table = None if self.codebook is None else CODEBOOKS[self.codebook]
        values = signed(codes, self._offset, table)
        rows, groups = scales.shape
        grouped = packing.pad_to(values, rows, groups * self.group).reshape(rows, groups, self.group)
        grouped *= scales.astype(np.float32)[..., None]
        if minimums is not None:
            grouped += minimums.astype(np.float32)[..., None]
        return grouped.reshape(rows, groups * self.group)[:, : self.in_features]


class _Builder:
    """Fills a GroupLinear a tile of rows at a time, so that the peak is the result plus one tile."""

    def __init__(self, out_features: int, in_features: int, bits: int, group: int, has_minimum: bool) -> None:
        self.out_features, self.in_features, self.bits, self.group = out_features, in_features, bits, group
        tiles, blocks, groups = _tiles(out_features, in_features, group)
        self.codes = np.empty((tiles, blocks, 64 * bits), np.uint8)
        self.scales = np.zeros((tiles, groups, 16), np.float16)
        self.minimums = np.zeros_like(self.scales) if has_minimum else None

    def put(self, start: int, codes: Array, scales: Halves, minimums: Halves | None) -> None:
        """Rows from `start` on (a multiple of 16): codes [n, in], scales and minimums [n, groups]."""
        count, groups = len(codes), self.scales.shape[1]
        rows = packing.padded(count, 16)
        part = slice(start // 16, (start + rows) // 16)
        offset = 128 if self.bits == 8 else 0
        unsigned = (codes.astype(np.int16) + np.int16(offset)).astype(np.uint8)
        stored = packing.pad_to(unsigned, rows, packing.padded(self.in_features, 32))
        self.codes[part] = packing.pack_codes(stored, self.bits)
        for stored_values, values in ((self.scales, scales), (self.minimums, minimums)):
            if stored_values is None or values is None:
                continue
            if values.shape != (count, groups):
                raise KernelError(f"group parameters are {values.shape}, expected ({count}, {groups})")
            stored_values[part] = packing.pack_parameters(packing.pad_to(values, rows, groups))

    def build(self, bias: Array | None, codebook: str | None = None) -> GroupLinear:
        """The finished layer."""
        sizes = (self.out_features, self.in_features, self.bits, self.group)
        return GroupLinear(*sizes, self.codes, self.scales, self.minimums, bias, codebook)


def check_options(bits: int, group: int) -> None:
    """Raise KernelError unless bits is one of BITS and group 32, or with other than 5 bits 64 or 128."""
    if bits not in BITS or group not in GROUPS or (bits == 5 and group != 32):
        raise KernelError(
            f"group format int{bits}-g{group} does not exist: bits are 2, 3, 4 or 8 with groups of 32, 64 or 128, "
            "or 5 with groups of 32"
        )


def _check_rounding(bits: int, group: int) -> None:
    """Raise KernelError for what weights are not rounded to."""
    check_options(bits, group)
    if bits not in ROUNDED_BITS:
        raise KernelError(
            f"weights are not rounded to int{bits}-g{group}, which only files have: use 2, 3, 4 or 8 bits"
        )


def _tiles(out_features: int, in_features: int, group: int) -> tuple[int, int, int]:
    """Row tiles, column blocks and groups of a packed weight."""
    return -(-out_features // 16), -(-in_features // 32), -(-in_features // group)


def _round(weight: Floats, bits: int, group: int, symmetric: bool) -> tuple[Array, Halves, Halves | None]:
    """Codes [n, in], scales and minimums [n, groups]; a short last group uses its own columns only."""
    rows, columns = weight.shape
    missing = packing.padded(columns, group) - columns
    full = np.concatenate((weight, weight[:, -1:].repeat(missing, axis=1)), axis=1) if missing else weight
    groups = full.reshape(rows, -1, group)
    minimum: Halves | None = None
    if symmetric:
        codes, scale = affine.symmetric8(groups) if bits == 8 else affine.symmetric(groups, bits)
    else:
        codes, scale, minimum = affine.centred8(groups) if bits == 8 else affine.affine(groups, (1 << bits) - 1)
    return codes.reshape(rows, -1)[:, :columns], scale, minimum
