"""Layer-by-layer distillation of linears that will be rounded, from the model's own hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.arrays import Floats, Integers
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.attention import causal
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build

Rounding = Callable[[Floats], Floats]
"""fp32 values of any 2-D shape to those that will be stored or multiplied, of the same shape."""


class LayerDistillation:
    """ZeroQuant's LKD (arXiv 2206.01861, §4.2): student layer l is given the full-precision teacher's hidden state
    behind layer l − 1, and its mean squared error to what the teacher's layer makes of it is made small. Rounded
    forward, straight-through backward, AdamW.

    It holds the hidden state [sequences, tokens, hidden] fp32 before and behind one layer, that layer's weights in
    fp32, rounded too, and their two moments. The model is read once, when this is made, and may be changed meanwhile.
    """

    def __init__(self, model: Model, sequences: Integers, *, steps: int, batch: int, learning_rate: float) -> None:
        """sequences: int64 [sequences, tokens]. batch: sequences a step, drawn by the layer's number."""
        self.config = model.config
        self.steps, self.batch, self.learning_rate = steps, batch, learning_rate
        self.losses: list[tuple[float, float]] = []  # of each layer, at its first and its last step
        self._decoder = build(model).decoder
        for parameter in self._decoder.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            self._hidden = torch.stack([self._decoder.embed(row) for row in tensor_of(sequences)])

    def __call__(
        self, layer: int, weights: Mapping[str, Rounding], inputs: Rounding, before: Callable[[], None]
    ) -> dict[str, Floats]:
        """The trained weights, fp32 [out, in], of the named linears of a layer. Layers come in order, each once.

        weights: how each is rounded, by name. inputs: how what they read is. before: called before every step; what it
        raises ends the work.
        """
        with torch.no_grad():
            wanted = torch.stack([self._forward(layer, hidden) for hidden in self._hidden])
        students = {name: _Rounded(self._linear(name), rounding, inputs) for name, rounding in weights.items()}
        for name, student in students.items():
            self._decoder.replace(name, student)  # type: ignore[arg-type]  # a place takes any module
        if students:
            self._train(layer, wanted, list(students.values()), before)
        self._decoder.layers[layer] = nn.Identity()  # the layer's weights are needed no longer
        self._hidden = wanted
        return {name: array_of(student.weight) for name, student in students.items()}

    def _train(self, layer: int, wanted: Tensor, students: list[_Rounded], before: Callable[[], None]) -> None:
        weights = [student.weight for student in students]
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0)
        losses: list[float] = []
        draws = torch.Generator().manual_seed(layer)
        for _ in range(self.steps):
            before()
            for student in students:
                student.settle()
            chosen = torch.randperm(len(wanted), generator=draws)[: self.batch].tolist()
            optimizer.zero_grad()
            total = 0.0
            for index in chosen:  # one sequence's activations at a time
                loss = nn.functional.mse_loss(self._forward(layer, self._hidden[index]), wanted[index]) / len(chosen)
                loss.backward()
                total += float(loss.detach())
            optimizer.step()
            losses.append(total)
        self.losses.append((losses[0], losses[-1]))

    def _forward(self, layer: int, hidden: Tensor) -> Tensor:
        return self._decoder.layer(layer, hidden, torch.arange(len(hidden)), causal(self.config))

    def _linear(self, name: str) -> Linear:
        module = self._decoder.get_submodule(name)
        assert isinstance(module, Linear)
        return module


class _Rounded(nn.Module):
    """A linear with a weight that trains in fp32 and is rounded whenever it multiplies, as are the rows it reads."""

    def __init__(self, linear: Linear, rounding: Rounding, inputs: Rounding) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(linear.stored.dequantize()))
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.rounding, self.inputs = rounding, inputs
        self.settle()

    def settle(self) -> None:
        """Round the weight as it is now; the same for all that is multiplied until the next time."""
        self.rounded = torch.from_numpy(self.rounding(self.weight.detach().numpy()))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        rows = straight_through(rows, torch.from_numpy(self.inputs(rows.detach().numpy())))
        y = rows @ straight_through(self.weight, self.rounded).T
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], len(self.weight))


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in place of x, whose gradient passes as if nothing had been rounded (straight-through estimator)."""
    value: Tensor = _StraightThrough.apply(x, rounded)
    return value


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
