"""What every checkpoint gives, whatever its files: a config, a tokenizer, and one weight after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.errors import CheckpointError
from thrifty.formats.gguf import ArrayShape
from thrifty.formats.linear import PackedLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.parts import EXACT
from thrifty.models.tokens.settings import TokenizerDefinition

DType = np.dtype[Any]
ROWS_AT_A_TIME = 2048  # of a matrix that is worked on in slices


@dataclass(frozen=True)
class Weight:
    """One part of the decoder, by the name that `Assembly.put` takes.

    `origin` is its type in the checkpoint, such as "Q4_1". `error` is the relative root-mean-square
    difference between the stored form and the checkpoint's own values, `largest_error` the largest absolute
    one; 0 where it is exact.
    """

    name: str
    value: PackedLinear | Floats
    origin: str
    error: float = 0.0
    largest_error: float = 0.0


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint's files. names: the decoder's parts that it holds, named as `Weight.name`; one but for
    experts. type: in the file, such as "Q4_K" or "BF16". shape: in the usual order. nbytes: in the file.
    """

    names: tuple[str, ...]
    type: str
    shape: tuple[int, ...]
    nbytes: int


def smallest(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Of every type of matrices the one with the fewest bytes, in the order of their first."""
    least: dict[str, StoredTensor] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and (tensor.type not in least or tensor.nbytes < least[tensor.type].nbytes):
            least[tensor.type] = tensor
    return list(least.values())


def not_finite(name: str, values: Array, start: int = 0) -> str:
    """The sentence that tells of a tensor with NaN or infinity in it: which, how many, and where the first is.

    start: the place of the first of the values along their first axis.
    """
    bad = np.argwhere(~np.isfinite(values))
    first = values[tuple(bad[0])]
    bad[:, 0] += start
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return (
        f"Tensor {name!r} holds a value that is not finite: {first} at {bad[0].tolist()}{more}. The file is damaged, "
        "or the weights overflowed when they were trained or converted; fetch it again, or another version of it."
    )


class Deviation:
    """Relative root-mean-square and largest absolute difference from exact values, gathered slice by slice."""

    def __init__(self) -> None:
        self.largest = self._difference = self._total = 0.0

    @classmethod
    def told(cls, relative: float, largest: float) -> Deviation:
        """One that was measured elsewhere."""
        deviation = cls()
        deviation.largest, deviation._difference, deviation._total = largest, relative * relative, 1.0
        return deviation

    def add(self, exact: Floats, stored: Floats) -> None:
        """Two slices of one shape, fp32."""
        difference = stored - exact
        self.largest = max(self.largest, float(np.abs(difference).max()))
        self._difference += float(np.square(difference, dtype=np.float64).sum())
        self._total += float(np.square(exact, dtype=np.float64).sum())

    @property
    def relative(self) -> float:
        return (self._difference / self._total) ** 0.5 if self._total else 0.0


@dataclass(frozen=True)
class SlicedLinear:
    """A linear layer that is read a slice of rows at a time, so that whoever writes it holds no more of it.

    meta: as `PackedLinear.meta`. arrays: shape and type of each array of its state. slices: reads them, in order along
    the first axis, and raises CheckpointError for values that do not do. deviation: of what was read, from the
    checkpoint's own values; it stays 0 where these are kept.
    """

    meta: Mapping[str, Any]
    arrays: Mapping[str, ArrayShape]
    slices: Callable[[], Iterator[Mapping[str, Array]]]
    deviation: Deviation = field(default_factory=Deviation)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.arrays.values())

    def whole(self) -> PackedLinear:
        """The layer; a slice that is an array's whole is used as it is."""
        state: dict[str, Array] = {}
        filled = dict.fromkeys(self.arrays, 0)
        for slices in self.slices():
            for name, array in slices.items():
                shape, dtype = self.arrays[name]
                if array.shape == shape:
                    state[name] = array
                    continue
                if name not in state:
                    state[name] = np.empty(shape, dtype)
                state[name][filled[name] : filled[name] + len(array)] = array
                filled[name] += len(array)
        return PackedLinear.from_state(self.meta, state)


@dataclass(frozen=True)
class SlicedWeight:
    """A `Weight` whose linear is still to be read."""

    name: str
    value: SlicedLinear | Floats
    origin: str

    @staticmethod
    def of(weight: Weight) -> SlicedWeight:
        """A whole one in a single slice; its deviation is the weight's."""
        value = weight.value
        if not isinstance(value, PackedLinear):
            return SlicedWeight(weight.name, value, weight.origin)
        state = value.state()
        arrays = {name: (array.shape, array.dtype) for name, array in state.items()}
        told = Deviation.told(weight.error, weight.largest_error)
        return SlicedWeight(
            weight.name, SlicedLinear(value.meta(), arrays, lambda: iter((state,)), told), weight.origin
        )

    @property
    def nbytes(self) -> int:
        """Bytes when it is stored; vectors are fp32."""
        return self.value.nbytes if isinstance(self.value, SlicedLinear) else 4 * self.value.size

    def whole(self) -> Weight:
        """The weight, read now."""
        if not isinstance(self.value, SlicedLinear):
            return Weight(self.name, self.value, self.origin)
        linear, deviation = self.value.whole(), self.value.deviation
        return Weight(self.name, linear, self.origin, deviation.relative, deviation.largest)


class Source(Protocol):
    """An opened checkpoint. `weights` yields each part of the decoder once, and holds only one at a time.

    `dtype` None gives the stored (packed) forms; float32 or bfloat16 gives plain linears of the exact values.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> TokenizerDefinition | None: ...

    def weights(self, dtype: DType | None = None) -> Iterator[Weight]: ...


class Files(Source, Protocol):
    """A source that reads a checkpoint's own files. `stored`: what these hold, from their headers."""

    def stored(self) -> list[StoredTensor]: ...


@runtime_checkable
class SlicedSource(Protocol):
    """A source that can also give each part before it is read, with its sizes."""

    def sliced(self) -> Iterator[SlicedWeight]: ...


def stored_bytes(source: Files) -> int:
    """Bytes of all weights in packed form, from the headers: no matrix is read. Of quantised linears in safetensors,
    whose arrays are only known when they are read, those in the file.
    """
    if isinstance(source, SlicedSource):
        return sum(weight.nbytes for weight in source.sliced())
    return sum(map(_packed_bytes, source.stored()))


def _packed_bytes(tensor: StoredTensor) -> int:
    """Of matrices the file's bytes, but bf16 for fp32; of vectors, and of what is kept exactly, fp32."""
    values = prod(tensor.shape)
    if len(tensor.shape) == 1 or tensor.names[0].endswith(EXACT):
        return 4 * values
    return 2 * values if tensor.type == "F32" else tensor.nbytes


def rounded(name: str, values: Array, dtype: DType) -> Array:
    """Finite values in another type. Raises CheckpointError, naming the tensor, where one is beyond what it holds."""
    with np.errstate(over="ignore"):
        stored: Array = values.astype(dtype)
    if dtype.itemsize < values.dtype.itemsize and not np.isfinite(stored).all():
        limit = float(ml_dtypes.finfo(dtype).max)
        largest = float(np.abs(values).max())
        raise CheckpointError(
            f"Tensor {name!r} holds {largest:.5g}; {dtype.name} holds at most {limit:.5g}: load the model with "
            "thrifty.reference.load(…, dtype=torch.float32), which keeps it."
        )
    return stored
