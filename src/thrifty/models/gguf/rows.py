"""Rows of a GGUF tensor as a decoder's linear layer, read a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Bytes, Floats, Integers
from thrifty.errors import CheckpointError
from thrifty.formats.gguf import FORMATS, FileFormat
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.ggml import values
from thrifty.models.gguf.file import GGUF
from thrifty.models.source import ROWS_AT_A_TIME, Deviation, DType, SlicedLinear, not_finite, rounded


@dataclass(frozen=True)
class TensorRows:
    """Rows first … first + shape[0] − 1 of a tensor of `shape[1]` columns; order: where they lie, None as they are."""

    file: GGUF
    tensor: str
    first: int
    shape: tuple[int, int]
    order: Integers | None = None

    @property
    def kind(self) -> str:
        """GGUF's name of the type."""
        return self.file.tensor(self.tensor).type

    def raw(self) -> Iterator[Bytes]:
        """Slices of ROWS_AT_A_TIME rows, uint8 [rows, row bytes]; the file's pages leave the process behind them."""
        rows = self.file.rows(self.tensor)
        for start in range(0, self.shape[0], ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, self.shape[0])
            if self.order is None:
                yield rows[self.first + start : self.first + stop]
                self.file.forget(self.tensor, self.first + start, self.first + stop)
            else:
                yield rows[self.first + self.order[start:stop]]
        if self.order is not None:
            self.file.forget(self.tensor, self.first, self.first + self.shape[0])

    def exact(self) -> Iterator[Floats]:
        """The same slices as fp32 values. Raises CheckpointError where one is not finite."""
        start = 0
        for raw in self.raw():
            exact = values(self.kind, raw)
            if not np.isfinite(exact).all():
                raise CheckpointError(not_finite(self.tensor, exact, start))
            yield exact
            start += len(exact)


def stored(rows: TensorRows) -> SlicedLinear:
    """In the format of its type: with the file's own values, but for F32, which is rounded to packed bf16."""
    return _kept(rows, FORMATS[rows.kind]) if rows.kind in FORMATS else _rounded(rows)


def plain(rows: TensorRows, dtype: DType) -> SlicedLinear:
    """The exact values as plain rows of float32 or bfloat16."""

    def slices() -> Iterator[Mapping[str, Array]]:
        for exact in rows.exact():
            yield {"weight": rounded(rows.tensor, exact, dtype)}

    return SlicedLinear(_dense(rows, dtype, packed=False), {"weight": (rows.shape, dtype)}, slices)


def _kept(rows: TensorRows, format: FileFormat) -> SlicedLinear:
    def slices() -> Iterator[Mapping[str, Array]]:
        start = 0
        for raw in rows.raw():
            arrays = format.pack(raw, rows.shape[1])
            check_finite(rows.tensor, arrays, start, raw, rows.kind)
            yield arrays
            start += len(raw)

    def mapped() -> Iterator[Mapping[str, Array]]:
        """All rows in one slice, as they lie in the file."""
        for _ in slices():
            pass
        every = rows.file.rows(rows.tensor)[rows.first : rows.first + rows.shape[0]]
        yield format.pack(every, rows.shape[1])

    is_mapped = rows.kind == "F16" and rows.order is None
    return SlicedLinear(format.meta(*rows.shape), format.shapes(*rows.shape), mapped if is_mapped else slices)


def _rounded(rows: TensorRows) -> SlicedLinear:
    """Packed bf16, and how far that is from the file's values."""
    deviation, bf16 = Deviation(), FORMATS["BF16"]

    def slices() -> Iterator[Mapping[str, Array]]:
        for exact in rows.exact():
            near = rounded(rows.tensor, exact, BFLOAT16)
            deviation.add(exact, near.astype(np.float32))
            yield bf16.pack(near.view(np.uint8).reshape(len(near), -1), rows.shape[1])

    return SlicedLinear(bf16.meta(*rows.shape), bf16.shapes(*rows.shape), slices, deviation)


def _dense(rows: TensorRows, dtype: DType, packed: bool) -> dict[str, Any]:
    name = "bf16" if dtype == BFLOAT16 else "f32"
    sizes = {"out_features": rows.shape[0], "in_features": rows.shape[1]}
    return {"kind": "dense", **sizes, "dtype": name, "packed": packed}


def check_finite(tensor: str, arrays: Mapping[str, Array], start: int, raw: Bytes, kind: str) -> None:
    """Raise CheckpointError where a scale, a minimum or a plain value is not finite. start: the first row."""
    for name, label in (("scales", "scale"), ("minimums", "minimum")):
        if name in arrays and not _all_finite(arrays[name]):
            parameters = packing.unpack_parameters(arrays[name])
            row, group = np.argwhere(~np.isfinite(parameters))[0]
            raise CheckpointError(
                f"tensor '{tensor}': the {label} of row {start + row}, group {group} is not finite; the file is "
                "damaged, fetch it again"
            )
    if "weight" in arrays and not _all_finite(arrays["weight"]):
        raise CheckpointError(not_finite(tensor, values(kind, raw), start))


def _all_finite(numbers: Array) -> bool:
    """Of fp16 or bf16, by the bits of their exponents."""
    exponent = np.uint16(0x7F80 if numbers.dtype == BFLOAT16 else 0x7C00)
    return not bool(((numbers.view(np.uint16) & exponent) == exponent).any())
