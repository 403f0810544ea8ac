"""Linear weights as codes of whole vectors: neighbouring rows of one column are looked up together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from thrifty.arrays import Array, Bytes, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.affine import Halves
from thrifty.kernels.reference.lookups import VECTOR_BITS, pack_vector_codes, unpack_vector_codes, vector_matmul

LENGTHS = (4, 8)


class VectorLinear(PackedLinear):
    """w[r, c] = scale[c]·(main[code[r/v, c]] + rest[code'[r/v, c]])[r % v] + offset[c], of vectors of v rows: VPTQ
    (2409.17066, §3).

    length: v, 4 or 8. bits, rest_bits: of a code of the main table and of the rest's; 4, 8, 12 or 16, and 0 for no
    rest. books: which pair of tables a column reads. The native kernels multiply with activations in fp32.

    Layouts: codes uint8 [rows/16, columns/32, bytes], those of the main table before those of the rest
    (`lookups.pack_vector_codes`); main fp16 [books, 2^bits, v], rest fp16 [books, 2^rest_bits, v]; scales, offsets fp16
    [columns]; books uint8 [columns] where there is more than one. Rows are padded to 16, columns to 32.
    """

    kind = "vectors"
    described = ("length", "bits", "rest_bits")

    def __init__(
        self, out_features: int, in_features: int, length: int, bits: int, rest_bits: int, codes: Array, main: Array,
        rest: Array | None, scales: Array, offsets: Array, books: Array | None = None, bias: Array | None = None,
    ) -> None:  # fmt: skip
        """From packed arrays, used as they are. Raises KernelError for a wrong shape or type."""
        super().__init__(out_features, in_features, bias)
        _check_options(length, bits, rest_bits)
        self.length, self.bits, self.rest_bits = length, bits, rest_bits
        tiles, blocks = -(-out_features // 16), -(-in_features // 32)
        count = 1 if main is None or books is None else len(main)
        size = 512 // length * (bits + rest_bits) // 8
        self.codes: Bytes = check_tensor("codes", codes, np.uint8, (tiles, blocks, size))
        self.main: Halves = check_tensor("main", main, np.float16, (count, 1 << bits, length))
        self.rest: Halves | None = None
        if rest_bits:
            self.rest = check_tensor("rest", rest, np.float16, (count, 1 << rest_bits, length))
        self.scales: Halves = check_tensor("scales", scales, np.float16, (in_features,))
        self.offsets: Halves = check_tensor("offsets", offsets, np.float16, (in_features,))
        self.books: Bytes | None = None
        if books is not None:
            self.books = check_tensor("books", books, np.uint8, (in_features,))
            if int(self.books.max()) >= count:
                raise KernelError(f"a column has book {int(self.books.max())} of {count}")

    @classmethod
    def from_codes(
        cls, out_features: int, codes: Integers, rest_codes: Integers | None, main: Halves, rest: Halves | None,
        scales: Halves, offsets: Halves, books: Bytes | None = None, bias: Array | None = None,
    ) -> VectorLinear:  # fmt: skip
        """From plain codes [vectors, in] of both tables. Raises KernelError where a code is out of range."""
        length, bits = main.shape[2], _bits_of(main)
        rest_bits = 0 if rest is None else _bits_of(rest)
        _check_options(length, bits, rest_bits)
        parts = []
        for own, width in ((codes, bits), (rest_codes, rest_bits)):
            if own is None:
                continue
            if own.size and not 0 <= int(own.min()) <= int(own.max()) < 1 << width:
                raise KernelError(f"a code is {int(own.min())} to {int(own.max())}; 0 to {(1 << width) - 1} is allowed")
            rows = packing.padded(len(own) * length, 16) // length
            parts.append(pack_vector_codes(packing.pad_to(own.astype(np.int64), rows, own.shape[1]), width, length))
        stored = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        columns = codes.shape[1]
        return cls(out_features, columns, length, bits, rest_bits, stored, main, rest, scales, offsets, books, bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[VectorLinear]:
        random = np.random.default_rng(seed)
        scales, offsets = ((random.random(in_features) / 16).astype(np.float16) for _ in range(2))
        for length, bits, rest_bits in ((4, 8, 0), (8, 8, 8), (8, 12, 4)):
            vectors = -(-out_features // length)
            codes = random.integers(0, 1 << bits, (vectors, in_features))
            rest_codes = random.integers(0, 1 << rest_bits, (vectors, in_features)) if rest_bits else None
            main, rest = (random.standard_normal((1, 1 << own, length)).astype(np.float16) for own in (bits, rest_bits))
            yield cls.from_codes(out_features, codes, rest_codes, main, rest if rest_bits else None, scales, offsets)

    @property
    def has_kernel(self) -> bool:
        return True

    def native(self) -> NativeArrays:
        tables = (self.main, self.rest, self.books)
        arrays = {"codes": self.codes, "table": tables, "scales": self.scales, "minimums": self.offsets}
        return f"vectors{self.length}", arrays

    @property
    def label(self) -> str:
        return f"vq{self.length}-{self.bits}" + (f"+{self.rest_bits}" if self.rest_bits else "")

    def tile(self, start: int, stop: int) -> Floats:
        part = slice(start // 16, -(-stop // 16))
        return self._expanded(part)[: stop - start]

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        tiles, places = np.unique(indices // 16, return_inverse=True)
        return self._expanded(tiles)[places * 16 + indices % 16]

    def read(self, x: Floats) -> Floats:
        return x

    def oracle(self, x: Floats) -> Floats:
        """The native kernel's exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        values = self._values(slice(None))[: self.out_features]
        return vector_matmul(x, values, self.scales.astype(np.float32), self.offsets.astype(np.float32))

    def _values(self, tiles: slice | Integers) -> Floats:
        """main + rest, fp32 [16·tiles, in], before a column's scale and offset."""
        split = 512 // self.length * self.bits // 8
        values = self._looked_up(self.main, self.codes[tiles, :, :split], self.bits)
        if self.rest is not None:
            values = values + self._looked_up(self.rest, self.codes[tiles, :, split:], self.rest_bits)
        return values

    def _looked_up(self, table: Halves, packed: Bytes, bits: int) -> Floats:
        codes = unpack_vector_codes(packed, bits, self.length)[:, : self.in_features]
        books = np.zeros(1, np.int64) if self.books is None else self.books.astype(np.int64)
        vectors = table.astype(np.float32)[books[None], codes]  # [vectors, in, length]
        return vectors.transpose(0, 2, 1).reshape(-1, self.in_features)

    def _expanded(self, tiles: slice | Integers) -> Floats:
        return self._values(tiles) * self.scales.astype(np.float32) + self.offsets.astype(np.float32)

    def _arrays(self) -> dict[str, Array | None]:
        return {
            "codes": self.codes,
            "main": self.main,
            "rest": self.rest,
            "scales": self.scales,
            "offsets": self.offsets,
            "books": self.books,
        }

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> VectorLinear:
        return cls(
            field(meta, "out_features"),
            field(meta, "in_features"),
            field(meta, "length", LENGTHS),
            field(meta, "bits", VECTOR_BITS),
            field(meta, "rest_bits", (0, *VECTOR_BITS)),
            tensors.get("codes"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("main"),  # type: ignore[arg-type]
            tensors.get("rest"),
            tensors.get("scales"),  # type: ignore[arg-type]
            tensors.get("offsets"),  # type: ignore[arg-type]
            tensors.get("books"),
            tensors.get("bias"),
        )


def _bits_of(table: Halves) -> int:
    return int(table.shape[1]).bit_length() - 1


def _check_options(length: int, bits: int, rest_bits: int) -> None:
    if length not in LENGTHS or bits not in VECTOR_BITS or rest_bits not in (0, *VECTOR_BITS):
        raise KernelError(
            f"vectors of {length} rows with codes of {bits} and {rest_bits} bits: rows are 4 or 8, bits are 4, 8, 12 "
            "or 16, and 0 for no rest"
        )
