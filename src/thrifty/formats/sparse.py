"""Single weights of 16 bits on top of any stored linear: the sparse half of a dense-and-sparse split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Flags, Floats, Integers
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.group import GroupLinear
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.formats.row_table import RowTableLinear
from thrifty.kernels.reference.affine import Halves, to_float16
from thrifty.kernels.reference.lookups import overlay_sums

COLUMNS = 1 << 16  # an index has 16 bits
BASE = "base."  # before the names of the base's arrays


class SparseLinear(PackedLinear):
    """W = base + single values: SqueezeLLM's dense-and-sparse split (2306.07629, §4.2), on any base.

    values fp16 and columns uint16 [entries], row by row and columns rising; starts int32 [out + 1]: row r has the
    entries starts[r] to starts[r + 1] (compressed sparse rows). The native kernels add a row's products, with the
    activations as the base's kernel reads them, to what the base gave. The bias is this layer's, not the base's.
    """

    kind = "sparse"

    def __init__(
        self, base: PackedLinear, starts: Array, columns: Array, values: Array, bias: Array | None = None
    ) -> None:
        """From arrays as they are. Raises KernelError for a wrong shape, type or order, and for a base with a bias."""
        super().__init__(base.out_features, base.in_features, bias)
        if base.bias is not None or isinstance(base, SparseLinear):
            raise KernelError(f"the base of single weights is a linear without a bias and without such, not {base!r}")
        if base.in_features > COLUMNS:
            raise KernelError(f"single weights lie in at most {COLUMNS} columns, this layer has {base.in_features}")
        self.base = base
        self.starts: npt.NDArray[np.int32] = check_tensor("starts", starts, np.int32, (base.out_features + 1,))
        count = int(self.starts[-1])
        self.columns: npt.NDArray[np.uint16] = check_tensor("columns", columns, np.uint16, (count,))
        self.values: Halves = check_tensor("values", values, np.float16, (count,))
        if int(self.starts[0]) or (np.diff(self.starts) < 0).any():
            raise KernelError("tensor 'starts' must begin at 0 and never fall")
        if count and int(self.columns.max()) >= base.in_features:
            raise KernelError(f"tensor 'columns' has {int(self.columns.max())}; 0..{base.in_features - 1} is allowed")

    @classmethod
    def over(cls, base: PackedLinear, exact: Floats, chosen: Flags) -> SparseLinear:
        """`base` with the chosen weights as in `exact`, both [out, in]: stored is what they differ by, as float16.

        A bias of the base becomes the new layer's. Raises KernelError for NaN or infinity, or beyond float16.
        """
        rows, columns = np.nonzero(chosen)
        held = np.empty(len(rows), np.float32)
        for start in range(0, base.out_features, 1024):
            first, last = np.searchsorted(rows, (start, start + 1024))
            if first < last:
                tile = base.tile(start, min(start + 1024, base.out_features))
                held[first:last] = tile[rows[first:last] - start, columns[first:last]]
        values = to_float16((exact[rows, columns] - held)[None], "single weight")[0]
        starts = np.searchsorted(rows, np.arange(base.out_features + 1)).astype(np.int32)
        bias, base.bias = base.bias, None
        return cls(base, starts, columns.astype(np.uint16), values, bias)

    @staticmethod
    def bytes_of(out_features: int, count: int) -> int:
        """Bytes of `count` single weights over a base of so many rows."""
        return 4 * (out_features + 1) + (2 + 2) * count

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[SparseLinear]:
        random = np.random.default_rng(seed)
        exact = random.standard_normal((out_features, in_features), np.float32) * np.float32(0.0625)
        chosen = random.random(exact.shape) < 0.005
        yield cls.over(GroupLinear.quantize(exact, 4, 32), exact, chosen)
        yield cls.over(next(RowTableLinear.examples(out_features, in_features)), exact, chosen)

    @property
    def has_kernel(self) -> bool:
        return self.base.has_kernel

    def native(self) -> NativeArrays | None:
        stored = self.base.native()
        if stored is None:
            return None
        return stored[0], {**stored[1], "overlay": (self.starts, self.columns, self.values)}

    @property
    def label(self) -> str:
        return f"{self.base.label}+sparse"

    @property
    def share(self) -> float:
        """Of the weights, those that are single values."""
        return len(self.values) / (self.out_features * self.in_features)

    def tile(self, start: int, stop: int) -> Floats:
        return self._with_values(self.base.tile(start, stop), np.arange(start, stop))

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        return self._with_values(self.base.rows(indices), indices)

    def _with_values(self, weight: Floats, rows: Integers) -> Floats:
        """The base's rows [n, in] with the single values of rows int64 [n] added, in a copy."""
        counts = self.starts[rows + 1] - self.starts[rows]
        places = np.repeat(np.arange(len(rows)), counts)
        first = np.cumsum(counts) - counts
        entries = np.arange(len(places)) - np.repeat(first, counts) + np.repeat(self.starts[rows], counts)
        result = weight.copy()
        result[places, self.columns[entries]] += self.values[entries].astype(np.float32)
        return result

    def oracle(self, x: Floats) -> Floats:
        """The native kernels' exact numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        product: Floats = self.base.oracle(x)  # type: ignore[attr-defined]  # of every format with a kernel
        seen = self.base.read(x)
        product += overlay_sums(seen, self.starts, self.columns, self.values.astype(np.float32))
        return product

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "base": self.base.meta()}

    def _arrays(self) -> dict[str, Array | None]:
        inner = {f"{BASE}{name}": array for name, array in self.base.state().items()}
        return {"starts": self.starts, "columns": self.columns, "values": self.values, **inner}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> SparseLinear:
        described = meta.get("base")
        if not isinstance(described, Mapping) or described.get("kind") == cls.kind:
            raise CheckpointError(f"linear field 'base' is {described!r:.80}; expected another linear's description")
        inner = {name.removeprefix(BASE): array for name, array in tensors.items() if name.startswith(BASE)}
        base = PackedLinear.from_state(described, inner)
        sizes = field(meta, "out_features"), field(meta, "in_features")
        if sizes != (base.out_features, base.in_features):
            raise KernelError(f"the base is {base.out_features}x{base.in_features}, expected {sizes[0]}x{sizes[1]}")
        return cls(
            base,
            tensors.get("starts"),  # type: ignore[arg-type]  # checked by name in __init__
            tensors.get("columns"),  # type: ignore[arg-type]
            tensors.get("values"),  # type: ignore[arg-type]
            tensors.get("bias"),
        )
