"""The base of every stored linear layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Floats, Integers
from thrifty.errors import CheckpointError, KernelError
from thrifty.kernels.reference.lookups import rounded_activations

TILE = 1024  # rows dequantised at a time; a multiple of 16
NativeArrays = tuple[str, Mapping[str, Any]]


class PackedLinear(ABC):
    """y = W·x + bias with W [out_features, in_features] in some stored format.

    A format writes `tile`, `rows`, `label`, `described` (or `meta`), `_arrays` and `_load`, and `native` where kernels
    know it; the base does the product and checks. Where no native kernel knows the format W is dequantised a tile of
    rows at a time.
    Arrays may be read-only and backed by a memory-mapped file: nothing here writes to them.
    """

    kind: str  # of the converted file's metadata
    described: ClassVar[tuple[str, ...]] = ()  # attributes that `meta` tells beside kind and sizes, JSON-ready
    shared: ClassVar[tuple[str, ...]] = ()  # arrays that another linear of the model may hold too: files have them once
    bias: Floats | None
    rounds_input: ClassVar[bool] = False  # whether the product rounds activations in a way that is the format's own

    def __init__(self, out_features: int, in_features: int, bias: Array | None = None) -> None:
        if out_features < 1 or in_features < 1:
            raise KernelError(f"a linear layer needs positive sizes, found [{out_features}, {in_features}]")
        self.out_features = out_features
        self.in_features = in_features
        self.bias = None
        if bias is not None:
            self.set_bias(bias)

    def set_bias(self, bias: Array) -> None:
        """Add `bias` [out_features] to every result from now on, as fp32. Raises KernelError for another
        shape.
        """
        if bias.shape != (self.out_features,):
            raise KernelError(f"bias has shape {bias.shape}, expected ({self.out_features},)")
        self.bias = np.ascontiguousarray(bias, np.float32)

    @property
    @abstractmethod
    def label(self) -> str:
        """The format's short name, such as "int4-g32", "int8-g32", "bf16" or "f32"."""

    @abstractmethod
    def tile(self, start: int, stop: int) -> Floats:
        """Rows start:stop as fp32 [stop − start, in_features]; start is a multiple of 16. Not to be written to."""

    @abstractmethod
    def rows(self, indices: Integers) -> Floats:
        """An embedding lookup: int64 [n] → fp32 [n, in_features]. Raises KernelError beyond the last row."""

    def meta(self) -> dict[str, Any]:
        """JSON-ready description that `from_state` takes back, with the arrays of `state`: the kind, the sizes and the
        attributes in `described`, in this order.
        """
        sizes = {"out_features": self.out_features, "in_features": self.in_features}
        return {"kind": self.kind, **sizes, **{name: getattr(self, name) for name in self.described}}

    @abstractmethod
    def _arrays(self) -> dict[str, Array | None]:
        """The arrays of W, by name; None where there is none."""

    @classmethod
    @abstractmethod
    def _load(cls, meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> PackedLinear:
        """The inverse of `meta` and `state`; `meta` and `tensors` are untrusted."""

    @classmethod
    def examples(cls, out_features: int, in_features: int, seed: int = 0) -> Iterator[PackedLinear]:
        """A layer of random numbers in each of the format's widths: what benchmarks time and conformance tests hold
        every format to. in_features: a multiple of 256.
        """
        raise NotImplementedError(f"{cls.__name__} has no examples: write `examples`, as formats/group.py does")

    def state(self) -> dict[str, Array]:
        """The arrays to store, by name, without copies."""
        named = {"bias": self.bias, **self._arrays()}
        return {name: array for name, array in named.items() if array is not None}

    @staticmethod
    def from_state(meta: Mapping[str, Any], tensors: Mapping[str, Array]) -> PackedLinear:
        """The layer whose `meta()` and `state()` these are; the arrays are used as they are, not copied.

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
        """Bytes of all stored arrays, bias included."""
        return sum(array.nbytes for array in self.state().values())

    def dequantize(self) -> Floats:
        """W as fp32 [out_features, in_features], without the bias."""
        weight = np.empty((self.out_features, self.in_features), np.float32)
        for start in range(0, self.out_features, TILE):
            stop = min(start + TILE, self.out_features)
            weight[start:stop] = self.tile(start, stop)
        return weight

    def multiply(self, x: Floats) -> Floats:
        """x fp32 [m, in_features] → fp32 [m, out_features], with the bias; natively where there is a kernel."""
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise KernelError(f"input has shape {x.shape}, this linear layer takes [rows, {self.in_features}]")
        from thrifty.kernels import dispatch

        native = self.has_kernel and dispatch.native() is not None
        y = dispatch.matmul(self, x) if native else self._tiled_product(x)
        if self.bias is not None:
            y += self.bias
        return y

    @property
    def has_kernel(self) -> bool:
        """Whether `multiply` goes through native kernels."""
        return False

    def native(self) -> NativeArrays | None:
        """The name of the layout in native code (linear/layouts.hpp) and what it is made of, by the names of its
        constructor; None where native code has none.
        """
        return None

    def read(self, x: Floats) -> Floats:
        """x fp32 [m, in_features] as native kernels of the format read it: rounded to int8 per 32 columns, where the
        format says nothing else.
        """
        return rounded_activations(x)

    def round_input(self, x: Floats) -> Floats:
        """What the product makes of activations fp32 [m, in_features]; themselves unless `rounds_input`."""
        return x

    def _tiled_product(self, x: Floats) -> Floats:
        """x·Wᵀ with W dequantised tile by tile: no full-precision W is ever kept."""
        x, y = self.round_input(x), np.empty((len(x), self.out_features), np.float32)
        for start in range(0, self.out_features, TILE):
            stop = min(start + TILE, self.out_features)
            y[:, start:stop] = x @ self.tile(start, stop).T
        return y

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out_features}x{self.in_features}, {self.label})"


def check_rows(indices: Integers, rows: int) -> None:
    """Raise KernelError where an index is not in 0..rows−1."""
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= rows):
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


def check_tensor(name: str, tensor: Array | None, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
    """The array itself where type and shape are right. Raises KernelError naming it."""
    if tensor is None:
        raise KernelError(f"tensor '{name}' is missing")
    wanted = np.dtype(dtype)
    if tensor.dtype != wanted or tensor.shape != shape:
        raise KernelError(f"tensor '{name}' is {tensor.dtype} {tensor.shape}, expected {wanted} {shape}")
    return tensor


def _leaves(cls: type[PackedLinear]) -> list[type[PackedLinear]]:
    leaves = [leaf for child in cls.__subclasses__() for leaf in _leaves(child)]
    return leaves or [cls]


def formats() -> list[type[PackedLinear]]:
    """Every format that is imported (`formats.linear` imports all), by kind."""
    own = [leaf for leaf in _leaves(PackedLinear) if leaf.__module__.startswith("thrifty.")]  # type: ignore[type-abstract]
    return sorted(own, key=lambda leaf: leaf.kind)
