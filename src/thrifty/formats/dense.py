"""Linear weights without quantisation: plain fp32 or bf16, or bf16 packed for the native kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.errors import KernelError
from thrifty.formats.packed import PackedLinear, check_rows, check_tensor, field
from thrifty.kernels.reference import packing
from thrifty.kernels.reference.matmul import bf16_matmul

DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


class DenseLinear(PackedLinear):
    """A weight as it is.

    Plain: `weight` is an nn.Parameter [out, in], fp32 or bf16, and trains under autograd.
    Packed: bf16 [rows/16, columns/2, 16, 2] (see `packing.pack_pairs`), rows padded to 16 and columns to 2;
    does not train.
    """

    kind = "dense"
    weight: nn.Parameter

    def __init__(
        self, out_features: int, in_features: int, weight: Tensor, packed: bool, bias: Tensor | None = None
    ) -> None:
        """From a stored tensor, used as it is; prefer `from_weight`. Raises KernelError for a wrong shape."""
        super().__init__(out_features, in_features, bias, trains=not packed)
        self.packed = packed
        if packed:
            shape: tuple[int, ...] = (-(-out_features // 16), -(-in_features // 2), 16, 2)
            dtype = torch.bfloat16
        else:
            shape = (out_features, in_features)
            dtype = weight.dtype if weight is not None else torch.float32
            if dtype not in DTYPES.values():
                raise KernelError(f"a plain linear layer holds float32 or bfloat16, not {dtype}")
        self.weight = nn.Parameter(check_tensor("weight", weight, dtype, shape), requires_grad=not packed)

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        dtype: torch.dtype = torch.float32,
        packed: bool = False,
        bias: Tensor | None = None,
    ) -> DenseLinear:
        """weight [out, in] of any float dtype, rounded to `dtype`; `packed` needs bfloat16."""
        out_features, in_features = weight.shape
        if not packed:
            return cls(out_features, in_features, weight.detach().to(dtype), packed=False, bias=bias)
        if dtype != torch.bfloat16:
            raise KernelError(f"only bfloat16 has a packed layout, not {dtype}: pass packed=False")
        rows, columns = packing.padded(out_features, 16), packing.padded(in_features, 2)
        rounded = packing.pad_to(weight.detach().to(torch.bfloat16), rows, columns).contiguous()
        return cls(out_features, in_features, packing.pack_pairs(rounded), packed=True, bias=bias)

    @property
    def has_kernel(self) -> bool:
        return self.packed

    @property
    def label(self) -> str:
        return "bf16" if self.weight.dtype == torch.bfloat16 else "f32"

    def tile(self, start: int, stop: int) -> Tensor:
        if not self.packed:
            return self.weight.detach()[start:stop].float()
        rows = packing.unpack_pairs(self.weight.detach()[start // 16 : -(-stop // 16)])
        return rows[: stop - start, : self.in_features].float()

    def rows(self, indices: Tensor) -> Tensor:
        check_rows(indices, self.out_features)
        if not self.packed:
            return self.weight[indices].float()
        picked = self.weight.detach()[indices // 16, :, indices % 16]  # [n, columns/2, 2]
        return picked.flatten(1)[:, : self.in_features].float()

    def oracle(self, x: Tensor) -> Tensor:
        """The native bf16 kernel's numerics in torch: fp32 [m, in] → fp32 [m, out], without the bias."""
        return bf16_matmul(x, self.dequantize().to(torch.bfloat16))

    def meta(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "out_features": self.out_features,
            "in_features": self.in_features,
            "dtype": self.label,
            "packed": self.packed,
        }

    @classmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DenseLinear:
        out_features, in_features = field(meta, "out_features"), field(meta, "in_features")
        dtype = DTYPES[field(meta, "dtype", tuple(DTYPES))]
        packed = field(meta, "packed", (True, False))
        weight = tensors.get("weight")
        if weight is None or weight.dtype != dtype:
            raise KernelError(f"tensor 'weight' is {None if weight is None else weight.dtype}, expected {dtype}")
        return cls(out_features, in_features, weight, packed, tensors.get("bias"))

    def _matmul(self, x: Tensor) -> Tensor:
        if self.packed:
            return super()._matmul(x)
        return x @ self.weight.to(x.dtype).T
