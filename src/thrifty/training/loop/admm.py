"""ADMM: weights that train under a constraint, such as two of every four being zero (NxMTransformer, 2110.15766)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.arrays import Floats
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.decoder import Decoder
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build
from thrifty.training.loop.batches import Batches
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.loop import Plan, Say, train
from thrifty.training.loop.losses import divergence

Change = Callable[[Floats], Floats]
"""A weight fp32 [out, in] → another of its shape."""


@dataclass(frozen=True)
class Constraint:
    """quantise: Q, what the format makes of a weight, in every pass. project: Π, the nearest weight that the constraint
    allows; None: there is none.
    """

    quantise: Change
    project: Change | None


@dataclass(frozen=True)
class Schedule:
    """rho: ρ of the penalty. interval: steps between two updates of Z and U. frozen: from this step on the projection
    is what trains: what it leaves out stays out.
    """

    rho: float
    interval: int
    frozen: int


@dataclass
class Split:
    """Z and U of one weight W: minimise f(Q(W)) + ρ/2·‖W − Z + U‖² over W, then Z ← Π(W + U), U ← U + W − Z."""

    project: Change
    z: Floats
    u: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.z = self.project(self.z)
        self.u = np.zeros_like(self.z)

    def update(self, weight: Floats) -> None:
        """The steps of Z and U."""
        self.z = self.project(weight + self.u)
        self.u = self.u + weight - self.z


class ConstrainedLinear(nn.Module):
    """y = Q(W)·x + bias; W trains as if Q were not there (straight-through estimator). kept: bool [out, in], where W
    may differ from 0; None: everywhere.
    """

    def __init__(self, base: Linear, constraint: Constraint) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor_of(base.stored.dequantize().copy()))
        self.bias = None if base.bias is None else base.bias.detach()
        self.constraint = constraint
        self.split = None if constraint.project is None else Split(constraint.project, array_of(self.weight))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        weight = self.weight if self.kept is None else self.weight * self.kept
        rounded = tensor_of(self.constraint.quantise(array_of(weight)))
        weight = weight + (rounded - weight).detach()
        y = x @ weight.T.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def penalty(self) -> Tensor | None:
        """‖W − Z + U‖², None without a constraint and once the mask is frozen."""
        if self.split is None or self.kept is not None:
            return None
        return (self.weight - tensor_of(self.split.z) + tensor_of(self.split.u)).square().sum()

    @torch.no_grad()
    def freeze(self) -> None:
        """The hard projection: what it leaves out is zero from here on."""
        if self.constraint.project is not None and self.kept is None:
            projected = tensor_of(self.constraint.project(array_of(self.weight)))
            self.kept = (projected != 0).to(self.weight.dtype)
            self.weight.copy_(projected)


def constrained(
    model: Model,
    constraints: Mapping[str, Constraint],
    schedule: Schedule,
    batches: Batches,
    plan: Plan,
    *,
    teacher: Model,
    say: Say = lambda progress: None,
) -> dict[str, Floats]:
    """Weights fp32 [out, in] of the linears in `constraints` after training towards the teacher's predictions: each
    fulfils its constraint and is not yet quantised. Both models stay as they are.
    """
    decoder, guide = build(model).decoder, build(teacher).decoder
    decoder.requires_grad_(False), guide.requires_grad_(False)
    layers = _attach(decoder, constraints)

    def loss(step: int) -> Tensor:
        tokens = tensor_of(batches.at(step))
        with torch.no_grad():
            wanted = logits_of(guide, tokens)
        value = divergence(logits_of(decoder, tokens), wanted)
        penalties = [own for layer in layers.values() if (own := layer.penalty()) is not None]
        return value + schedule.rho / 2 * torch.stack(penalties).sum() if penalties else value

    def after(step: int) -> None:
        done = step + 1
        for layer in layers.values():
            if done >= schedule.frozen:
                layer.freeze()
            elif layer.split is not None and done % schedule.interval == 0:
                layer.split.update(array_of(layer.weight))

    if schedule.frozen <= 0:
        after(-1)
    train({name: layer.weight for name, layer in layers.items()}, loss, plan, say=say, after=after)
    for layer in layers.values():
        layer.freeze()
    return {
        name: array_of(layer.weight if layer.kept is None else layer.weight * layer.kept)
        for name, layer in layers.items()
    }


def _attach(decoder: Decoder, constraints: Mapping[str, Constraint]) -> dict[str, ConstrainedLinear]:
    made: dict[str, ConstrainedLinear] = {}
    for name, constraint in constraints.items():
        base = decoder.get_submodule(name)
        assert isinstance(base, Linear), f"{name} is a linear of the decoder"
        made[name] = ConstrainedLinear(base, constraint)
        path, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(path), leaf, made[name])
    return made
