"""The off-grid view: the same function, with weights whose groups do not lie on the checkpoint's grid.

A checkpoint that was published in 4 or 8 bits comes back exactly from rounding to such groups, so it cannot
tell weight techniques apart. Permuting the model's free axes mixes the groups and leaves the function as it
is:

- residual channels: embedding and logits columns, norms, the inputs of query, key, value, gate, up, router, and the
  outputs of `output` and `down`;
- MLP neurons: outputs of gate and up, inputs of down, of every expert on its own;
- value dimensions within a KV head: outputs of `value`, and inputs of `output` for every query head of the
group.

Queries and keys keep their order: rotation pairs their dimensions. A value stays in its head, so the inputs
of `output` leave the grid only where a head is larger than the checkpoint's groups, as in every packaged
model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from thrifty.arrays import BFLOAT16, Integers
from thrifty.errors import ConfigError
from thrifty.formats.linear import DenseLinear
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model, TensorReport
from thrifty.models.source import DType
from thrifty.storage.process import let_go
from thrifty.weights.structure import LinearInfo, linears

FLOAT32: DType = np.dtype(np.float32)
Order = Integers | None  # int64 [size]: place i takes what was at order[i]; None leaves an axis alone


def offgrid(model: Model, seed: int = 0, dtype: DType = FLOAT32, *, packed: bool = False) -> Model:
    """A model of plain linears whose logits equal the given one's (to 1e-4 in fp32), permuted by `seed`.

    The given model stays as it is. Weights are expanded and permuted one linear layer at a time. In bfloat16
    the weights are rounded first, which a model published in bfloat16 does not notice; `packed` lays them
    out for the native kernels.
    """
    orders = _Orders(model.config, seed)
    view = replace(model, linears=dict(model.linears), report=[], version=f"{model.version}+offgrid({seed})")
    for linear in linears(model):
        weight = _permuted(linear, *orders.of(linear), dtype, packed)
        view.replace(linear.name, weight)
        view.report.append(TensorReport(linear.name, weight.label, linear.linear.label, weight.nbytes))
        let_go(linear.linear.state().values())
    view.norms = {name: norm if _inside_heads(name) else norm[orders.hidden] for name, norm in model.norms.items()}
    return view


def packed_view(model: Model) -> Model:
    """The view in bf16, packed for the native kernels, on which weight techniques are scored; a view is its own."""
    return model if "+offgrid(" in model.version else offgrid(model, dtype=BFLOAT16, packed=True)


class _Orders:
    """The permutations of one view, drawn in a fixed order: a seed always means the same one."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        self.random = np.random.RandomState(seed & 0xFFFF_FFFF)  # a stream that no version of NumPy will change
        self.hidden = self._draw(config.hidden_size)
        self.values = [self._values(layer) for layer in range(len(config.layers))]
        self.neurons: dict[str, Integers] = {}

    def of(self, linear: LinearInfo) -> tuple[Order, Order]:
        """The orders of a layer's outputs and inputs."""
        match linear.role:
            case "embedding" | "head" | "query" | "key" | "router" | "shared_gate":
                return None, self.hidden
            case "value":
                return self._value_order(linear)[0], self.hidden
            case "output":
                return self.hidden, self._value_order(linear)[1]
            case "gate" | "up":
                return self._neurons(linear, linear.linear.out_features), self.hidden
            case "down":
                return self.hidden, self._neurons(linear, linear.linear.in_features)
        raise ConfigError(f"the off-grid view does not know how '{linear.name}' reads and writes the model")

    def _draw(self, size: int) -> Integers:
        """A permutation, by Fisher and Yates from the front: the one that torch.randperm draws of the same seed."""
        order = list(range(size))
        draws = self.random.randint(0, 1 << 32, max(size - 1, 0), dtype=np.uint32) % np.arange(
            size, 1, -1, dtype=np.uint32
        )
        for place, further in enumerate(draws.tolist()):
            order[place], order[place + further] = order[place + further], order[place]
        return np.array(order, np.int64)

    def _values(self, layer: int) -> tuple[Integers, Integers]:
        """Orders of the value outputs [kv_heads · head_dim] and the attended ones [heads · head_dim]."""
        query_heads, kv_heads, size = self.config.widths(layer)
        heads = [self._draw(size) for _ in range(kv_heads)]
        group = query_heads // kv_heads
        outputs = np.concatenate([order + head * size for head, order in enumerate(heads)])
        inputs = np.concatenate([heads[head // group] + head * size for head in range(query_heads)])
        return outputs, inputs

    def _value_order(self, linear: LinearInfo) -> tuple[Integers, Integers]:
        assert linear.layer is not None
        return self.values[linear.layer]

    def _neurons(self, linear: LinearInfo, size: int) -> Integers:
        """The order of an MLP's neurons, the same for its gate, up and down."""
        parts = ["*" if part == linear.role else part for part in linear.name.split(".")]
        mlp = ".".join(parts)
        if mlp not in self.neurons:
            self.neurons[mlp] = self._draw(size)
        return self.neurons[mlp]


def _permuted(linear: LinearInfo, rows: Order, columns: Order, dtype: DType, packed: bool) -> DenseLinear:
    weight, bias = linear.linear.dequantize(), linear.linear.bias
    if columns is not None:
        weight = weight[:, columns]
    if rows is not None:
        weight = weight[rows]
        bias = None if bias is None else bias[rows]
    return DenseLinear.from_weight(weight, dtype, packed, bias=bias)


def _inside_heads(norm: str) -> bool:
    """Whether a norm acts on queries or keys, whose order stays."""
    return norm.endswith((".query_norm", ".key_norm"))
