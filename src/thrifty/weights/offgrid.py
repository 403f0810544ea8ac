"""The off-grid view: the same function, with weights whose groups do not lie on the checkpoint's grid.

A checkpoint that was published in 4 or 8 bits comes back exactly from rounding to such groups, so it cannot
tell weight techniques apart. Permuting the model's free axes mixes the groups and leaves the function as it
is:

- residual channels: embedding and logits columns, norms, the inputs of query, key, value, gate, up, router,
and the
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

import torch
from torch import Tensor, nn

from thrifty.errors import ConfigError
from thrifty.formats.linear import DenseLinear
from thrifty.models.config import ModelConfig
from thrifty.models.model import Model, TensorReport
from thrifty.models.norm import RMSNorm
from thrifty.weights.structure import LinearInfo, linears, share

Order = Tensor | None  # int64 [size]: place i takes what was at order[i]; None leaves an axis alone


def offgrid(model: Model, seed: int = 0, dtype: torch.dtype = torch.float32, *, packed: bool = False) -> Model:
    """A model of plain linears whose logits equal the given one's (to 1e-4 in fp32), permuted by `seed`.

    The given model stays as it is. Weights are expanded and permuted one linear layer at a time. In bfloat16
    the weights are rounded first, which a model published in bfloat16 does not notice; `packed` lays them
    out for the native kernels.
    """
    orders = _Orders(model.config, seed)
    decoder = share(model.decoder)
    report = []
    for linear in linears(decoder):
        rows, columns = orders.of(linear)
        weight = _permuted(linear, rows, columns, dtype, packed)
        decoder.replace(linear.name, weight)
        origin = linear.linear.label
        report.append(TensorReport(linear.name, weight.label, origin, weight.nbytes))
    for norm in decoder.modules():
        if isinstance(norm, RMSNorm) and not _inside_heads(norm, decoder):
            norm.weight = nn.Parameter(norm.weight.detach()[orders.hidden], requires_grad=False)
    return replace(model, decoder=decoder, report=report, version=f"{model.version}+offgrid({seed})")


class _Orders:
    """The permutations of one view, drawn in a fixed order: a seed always means the same one."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.hidden = self._draw(config.hidden_size)
        self.values = [self._values() for _ in config.layers]
        self.neurons: dict[str, Tensor] = {}

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

    def _draw(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)

    def _values(self) -> tuple[Tensor, Tensor]:
        """Orders of the value outputs [kv_heads · head_dim] and the attended ones [heads · head_dim]."""
        config, size = self.config, self.config.head_dim
        heads = [self._draw(size) for _ in range(config.kv_heads)]
        group = config.heads // config.kv_heads
        outputs = torch.cat([order + head * size for head, order in enumerate(heads)])
        inputs = torch.cat([heads[head // group] + head * size for head in range(config.heads)])
        return outputs, inputs

    def _value_order(self, linear: LinearInfo) -> tuple[Tensor, Tensor]:
        assert linear.layer is not None
        return self.values[linear.layer]

    def _neurons(self, linear: LinearInfo, size: int) -> Tensor:
        """The order of an MLP's neurons, the same for its gate, up and down."""
        parts = ["*" if part == linear.role else part for part in linear.name.split(".")]
        mlp = ".".join(parts)
        if mlp not in self.neurons:
            self.neurons[mlp] = self._draw(size)
        return self.neurons[mlp]


def _permuted(linear: LinearInfo, rows: Order, columns: Order, dtype: torch.dtype, packed: bool) -> DenseLinear:
    weight, bias = linear.linear.dequantize(), linear.linear.bias
    if columns is not None:
        weight = weight[:, columns]
    if rows is not None:
        weight = weight[rows]
        bias = None if bias is None else nn.Parameter(bias.detach()[rows], requires_grad=False)
    return DenseLinear.from_weight(weight, dtype, packed, bias=bias)


def _inside_heads(norm: RMSNorm, decoder: nn.Module) -> bool:
    """Whether a norm acts on queries or keys, whose order stays."""
    return any(
        norm in (layer.attention.query_norm, layer.attention.key_norm)
        for layer in decoder.layers  # type: ignore[union-attr]
    )
