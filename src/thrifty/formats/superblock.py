"""Linear weights with two levels of scales, in superblocks of 256 columns: the K types of GGUF, and IQ4_XS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import superblock
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.ggml import TwoLevel
from thrifty.kernels.reference.superblock import SUPERBLOCK, TYPES


class SuperblockLinear(PackedLinear):
    """w = d·scale·(code − offset) − dmin·minimum, a scale and minimum for 16 or 32 columns, d and dmin for 256.

    type: one of `superblock.TYPES`, such as "q4_k". records: uint8 [rows/16, superblocks, record bytes], codes and
    sub-scales, see `superblock.pack`. scales (d) and minimums (dmin, or None): fp16 [rows/16, superblocks, 16]. Rows
    are padded to 16 with zero bytes; columns are whole superblocks.
    """

    kind = "superblock"
    described = ("type",)

    def __init__(
        self,
        out_features: int,
        in_features: int,
        type: str,
        records: Array,
        scales: Array,
        minimums: Array | None = None,
        bias: Array | None = None,
    ) -> None:
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        if type not in TYPES:
            raise KernelError(f"superblock type {type!r} does not exist: types are {', '.join(TYPES)}")
        if in_features % SUPERBLOCK:
            raise KernelError(f"{type} needs columns in superblocks of {SUPERBLOCK}, found {in_features}")
        self.type = type
        self.layout = TYPES[type]
        tiles, superblocks = -(-out_features // 16), in_features // SUPERBLOCK
        shape = (tiles, superblocks, self.layout.record_bytes)
        self.records: Bytes = check_tensor("records", records, np.uint8, shape)
        self.scales: Halves = check_tensor("scales", scales, np.float16, (tiles, superblocks, 16))
        if self.layout.has_minimum:
            minimums = check_tensor("minimums", minimums, np.float16, (tiles, superblocks, 16))
        elif minimums is not None:
            raise KernelError(f"{type} has no minimums: leave them out")
        self.minimums: Halves | None = minimums

    @classmethod
    def from_rows(cls, type: str, rows: TwoLevel, bias: Array | None = None) -> SuperblockLinear:
        """From plain codes and scales, as `ggml.SUPERBLOCK` reads them from a file. Raises KernelError."""
        if type not in TYPES:
            raise KernelError(f"superblock type {type!r} does not exist: types are {', '.join(TYPES)}")
        count, columns = rows.codes.shape
        return cls(count, columns, type, *superblock.pack(TYPES[type], rows), bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[SuperblockLinear]:
        random, tiles, superblocks = np.random.default_rng(seed), -(-out_features // 16), in_features // SUPERBLOCK
        for name, layout in TYPES.items():
            records = random.integers(0, 256, (tiles, superblocks, layout.record_bytes), np.uint8)
            scales = (random.random((tiles, superblocks, 16)) / 256).astype(np.float16)
            yield cls(out_features, in_features, name, records, scales, scales.copy() if layout.has_minimum else None)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return self.type, {"codes": self.records, "scales": self.scales, "minimums": self.minimums}

    @property
    def label(self) -> str:
        return self.type

    def tile(self, start: int, stop: int) -> Floats:
        return self.unpacked(start, stop).values()[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        arrays = (self.records, self.scales, self.minimums)
        return superblock.unpack_rows(self.layout, *arrays, indices).values()

    def unpacked(self, start: int, stop: int) -> TwoLevel:
        """Codes and scales of rows start:stop and those up to a whole tile; start is a multiple of 16."""
        part = slice(start // 16, -(-stop // 16))
        minimums = None if self.minimums is None else self.minimums[part]
        return superblock.unpack(self.layout, self.records[part], self.scales[part], minimums)

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        rows = self.unpacked(0, self.out_features)
        return superblock.superblock_matmul(x, rows)[:, : self.out_features]

    def _arrays(self) -> dict[str, Array | None]:
        return {"records": self.records, "scales": self.scales, "minimums": self.minimums}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> SuperblockLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "type", tuple(TYPES)),
            tensors.get("records"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("minimums"),
            tensors.get("bias"),
        )
