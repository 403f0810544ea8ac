"""Linear weights as codes into a table of values, with one fp32 scale per group of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.matmul import table_matmul

BITS = (4, 8)


class CodebookLinear(PackedLinear):
    """w[r, c] = scale[r, g]·table[code[r, c]] in fp32, g = c // group: NF4 (arXiv 2305.14314) and 8-bit floats.

    table: fp32 [16] or [256]. `group` is a multiple of 32; a row may be one group. Layouts: codes uint8 [rows/16,
    columns/32, 64·bits] as in `packing.pack_codes`, scales fp32 [rows/16, groups, 16]. The native kernels multiply with
    activations in fp32.
    """

    kind = "codebook"
    described = ("bits", "group")

    def __init__(
        self, out_features: int, in_features: int, bits: int, group: int,
        codes: Array, scales: Array, table: Array, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        _check_options(bits, group)
        self.bits, self.group = bits, group
        tiles, blocks, groups = -(-out_features // 16), -(-in_features // 32), -(-in_features // group)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * bits))
        self.scales: Floats = check_tensor("scales", scales, np.float32, (tiles, groups, 16))
        self.table: Floats = check_tensor("table", table, np.float32, (1 << bits,))

    @classmethod
    def from_codes(cls, codes: Bytes, scales: Floats, table: Floats, bits: int, group: int) -> CodebookLinear:
        """From plain codes uint8 [out, in] below 2^bits, and scales fp32 [out, groups]."""
        _check_options(bits, group)
        if codes.size and int(codes.max()) >> bits:
            raise KernelError(f"a code is {int(codes.max())}; 0 to {(1 << bits) - 1} is allowed")
        stored, rows = packing.pack_rows(codes, bits), packing.padded(len(codes), 16)
        scale = packing.pack_parameters(packing.pad_to(scales, rows, scales.shape[1]))
        return cls(len(codes), codes.shape[1], bits, group, stored, scale, table)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[CodebookLinear]:
        random = np.random.default_rng(seed)
        for bits, group in product(BITS, (64, 128)):
            scales = random.random((out_features, -(-in_features // group)), np.float32) * np.float32(1 / 16)
            codes = random.integers(0, 1 << bits, (out_features, in_features), np.uint8)
            yield cls.from_codes(codes, scales, random.standard_normal(1 << bits, np.float32), bits, group)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return f"table{self.bits}", {**self._arrays(), "group": self.group}

    @property
    def label(self) -> str:
        return f"table{self.bits}-g{self.group}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        codes = packing.unpack_codes(self.codes[part], self.bits)
        return self._expand(codes, packing.unpack_parameters(self.scales[part]))[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        codes = packing.unpack_code_rows(self.codes, self.bits, indices)
        return self._expand(codes, self.scales[indices // 16, :, indices % 16])

    def read(self, x: Floats) -> Floats:
        return x

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        values = self.table[packing.unpack_codes(self.codes, self.bits)][: self.out_features, : self.in_features]
        return table_matmul(x, values, packing.unpack_parameters(self.scales)[: self.out_features], self.group)

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "scales": self.scales, "table": self.table}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> CodebookLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "bits", BITS),
            field(meta, "group"),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("table"),  # type: ignore[arg-type]
            tensors.get("bias"),
        )

    def _expand(self, codes: Bytes, scales: Floats) -> Floats:
        """Codes uint8 [n, padded], scales [n, groups] → fp32 [n, in_features]."""
        rows, groups = scales.shape
        values = packing.pad_to(self.table[codes], rows, max(groups * self.group, codes.shape[1]))
        grouped = values[:, : groups * self.group].reshape(rows, groups, self.group)
        return (grouped * scales[..., None]).reshape(rows, -1)[:, : self.in_features]


def _check_options(bits: int, group: int) -> None:
    if bits not in BITS or group < 32 or group % 32:
        raise KernelError(f"a codebook of {bits} bits in groups of {group}: bits are 4 or 8, groups multiples of 32")
