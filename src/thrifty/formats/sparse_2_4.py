"""Linear weights of which two in every four columns are kept (2:4 sparsity), as bf16 or as codes in groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Bytes, Flags, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import TILE, NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import affine, packing, sparse_2_4
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.matmul import bf16_matmul, group_matmul

Values = Literal["bf16", "int8", "int4"]
BITS: Mapping[str, int] = {"bf16": 16, "int8": 8, "int4": 4}
GROUPS = (32, 64, 128)


class Sparse24Linear(PackedLinear):
    """w[r, c] = mask[r, c]·value: a mask of two of every four columns of a row (Mishra et al., arXiv 2104.08378).

    values "bf16": the kept numbers as they are. "int8" and "int4": scale[r, g]·code with g = c // group, the group of
    columns counted with those that are left out, code −127..127 or −8..7. Bits a weight: 9, 5 and 3, and of codes
    16 / group for the scale. Layouts: codes uint8 [rows/16, columns/32, bytes] as in `sparse_2_4.pack`, scales fp16
    [rows/16, groups, 16]; rows are padded to 16, columns (multiples of 4) to 32.
    """

    kind = "sparse-2-4"
    described = ("values", "group")

    def __init__(
        self,
        out_features: int,
        in_features: int,
        values: Values,
        group: int,
        codes: Array,
        scales: Array | None = None,
        bias: Array | None = None,
    ) -> None:
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type. group: 0 with bf16."""
        super().__init__(out_features, in_features, bias)
        _check(in_features, values, group)
        self.values: Values = values
        self.group = group
        tiles, blocks = -(-out_features // 16), -(-in_features // 32)
        nbytes = sparse_2_4.BLOCK_BYTES[BITS[values]]
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, nbytes))
        self.scales: Halves | None = None
        if values != "bf16":
            self.scales = check_tensor("scales", scales, np.float16, (tiles, -(-in_features // group), 16))
        elif scales is not None:
            raise KernelError("2:4 values in bf16 have no scales: leave them out")

    @classmethod
    def from_weight(
        cls, weight: Array, mask: Flags, values: Values = "bf16", group: int = 32, bias: Array | None = None
    ) -> Sparse24Linear:
        """What a mask bool [out, in] keeps of weight [out, in], any float dtype; rounded to the nearest code or bf16.

        group: of columns that share a scale; not looked at with bf16. Raises KernelError for NaN or infinity, a mask
        that does not keep two of every four, or a scale beyond float16.
        """
        rows, columns = weight.shape
        group = 0 if values == "bf16" else group
        _check(columns, values, group)
        if mask.shape != weight.shape:
            raise KernelError(f"the mask has shape {list(mask.shape)}, the weight {list(weight.shape)}")
        sparse_2_4.check_mask(mask)
        tiles, blocks = -(-rows // 16), -(-columns // 32)
        codes = np.empty((tiles, blocks, sparse_2_4.BLOCK_BYTES[BITS[values]]), np.uint8)
        scales = None if not group else np.empty((tiles, -(-columns // group), 16), np.float16)
        for start in range(0, rows, TILE):
            kept = mask[start : start + TILE]
            part = np.where(kept, weight[start : start + TILE].astype(np.float32), np.float32(0))
            affine.require_finite(part, f"weight rows {start}..{start + len(part) - 1}")
            place = slice(start // 16, start // 16 + -(-len(part) // 16))
            numbers, scale = _rounded(part, values, group)
            chosen = np.take_along_axis(numbers, sparse_2_4.places(kept), axis=1)
            codes[place] = sparse_2_4.pack(chosen, kept, BITS[values])
            if scales is not None and scale is not None:
                tall = packing.pad_to(scale, 16 * (place.stop - place.start), scale.shape[1])
                scales[place] = packing.pack_parameters(tall)
        return cls(rows, columns, values, group, codes, scales, bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[Sparse24Linear]:
        random = np.random.default_rng(seed)
        weight = random.standard_normal((out_features, in_features), np.float32)
        chosen = random.integers(0, len(sparse_2_4.CANDIDATES), (out_features, in_features // sparse_2_4.GROUP))
        mask = sparse_2_4.CANDIDATES[chosen].reshape(weight.shape)
        for values, group in (("bf16", 32), ("int8", 32), ("int4", 32), ("int4", 128)):
            yield cls.from_weight(weight, mask, values, group)  # type: ignore[arg-type]  # of `Values`

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        arrays: dict[str, Array | int | None] = {"codes": self.codes}
        if self.scales is not None:
            arrays |= {"scales": self.scales, "group": self.group}
        return f"{self.values}_2_4", arrays

    @property
    def label(self) -> str:
        return "2:4-bf16" if self.values == "bf16" else f"2:4-{self.values}-g{self.group}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        scales = None if self.scales is None else packing.unpack_parameters(self.scales[part])
        return self._expand(self.codes[part], scales)[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        tiles, place = np.unique(indices // 16, return_inverse=True)
        scales = None if self.scales is None else packing.unpack_parameters(self.scales[tiles])
        return self._expand(self.codes[tiles], scales)[16 * place.reshape(-1) + indices % 16]

    def mask(self) -> Flags:
        """Which weights are kept: bool [out_features, in_features]."""
        _, mask = sparse_2_4.unpack(self.codes, BITS[self.values])
        return mask[: self.out_features, : self.in_features]

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias. What is left out
        is a zero among others.
        """
        if self.scales is None:
            return bf16_matmul(x, self.dequantize().astype(BFLOAT16))
        numbers, mask = sparse_2_4.unpack(self.codes, BITS[self.values])
        codes = sparse_2_4.expand(sparse_2_4.signed(numbers, BITS[self.values]), mask)
        scales = packing.unpack_parameters(self.scales).astype(np.float32)
        return group_matmul(x, codes, scales, None, self.group)[:, : self.out_features]

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> Sparse24Linear:
        values = field(meta, "values", tuple(BITS))
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            values,
            field(meta, "group", (0,) if values == "bf16" else GROUPS),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),
            tensors.get("bias"),
        )

    def _expand(self, codes: Bytes, scales: Halves | None) -> Floats:
        """Packed tiles, and scales fp16 [rows, groups] → fp32 [rows, in_features]."""
        numbers, mask = sparse_2_4.unpack(codes, BITS[self.values])
        if scales is None:
            whole: Floats = sparse_2_4.expand(numbers, mask).view(BFLOAT16).astype(np.float32)
            return whole[:, : self.in_features]
        values = sparse_2_4.expand(sparse_2_4.signed(numbers, BITS[self.values]), mask).astype(np.float32)
        columns = np.arange(self.in_features) // self.group
        return values[:, : self.in_features] * scales.astype(np.float32)[:, columns]


def _check(columns: int, values: str, group: int) -> None:
    """Raise KernelError for a format that there is not, and for columns that are not whole groups of four."""
    if values not in BITS or (group != 0 if values == "bf16" else group not in GROUPS):
        raise KernelError(
            f"2:4 values {values!r} in groups of {group} do not exist: values are bf16 without groups, or int8 or int4 "
            "in groups of 32, 64 or 128"
        )
    if columns % sparse_2_4.GROUP:
        raise KernelError(
            f"2:4 sparsity keeps two of every four columns; {columns} columns are not whole fours: leave this layer out"
        )


def _rounded(part: Floats, values: str, group: int) -> tuple[Array, Halves | None]:
    """Numbers [n, in] as `sparse_2_4.pack` takes them, zeros as zeros, and scales [n, groups]."""
    if values == "bf16":
        return part.astype(BFLOAT16).view(np.uint16), None
    rows, columns = part.shape
    groups = packing.pad_to(part, rows, packing.padded(columns, group)).reshape(rows, -1, group)
    if values == "int8":
        codes, scale = affine.symmetric8(groups)
        return codes.view(np.uint8).reshape(rows, -1)[:, :columns], scale
    nibbles, scale = affine.symmetric(groups, 4)
    return (nibbles ^ np.uint8(8)).reshape(rows, -1)[:, :columns], scale
