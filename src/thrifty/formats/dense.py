"""Linear weights without quantisation: plain fp32, fp16 or bf16, or bf16 packed for the native kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import BFLOAT16, Array, Floats, Integers
from thrifty.errors import KernelError
from thrifty.formats.packed import NativeArrays, PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.matmul import bf16_matmul, plain_matmul

DTYPES: Mapping[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": BFLOAT16}
_LABELS = {dtype: label for label, dtype in DTYPES.items()}


class DenseLinear(PackedLinear):
    """A weight as it is.

    Plain: `weight` is [out, in], fp32, fp16 or bf16; native kernels take fp32 and fp16 rows as they are.
    Packed: bf16 [rows/16, columns/2, 16, 2] (see `packing.pack_pairs`), rows padded to 16 and columns to 2.
    """

    kind = "dense"

    def __init__(
        self, out_features: int, in_features: int, weight: Array, packed: bool, bias: Array | None = None
    ) -> None:
        """From a stored array, used as it is; prefer `from_weight`. Raises KernelError for a wrong shape."""
        super().__init__(out_features, in_features, bias)
        self.packed = packed
        if packed:
            shape: tuple[int, ...] = (-(-out_features // 16), -(-in_features // 2), 16, 2)
            dtype = BFLOAT16
        else:
            shape = (out_features, in_features)
            dtype = weight.dtype if weight is not None else np.dtype(np.float32)
            if dtype not in DTYPES.values():
                raise KernelError(f"a plain linear layer holds float32, float16 or bfloat16, not {dtype}")
        self.weight = check_tensor("weight", weight, dtype, shape)

    @classmethod
    def from_weight(
        cls,
        weight: Array,
        dtype: npt.DTypeLike = np.float32,
        packed: bool = False,
        bias: Array | None = None,
    ) -> DenseLinear:
        """weight [out, in] of any float dtype, rounded to `dtype`; `packed` needs bfloat16."""
        out_features, in_features = weight.shape
        if not packed:
            return cls(out_features, in_features, weight.astype(dtype, copy=False), packed=False, bias=bias)
        if np.dtype(dtype) != BFLOAT16:
            raise KernelError(f"only bfloat16 has a packed layout, not {np.dtype(dtype)}: pass packed=False")
        rows, columns = packing.padded(out_features, 16), packing.padded(in_features, 2)
        rounded = packing.pad_to(weight.astype(BFLOAT16, copy=False), rows, columns)
        return cls(out_features, in_features, packing.pack_pairs(rounded), packed=True, bias=bias)

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[DenseLinear]:
        weight = np.random.default_rng(seed).standard_normal((out_features, in_features), np.float32)
        for dtype in DTYPES.values():
            yield cls.from_weight(weight, dtype)
        yield cls.from_weight(weight, BFLOAT16, packed=True)

    @property
    def has_kernel(self) -> bool:
        return self.packed

    def native(self) -> NativeArrays | None:
        if self.packed:
            return "bf16", {"codes": self.weight.view(np.uint16)}
        return None if self.weight.dtype == BFLOAT16 else (self.label, {"codes": self.weight})

    @property
    def label(self) -> str:
        return _LABELS[self.weight.dtype]

    def tile(self, start: int, stop: int) -> Floats:
        if not self.packed:
            return self.weight[start:stop].astype(np.float32, copy=False)
        rows = packing.unpack_pairs(self.weight[start // 16 : -(-stop // 16)])
        return rows[: stop - start, : self.in_features].astype(np.float32)

    def rows(self, indices: Integers) -> Floats:
        check_rows(indices, self.out_features)
        if not self.packed:
            return self.weight[indices].astype(np.float32, copy=False)
        picked = self.weight[indices // 16, :, indices % 16]  # [n, columns/2, 2]
        return picked.reshape(len(indices), 2 * picked.shape[1])[:, : self.in_features].astype(np.float32)

    def read(self, x: Floats) -> Floats:
        return x.astype(BFLOAT16).astype(np.float32) if self.packed else x

    def oracle(self, x: Floats) -> Floats:
        """The native kernels' numerics in NumPy: fp32 [m, in] → fp32 [m, out], without the bias."""
        if not self.packed:
            return plain_matmul(x, self.weight)
        return bf16_matmul(x, self.dequantize().astype(BFLOAT16))

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "dtype": self.label, "packed": self.packed}

    def _arrays(self) -> dict[str, Array | None]:
        return {"weight": self.weight}

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> DenseLinear:
        out_features, in_features = field(meta, "out_features"), field(meta, "in_features")
        dtype = DTYPES[field(meta, "dtype", tuple(DTYPES))]
        packed = field(meta, "packed", (True, False))
        weight = tensors.get("weight")
        if weight is None or weight.dtype != dtype:
            raise KernelError(f"tensor 'weight' is {None if weight is None else weight.dtype}, expected {dtype}")
        return cls(out_features, in_features, weight, packed, tensors.get("bias"))
