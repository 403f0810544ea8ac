"""The base of every stored linear layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.errors import CheckpointError, KernelError

TILE = 1024  # rows dequantised at a time; a multiple of 16


class PackedLinear(nn.Module):
    """y = W·x + bias with W [out_features, in_features] in some stored format.

    A format writes `tile`, `rows`, `label`, `meta`, `state` and `_load`; the base does the matmul, gradients
    and checks. `native`: whether `forward` may use the native kernels. Without them (or where x needs a
    gradient) W is dequantised a tile of rows at a time and multiplied in x's own dtype. Gradients reach x in
    every format; `trains` says whether W and the bias take them too. Tensors may be read-only and backed by a
    memory-mapped file: nothing here writes to them.
    """

    kind: str  # of the converted file's metadata
    bias: nn.Parameter | None

    def __init__(self, out_features: int, in_features: int, bias: Tensor | None = None, trains: bool = False) -> None:
        super().__init__()
        if out_features < 1 or in_features < 1:
            raise KernelError(f"a linear layer needs positive sizes, found [{out_features}, {in_features}]")
        self.out_features = out_features
        self.in_features = in_features
        self.native = True
        self.trains = trains
        self.register_parameter("bias", None)
        if bias is not None:
            self.set_bias(bias)

    def set_bias(self, bias: Tensor) -> None:
        """Add `bias` [out_features] to every result from now on, as fp32. Raises KernelError for another
        shape.
        """
        if tuple(bias.shape) != (self.out_features,):
            raise KernelError(f"bias has shape {tuple(bias.shape)}, expected ({self.out_features},)")
        self.bias = nn.Parameter(bias.detach().float(), requires_grad=self.trains)

    @property
    @abstractmethod
    def label(self) -> str:
        """The format's short name, such as "int4-g32", "int8-g32", "bf16" or "f32"."""

    @abstractmethod
    def tile(self, start: int, stop: int) -> Tensor:
        """Rows start:stop as fp32 [stop − start, in_features]; start is a multiple of 16."""

    @abstractmethod
    def rows(self, indices: Tensor) -> Tensor:
        """An embedding lookup: int64 [n] → fp32 [n, in_features]. Raises KernelError beyond the last row."""

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """JSON-ready description that `from_state` takes back, with the tensors of `state`."""

    @classmethod
    @abstractmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedLinear:
        """The inverse of `meta` and `state`; `meta` and `tensors` are untrusted."""

    def state(self) -> dict[str, Tensor]:
        """The tensors to store, by name, without copies."""
        return {name: tensor.detach() for name, tensor in self.state_dict(keep_vars=True).items()}

    @staticmethod
    def from_state(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedLinear:
        """The layer whose `meta()` and `state()` these are; the tensors are used as they are, not copied.

        Raises CheckpointError naming the field that is missing, unknown or of the wrong shape or type.
        """
        kinds = {leaf.kind: leaf for leaf in _leaves(PackedLinear)}  # type: ignore[type-abstract]
        kind = meta.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise CheckpointError(f"linear field 'kind' is {kind!r}; known: {', '.join(sorted(kinds))}")
        try:
            return kinds[kind]._load(meta, tensors)
        except KernelError as error:
            raise CheckpointError(f"linear of kind '{kind}' is invalid: {error}") from error

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, bias included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state().values())

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """W as fp32 [out_features, in_features], without the bias."""
        weight = torch.empty(self.out_features, self.in_features)
        for start in range(0, self.out_features, TILE):
            stop = min(start + TILE, self.out_features)
            weight[start:stop] = self.tile(start, stop)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] (fp32 or bf16) → [..., out_features] of the same dtype."""
        if x.shape[-1] != self.in_features:
            raise KernelError(f"input has {x.shape[-1]} features, this linear layer takes {self.in_features}")
        flat = x.reshape(-1, self.in_features)
        y = self._native_matmul(flat)
        if y is None:
            y = self._matmul(flat)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _native_matmul(self, x: Tensor) -> Tensor | None:
        """The native product, or None where this call takes the reference."""
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        if not self.native or needs_gradient or x.device.type != "cpu" or not self.has_kernel:
            return None
        from thrifty.kernels import dispatch

        if dispatch.native() is None:
            return None
        return dispatch.matmul(self, x.float()).to(x.dtype)

    @property
    def has_kernel(self) -> bool:
        """Whether native kernels know this format's layout."""
        return False

    def _matmul(self, x: Tensor) -> Tensor:
        product: Tensor = _TiledProduct.apply(x, self.tile, self.out_features)
        return product

    def extra_repr(self) -> str:
        return f"{self.out_features}x{self.in_features}, {self.label}"


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


def check_rows(indices: Tensor, rows: int) -> None:
    """Raise KernelError where an index is not in 0..rows−1."""
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= rows):
        worst = int(indices.max()) if int(indices.max()) >= rows else int(indices.min())
        raise KernelError(f"row {worst} is outside 0..{rows - 1}")


def field(meta: Mapping[str, Any], name: str, known: tuple[Any, ...] = ()) -> Any:
    """An integer (or one of `known`) from untrusted metadata. Raises CheckpointError naming the field."""
    value = meta.get(name)
    if known:
        valid = value in known
    else:
        valid = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    if not valid:
        expected = f"one of {', '.join(map(str, known))}" if known else "a positive integer"
        raise CheckpointError(f"linear field '{name}' is {value!r}; expected {expected}")
    return value


def check_tensor(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor itself where type and shape are right. Raises KernelError naming it."""
    if tensor is None:
        raise KernelError(f"tensor '{name}' is missing")
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise KernelError(f"tensor '{name}' is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
    return tensor.detach()


def _leaves(cls: type[PackedLinear]) -> list[type[PackedLinear]]:
    found = [leaf for child in cls.__subclasses__() for leaf in _leaves(child)]
    return found or [cls]
