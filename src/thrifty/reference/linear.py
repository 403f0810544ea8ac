"""A stored linear layer as a torch module: gradients to its input, and to a plain weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.arrays import Array, Floats
from thrifty.errors import KernelError
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.formats.packed import TILE
from thrifty.reference.arrays import tensor_of


class Linear(nn.Module):
    """y = W·x + bias over the arrays of a PackedLinear, without a copy.

    W is dequantised a tile of rows at a time and multiplied in x's own dtype, forward and backward. A plain fp32 or
    bf16 weight is the parameter `weight`, and it and the bias train where their memory may be written to.

    product: fp32 [rows, in_features] → fp32 [rows, out_features], without the bias, stands for that where no gradient
    is asked for, such as `stored.oracle`: the numerics of the native kernels.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, stored: PackedLinear) -> None:
        super().__init__()
        self.stored = stored
        self.out_features, self.in_features = stored.out_features, stored.in_features
        self.product: Callable[[Floats], Floats] | None = None
        plain = stored.weight if isinstance(stored, DenseLinear) and not stored.packed else None
        self.register_parameter("weight", None if plain is None else parameter(plain))
        self.register_parameter("bias", None if stored.bias is None else parameter(stored.bias, plain is not None))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] (fp32 or bf16) → [..., out_features] of the same dtype."""
        if x.shape[-1] != self.in_features:
            raise KernelError(f"input has {x.shape[-1]} features, this linear layer takes {self.in_features}")
        y = self._multiply(x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: Tensor) -> Tensor:
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        if self.product is not None and not needs_gradient:
            return tensor_of(self.product(x.detach().float().numpy())).to(x.dtype)
        if self.weight is not None:
            return x @ self.weight.to(x.dtype).T
        if self.stored.rounds_input:  # gradients pass straight through
            rounded = tensor_of(self.stored.round_input(x.detach().float().numpy())).to(x.dtype)
            x = x + (rounded - x).detach()
        product: Tensor = _TiledProduct.apply(x, self._tile, self.out_features)
        return product

    def rows(self, indices: Tensor) -> Tensor:
        """An embedding lookup: int64 [n] → fp32 [n, in_features]. Raises KernelError beyond the last row."""
        if self.weight is not None:
            return self.weight[indices].float()
        return tensor_of(self.stored.rows(indices.numpy()))

    def _tile(self, start: int, stop: int) -> Tensor:
        return tensor_of(self.stored.tile(start, stop))

    def extra_repr(self) -> str:
        return f"{self.out_features}x{self.in_features}, {self.stored.label}"


class _TiledProduct(torch.autograd.Function):
    """x·Wᵀ with W dequantised tile by tile, forward and backward: no full-precision W is ever kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tile: Callable[[int, int], Tensor], out_features: int) -> Tensor:
        ctx.tile, ctx.out_features = tile, out_features
        y = x.new_empty(len(x), out_features)
        for start in range(0, out_features, TILE):
            stop = min(start + TILE, out_features)
            torch.mm(x, tile(start, stop).to(x.dtype).T, out=y[:, start:stop])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        result: Tensor | None = None
        for start in range(0, ctx.out_features, TILE):
            stop = min(start + TILE, ctx.out_features)
            part = gradient[:, start:stop] @ ctx.tile(start, stop).to(gradient.dtype)
            result = part if result is None else result + part
        assert result is not None
        return result, None, None


def parameter(array: Array, trains: bool = True) -> nn.Parameter:
    """A parameter over an array's memory; it trains where it may and the memory can be written to."""
    return nn.Parameter(tensor_of(array), requires_grad=trains and array.flags.writeable)
