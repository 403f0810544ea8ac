"""Linears that are rounded in every pass, trained to do what a teacher does: its predictions and its hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thrifty.arrays import Floats
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.decoder import Decoder
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build
from thrifty.training.loop.batches import Batches
from thrifty.training.loop.checkpoint import Checkpoint
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.loop import Plan, Say, train
from thrifty.training.loop.losses import divergence, hidden_error

Rounding = Callable[[Floats], Floats]
"""A weight [out, in] → what its format makes of it, of the same shape."""


@dataclass(frozen=True)
class Distillation:
    """teacher: the model whose predictions are learned. places: of each student layer, the teacher's layer whose hidden
    state it learns. rounding: of the student's linears in every pass; None: they stay as they are.
    """

    teacher: Model
    places: Mapping[int, int]
    rounding: Rounding | None


class RoundedLinear(nn.Module):
    """y = r(W)·x + bias; W trains as if r were not there (straight-through estimator, arXiv 1308.3432)."""

    def __init__(self, base: Linear, rounding: Rounding | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor_of(base.stored.dequantize().copy()))
        self.bias = None if base.bias is None else base.bias.detach()
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        weight: Tensor = self.weight
        if self.rounding is not None:
            weight = weight + (tensor_of(self.rounding(array_of(self.weight))) - self.weight).detach()
        y = x @ weight.T.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def distil(
    student: Model,
    names: list[str],
    task: Distillation,
    batches: Batches,
    plan: Plan,
    *,
    checkpoint: Checkpoint | None = None,
    say: Say = lambda progress: None,
) -> dict[str, Floats]:
    """The student's linears `names` after training, fp32 [out, in], not rounded. Both models stay as they are.

    The loss is KL(teacher ‖ student) of the next token plus the mean squared errors of the hidden states (XTC, arXiv
    2206.01859, §3, without attention maps).
    """
    decoder, guide = build(student).decoder, build(task.teacher).decoder
    decoder.requires_grad_(False), guide.requires_grad_(False)
    rounded = _attach(decoder, names, task.rounding)
    mine, others = _watch(decoder), _watch(guide)

    def loss(step: int) -> Tensor:
        tokens = tensor_of(batches.at(step))
        with torch.no_grad():
            wanted = logits_of(guide, tokens)
        value = divergence(logits_of(decoder, tokens), wanted)
        return value + sum(hidden_error(mine[place], others[layer]) for place, layer in task.places.items())

    train({name: linear.weight for name, linear in rounded.items()}, loss, plan, checkpoint=checkpoint, say=say)
    return {name: array_of(linear.weight) for name, linear in rounded.items()}


def _attach(decoder: Decoder, names: list[str], rounding: Rounding | None) -> dict[str, RoundedLinear]:
    rounded: dict[str, RoundedLinear] = {}
    for name in names:
        base = decoder.get_submodule(name)
        assert isinstance(base, Linear), f"{name} is a linear of the decoder"
        rounded[name] = RoundedLinear(base, rounding)
        path, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(path), leaf, rounded[name])
    return rounded


def _watch(decoder: Decoder) -> dict[int, Tensor]:
    """The hidden state behind each layer in the last pass."""
    seen: dict[int, Tensor] = {}
    for place, layer in enumerate(decoder.layers):
        layer.register_forward_hook(lambda module, given, hidden, place=place: seen.__setitem__(place, hidden))
    return seen
