"""Two linear weights of one shape in the same words: 8 bits a weight, each with signs and gaps of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing, paired
from thrifty.kernels.reference.matmul import bf16_matmul

WORD = 2  # bytes
LAYOUTS = ("paired_first", "paired_second")


class PairedLinear(PackedLinear):
    """One of two weights that share words of 16 bits (`kernels.reference.paired`); a value is a bf16 number or 0.

    words: uint8 [rows/16, columns/2, 64], 16 rows × 2 columns of a word (`packing.pack_pairs`), the same array in both
    members; rows are padded to 16 and columns to 2. The native kernels take them apart as they multiply, and round
    activations to bf16.
    """

    kind = "paired"
    described = ("member",)
    shared = ("words",)

    def __init__(
        self, out_features: int, in_features: int, member: int, words: Array, bias: Array | None = None
    ) -> None:
        """From packed words, used as they are; `pair` makes both. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        if member not in (0, 1):
            raise KernelError(f"member {member} of a pair does not exist: 0 or 1")
        self.member = member
        shape = (-(-out_features // 16), -(-in_features // 2), 16 * 2 * WORD)
        self.words: Bytes = check_tensor("words", words, np.uint8, shape)

    @classmethod
    def pair(
        cls, magnitude: Floats, signs: tuple[Array, Array], has: tuple[Array, Array]
    ) -> tuple[PairedLinear, PairedLinear]:
        """Both members, without a bias. magnitude: fp32 [out, in], at least 0. signs, has: bool [out, in] of each:
        whether its value is negative, and whether it is there at all. Raises as `paired.join`.
        """
        out_features, in_features = magnitude.shape
        words = paired.join(magnitude, signs, has)
        rows, columns = packing.padded(out_features, 16), packing.padded(in_features, 2)
        packed = packing.pack_pairs(packing.pad_to(words, rows, columns))
        stored = packed.view(np.uint8).reshape(rows // 16, columns // 2, 16 * 2 * WORD)
        return cls(out_features, in_features, 0, stored), cls(out_features, in_features, 1, stored)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[PairedLinear]:
        random, shape = np.random.default_rng(seed), (out_features, in_features)
        signs = random.random((2, *shape)) < 0.5
        has = random.random((2, *shape)) < 0.75
        yield from cls.pair(np.abs(random.standard_normal(shape, np.float32)), (signs[0], signs[1]), (has[0], has[1]))

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        return LAYOUTS[self.member], {"codes": self._words(self.words)}

    @property
    def label(self) -> str:
        return "paired"

    @property
    def nbytes(self) -> int:
        """This member's half of the words, and its bias."""
        return self.words.nbytes // 2 + (0 if self.bias is None else self.bias.nbytes)

    def tile(self, start: int, stop: int) -> Floats:
        words = packing.unpack_pairs(self._words(self.words[start // 16 : -(-stop // 16)]))
        values: Floats = paired.split(words, self.member).astype(np.float32)
        return values[: stop - start, : self.in_features]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        picked = self._words(self.words)[indices // 16, :, indices % 16]  # [n, columns/2, 2]
        values: Floats = paired.split(picked, self.member).astype(np.float32)
        return values.reshape(len(indices), 2 * picked.shape[1])[:, : self.in_features]

    def oracle(self, x: Floats) -> Floats:
        """The native kernels' numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        words = packing.unpack_pairs(self._words(self.words))
        values = paired.split(words, self.member)[: self.out_features, : self.in_features]
        return bf16_matmul(x, np.ascontiguousarray(values))

    def _arrays(self) -> dict[str, Array | None]:
        return {"words": self.words}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> PairedLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "member", (0, 1)),
            tensors.get("words"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("bias"),
        )

    @staticmethod
    def _words(stored: Bytes) -> Array:
        """uint8 [tiles, pairs, 64] as words uint16 [tiles, pairs, 16, 2]."""
        return stored.view(np.uint16).reshape(len(stored), -1, 16, 2)
