"""The LSTM under autograd, and the group lasso over its intrinsic sparse structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.reference.arrays import array_of
from thrifty.training.iss.lstm import GATES, LSTM, Layer

SPREAD = 0.04  # first weights lie between −this and this, as in the authors' large model


class Network(nn.Module):
    """width: of the embedding. hidden: units of each layer. keep: the share of numbers that dropout leaves, of what
    each layer and the head read (Zaremba et al., arXiv 1409.2329: never of the recurrent state).
    """

    def __init__(self, characters: str, width: int, hidden: Sequence[int], keep: float, seed: int) -> None:
        super().__init__()
        self.characters, self.keep = characters, keep
        random = torch.Generator().manual_seed(seed)

        def first(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=random) - 1) * SPREAD)

        count, reads = len(characters), [width, *hidden[:-1]]
        self.embedding, self.head = first(count, width), first(count, hidden[-1])
        self.head_bias = nn.Parameter(torch.zeros(count))
        self.layers = nn.ModuleList()
        for read, size in zip(reads, hidden, strict=True):
            layer = nn.LSTM(read, size, batch_first=True)
            layer.weight_ih_l0, layer.weight_hh_l0 = first(GATES * size, read), first(GATES * size, size)
            layer.bias_ih_l0 = nn.Parameter(torch.zeros(GATES * size))
            # A second bias adds nothing to the first: it stays 0.
            layer.bias_hh_l0 = nn.Parameter(torch.zeros(GATES * size), requires_grad=False)
            self.layers.append(layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits fp32 [sequences, tokens, characters] of int64 [sequences, tokens]; each begins with zeros."""
        x = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            x, _ = layer(self._dropped(x))
        return F.linear(self._dropped(x), self.head, self.head_bias)

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def as_arrays(self) -> LSTM:
        """A copy that needs no torch."""
        layers = [
            Layer(*(array_of(getattr(layer, f"{name}_l0")).copy() for name in ("weight_ih", "weight_hh", "bias_ih")))
            for layer in self.layers
        ]
        embedding, head, bias = (array_of(weight).copy() for weight in (self.embedding, self.head, self.head_bias))
        return LSTM(self.characters, embedding, layers, head, bias)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, 1 - self.keep, self.training)


@dataclass(frozen=True)
class Structure:
    """The weights of one layer's groups. incoming: [4 · hidden, in]. recurrent: [4 · hidden, hidden]. reader: [out,
    hidden], the incoming weight of the next layer, or the head.
    """

    incoming: nn.Parameter
    recurrent: nn.Parameter
    reader: nn.Parameter

    def norms(self, epsilon: float = 0.0) -> Tensor:
        """√(Σ w² + ε) of the group of each unit: fp32 [hidden] (§3.1, eq. 2)."""
        hidden = self.recurrent.shape[1]
        square = self.recurrent.square().view(GATES, hidden, hidden).sum(0)  # [made, read]
        total = self.incoming.square().view(GATES, hidden, -1).sum((0, 2)) + self.reader.square().sum(0)
        return (total + square.sum(1) + square.sum(0) - square.diagonal() + epsilon).sqrt()


class GroupLasso:
    """λ·Σ_k √(Σ w² + 1e-8) over all groups, made small by a step of its own after every step of training (§3.2):

        w ← w·max(0, 1 − η·λ·Σ 1/√(Σ w² + 1e-8)), then w ← 0 where |w| < threshold.

    The sum is over the groups that w is in, one or two. η: the rate of the step. A group that is all zeros stays so:
    `before` is called before each update, `after` behind it.
    """

    EPSILON = 1e-8

    def __init__(self, network: Network, strength: float, rate: Callable[[int], float], threshold: float) -> None:
        layers = list(network.layers)
        readers = [*(layer.get_parameter("weight_ih_l0") for layer in layers[1:]), network.head]
        self._structures = [
            Structure(layer.get_parameter("weight_ih_l0"), layer.get_parameter("weight_hh_l0"), reader)
            for layer, reader in zip(layers, readers, strict=True)
        ]
        self._strength, self._rate, self._threshold = strength, rate, threshold
        self._alive: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Remember which groups live."""
        self._alive = [structure.norms() > 0 for structure in self._structures]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Of a step from 0 on."""
        pull = self._rate(step) * self._strength
        shrunk = [pull / structure.norms(self.EPSILON) for structure in self._structures]
        factors: dict[nn.Parameter, Tensor] = {}
        for structure, amount in zip(self._structures, shrunk, strict=True):
            rows = amount.repeat(GATES)[:, None]
            _add(factors, structure.incoming, rows)
            # A number where row k meets column k of the recurrent weight is in group k once.
            once = torch.diag(amount).repeat(GATES, 1)
            _add(factors, structure.recurrent, rows + amount[None] - once)
            _add(factors, structure.reader, amount[None])
        for weight, amount in factors.items():
            weight.mul_((1 - amount).clamp_min(0))
            weight.masked_fill_(weight.abs() < self._threshold, 0)
        for structure, alive in zip(self._structures, self._alive, strict=True):
            structure.incoming.mul_(alive.repeat(GATES)[:, None])
            structure.recurrent.mul_(alive.repeat(GATES)[:, None] & alive[None])
            structure.reader.mul_(alive[None])


def _add(factors: dict[nn.Parameter, Tensor], weight: nn.Parameter, amount: Tensor) -> None:
    factors[weight] = factors[weight] + amount if weight in factors else amount
