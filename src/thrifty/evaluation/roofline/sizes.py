"""What a model's parts weigh, of a loaded model or of a config alone: shape, format and bytes of every linear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import BFLOAT16, Array
from thrifty.formats.linear import DenseLinear
from thrifty.kernels.reference.packing import padded
from thrifty.models.parts import EXACT, parts

if TYPE_CHECKING:
    from thrifty.models.config.model_config import ModelConfig
    from thrifty.models.model import Model
    from thrifty.models.source import StoredTensor


@dataclass(frozen=True)
class StoredLinear:
    """One linear [rows, columns] as it is stored: its name in the decoder, format and bytes, bias included."""

    name: str
    rows: int
    columns: int
    nbytes: int
    label: str
    has_bias: bool = False

    @property
    def layer(self) -> int | None:
        """The layer it belongs to, None for embedding and head."""
        words = self.name.split(".")
        return int(words[1]) if words[0] == "layers" else None

    @property
    def place(self) -> str:
        """Its name without the layer, such as "attention.query" or "mlp.experts.gate.7"."""
        return self.name if self.layer is None else self.name.split(".", 2)[2]


Restore = Callable[[StoredLinear], StoredLinear]
"""How a recipe's weight techniques store a linear; see `weights.sizes`."""


@dataclass(frozen=True)
class ModelSizes:
    """Every linear of a model, in the decoder's order; rest: bytes of norms."""

    config: ModelConfig
    linears: tuple[StoredLinear, ...]
    rest: int

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, as `Model.nbytes` counts them."""
        return sum(linear.nbytes for linear in self.linears) + self.rest

    @property
    def plain(self) -> bool:
        """Whether all linears are fp32, which gives the model an fp32 cache."""
        return all(linear.label == "f32" for linear in self.linears)

    def stored(self, restore: Restore) -> ModelSizes:
        """The same model with every linear as `restore` stores it."""
        return ModelSizes(self.config, tuple(restore(linear) for linear in self.linears), self.rest)


def of_model(model: Model) -> ModelSizes:
    """Sizes of a loaded model, exact."""
    linears = []
    for name, linear in model.linears.items():
        sizes = (linear.out_features, linear.in_features, linear.nbytes)
        linears.append(StoredLinear(name, *sizes, linear.label, linear.bias is not None))
    return ModelSizes(model.config, tuple(linears), model.nbytes - sum(linear.nbytes for linear in linears))


def of_file(config: ModelConfig, tensors: Iterable[StoredTensor]) -> ModelSizes:
    """Sizes of a checkpoint by the bytes of its own files, which every format of codes keeps; fp32 matrices become
    bf16, where they are not kept exactly. Nothing is loaded.
    """
    shapes = parts(config)
    held = {name: tensor for tensor in tensors for name in tensor.names}
    linears, rest = [], 0
    for name, shape in shapes.items():
        if len(shape) != 2:
            rest += 0 if name.endswith(".bias") else 4 * shape[0]
            continue
        tensor, has_bias = held[name], f"{name}.bias" in shapes
        if tensor.type == "F32":
            nbytes, label = _stored(*shape, has_bias, name.endswith(EXACT))
        else:
            nbytes = tensor.nbytes // len(tensor.names) + (4 * shape[0] if has_bias else 0)
            label = tensor.type.lower()
        linears.append(StoredLinear(name, *shape, nbytes, label, has_bias))
    return ModelSizes(config, tuple(linears), rest)


def of_config(config: ModelConfig) -> ModelSizes:
    """Sizes as `models.load` stores a checkpoint of this config that comes in 16 bits; nothing is allocated."""
    shapes = parts(config)
    known: dict[tuple[int, int, bool, bool], tuple[int, str]] = {}
    linears = []
    for name, shape in shapes.items():
        if len(shape) != 2:
            continue
        rows, columns = shape
        key = (rows, columns, f"{name}.bias" in shapes, name.endswith(EXACT))
        if key not in known:
            known[key] = _stored(*key)
        linears.append(StoredLinear(name, rows, columns, *known[key], has_bias=key[2]))
    norms = sum(4 * shape[0] for name, shape in shapes.items() if len(shape) == 1 and not name.endswith(".bias"))
    return ModelSizes(config, tuple(linears), norms)


def _stored(rows: int, columns: int, has_bias: bool, exact: bool) -> tuple[int, str]:
    """Bytes and format of one matrix, from the format itself over arrays that repeat one number."""
    if exact:
        weight = _repeated((rows, columns), np.dtype(np.float32))
    else:
        weight = _repeated((padded(rows, 16) // 16, padded(columns, 2) // 2, 16, 2), BFLOAT16)
    linear = DenseLinear(rows, columns, weight, packed=not exact)
    return linear.nbytes + (4 * rows if has_bias else 0), linear.label


def _repeated(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.broadcast_to(np.zeros((), dtype), shape)
