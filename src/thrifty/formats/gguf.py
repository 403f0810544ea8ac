"""The tensor types of GGUF files as stored linear layers, each at its own bytes and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thrifty.arrays import BFLOAT16, Array, Bytes
from thrifty.formats.dense import DenseLinear
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import PackedLinear
from thrifty.formats.superblock import SuperblockLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference import ggml, superblock
from thrifty.kernels.reference.ggml.blocks import GROUP

ArrayShape = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class FileFormat:
    """What a linear layer of one type is stored as. options: of its `meta`, beside the sizes."""

    type: str
    options: Mapping[str, Any]

    def meta(self, rows: int, columns: int) -> dict[str, Any]:
        """As `PackedLinear.from_state` takes it."""
        return {"out_features": rows, "in_features": columns, **self.options}

    def shapes(self, rows: int, columns: int) -> dict[str, ArrayShape]:
        """Shape and type of each array of the layer's state. Its first axis goes along the rows."""
        tiles, options = -(-rows // 16), self.options
        if options["kind"] == DenseLinear.kind:
            if options["packed"]:
                return {"weight": ((tiles, -(-columns // 2), 16, 2), BFLOAT16)}
            return {"weight": ((rows, columns), np.dtype(np.float16))}
        if options["kind"] == SuperblockLinear.kind:
            layout = superblock.TYPES[options["type"]]
            groups, first = columns // superblock.SUPERBLOCK, "records"
            size, has_minimum = layout.record_bytes, layout.has_minimum
        else:
            groups, first = columns // GROUP, "codes"
            size, has_minimum = 64 * options["bits"], self.type in _WITH_MINIMUM
        shapes: dict[str, ArrayShape] = {first: ((tiles, groups, size), np.dtype(np.uint8))}
        for name in ("scales", "minimums") if has_minimum else ("scales",):
            shapes[name] = ((tiles, groups, 16), np.dtype(np.float16))
        return shapes

    def pack(self, raw: Bytes, columns: int) -> Mapping[str, Array]:
        """The layer's arrays of some rows uint8 [rows, row bytes], rows beyond whole tiles as zero bytes: a re-ordering
        of bits, natively where native code is on.
        """
        if self.type == "F16":
            return {"weight": raw.view("<f2")}
        if dispatch.native() is None:
            return self.pack_slowly(raw)
        arrays = {name: np.empty(*shape) for name, shape in self.shapes(len(raw), columns).items()}
        first, *others = arrays.values()
        codes = first.view(np.uint16) if self.type == "BF16" else first
        dispatch.repack(self.type, raw, codes, *others)
        return arrays

    def pack_slowly(self, raw: Bytes) -> Mapping[str, Array]:
        """`pack` in NumPy."""
        return self._layer(raw).state()

    def _layer(self, raw: Bytes) -> PackedLinear:
        if self.type == "BF16":
            return DenseLinear.from_weight(raw.view(BFLOAT16), BFLOAT16, packed=True)
        if self.type == "F16":
            return DenseLinear.from_weight(raw.view("<f2"), np.float16)
        if self.type in ggml.SUPERBLOCK:
            return SuperblockLinear.from_rows(self.options["type"], ggml.SUPERBLOCK[self.type](raw))
        rows, bits = ggml.GROUPED[self.type](raw), self.options["bits"]
        codes = (rows.codes ^ np.uint8(128)).view(np.int8) if bits == 8 else rows.codes
        codebook = self.options["codebook"]
        return GroupLinear.from_codes(codes, rows.scales, rows.minimums, bits, GROUP, codebook=codebook)


def _grouped(type: str, bits: int, codebook: str | None = None) -> FileFormat:
    options = {"kind": GroupLinear.kind, "bits": bits, "group": GROUP, "codebook": codebook}
    return FileFormat(type, options)


_WITH_MINIMUM = ("Q4_1", "Q5_1")
_FORMATS = (
    _grouped("Q4_0", 4),
    _grouped("Q4_1", 4),
    _grouped("Q5_0", 5),
    _grouped("Q5_1", 5),
    _grouped("Q8_0", 8),
    _grouped("IQ4_NL", 4, "iq4"),
    *(FileFormat(name, {"kind": SuperblockLinear.kind, "type": name.lower()}) for name in ggml.SUPERBLOCK),
    FileFormat("BF16", {"kind": DenseLinear.kind, "dtype": "bf16", "packed": True}),
    FileFormat("F16", {"kind": DenseLinear.kind, "dtype": "f16", "packed": False}),
)
FORMATS: Mapping[str, FileFormat] = {format.type: format for format in _FORMATS}
"""By GGUF's name: every type whose values are kept as they are. F32 is not among them: it is rounded to bf16."""


def type_of(linear: PackedLinear) -> str | None:
    """GGUF's name of the type that holds a linear's values as they are; None where none does."""
    meta = linear.meta()
    if isinstance(linear, DenseLinear):
        return {"f32": "F32", "f16": "F16", "bf16": "BF16"}[linear.label]
    for name, form in FORMATS.items():
        has_minimum = isinstance(linear, GroupLinear) and linear.has_minimum
        if all(meta.get(key) == value for key, value in form.options.items()) and (
            not isinstance(linear, GroupLinear) or has_minimum == (name in _WITH_MINIMUM)
        ):
            return name
    return None
