"""Linear weights as codes into a small table of values that each row has for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.affine import Halves, require_finite, to_float16
from thrifty.kernels.reference.lookups import exchanged
from thrifty.kernels.reference.matmul import group_matmul

BITS = (3, 4)
LARGEST = 127  # of a table's whole numbers
Values = npt.NDArray[np.int8]


class RowTableLinear(PackedLinear):
    """w[r, c] = scale[r]·table[r, code[r, c]]: the non-uniform codes of SqueezeLLM (2306.07629, §4.1).

    bits 3 or 4: 8 or 16 values a row, whole numbers −127..127 with one float16 scale a row. The kernels multiply them
    with int8 activations, in exact sums of 32 columns.

    Layouts: codes uint8 [rows/16, columns/32, 64·bits], `packing.pack_codes` of `lookups.exchanged`; tables int8
    [rows/16, 16, 2^bits]; scales fp16 [rows/16, 16]. Rows are padded to 16, columns to 32.
    """

    kind = "row table"
    described = ("bits",)

    def __init__(
        self, out_features: int, in_features: int, bits: int,
        codes: Array, tables: Array, scales: Array, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        _check_bits(bits)
        self.bits = bits
        tiles, blocks = -(-out_features // 16), -(-in_features // 32)
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, 64 * bits))
        self.tables: Values = check_tensor("tables", tables, np.int8, (tiles, 16, 1 << bits))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, 16))

    @classmethod
    def from_codes(
        cls, codes: Bytes, tables: Values, scales: Array, bits: int, bias: Array | None = None
    ) -> RowTableLinear:
        """From plain codes uint8 [out, in] below 2^bits, tables int8 [out, 2^bits], scales [out], rounded to float16.

        Raises KernelError where a number is out of range.
        """
        _check_bits(bits)
        out_features, in_features = codes.shape
        if codes.size and int(codes.max()) >> bits:
            raise KernelError(f"a code is {int(codes.max())}; 0 to {(1 << bits) - 1} is allowed")
        check_tensor("tables", tables, np.int8, (out_features, 1 << bits))
        rows, columns = packing.padded(out_features, 16), packing.padded(in_features, 32)
        stored = packing.pack_codes(exchanged(packing.pad_to(codes, rows, columns)), bits)
        table = packing.pad_to(tables, rows, 1 << bits).reshape(rows // 16, 16, 1 << bits)
        scale = packing.pad_to(to_float16(scales.astype(np.float32), "row scale")[:, None], rows, 1)
        return cls(out_features, in_features, bits, stored, table, scale.reshape(rows // 16, 16), bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[RowTableLinear]:
        random = np.random.default_rng(seed)
        scales = random.random(out_features, np.float32) / 1024
        for bits in BITS:
            codes = random.integers(0, 1 << bits, (out_features, in_features), np.uint8)
            yield cls.from_codes(codes, random.integers(-127, 128, (out_features, 1 << bits), np.int8), scales, bits)

    @staticmethod
    def rounded_tables(values: Floats) -> tuple[Values, Halves]:
        """Tables of any numbers, fp32 [out, 2^bits], as they are stored: int8 [out, 2^bits] and fp16 [out].

        The largest of a row is 127 times its scale. Raises KernelError for NaN or infinity, or where a scale is beyond
        float16.
        """
        require_finite(values, "tables of rows")
        scales = to_float16(np.abs(values).max(axis=1, initial=0) / LARGEST, "row scale")
        wide = scales.astype(np.float32)[:, None]
        steps = np.divide(values, wide, out=np.zeros_like(values), where=wide > 0)
        return np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8), scales

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return f"row_table{self.bits}", {
            "codes": self.codes,
            "table": self.tables.view(np.uint8),
            "scales": self.scales,
        }

    @property
    def label(self) -> str:
        return f"lut{self.bits}"

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        return self._expanded(part)[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        tiles, places = np.unique(indices // 16, return_inverse=True)
        return self._expanded(tiles)[places * 16 + indices % 16]

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        values = self._values(slice(None))
        scales = self.scales.reshape(-1, 1).astype(np.float32)
        return group_matmul(x, values, scales, None, values.shape[1])[:, : self.out_features]

    def _values(self, tiles: slice | Integers) -> Values:
        """The whole numbers int8 [16·tiles, columns], with the padding of rows and columns."""
        codes = exchanged(packing.unpack_codes(self.codes[tiles], self.bits))
        return np.take_along_axis(self.tables[tiles].reshape(len(codes), -1), codes, axis=1)

    def _expanded(self, tiles: slice | Integers) -> Floats:
        values = self._values(tiles)[:, : self.in_features].astype(np.float32)
        values *= self.scales[tiles].reshape(-1, 1).astype(np.float32)
        return values

    def _arrays(self) -> dict[str, Array | None]:
        return {"codes": self.codes, "tables": self.tables, "scales": self.scales}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> RowTableLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "bits", BITS),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("tables"),  # type: ignore[arg-type]
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("bias"),
        )


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise KernelError(f"tables of rows have codes of 3 or 4 bits, not {bits}")
