"""Learning which weights of frozen linears stay: probabilities of masks, trained through the whole decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from thrifty.training.loop.losses import next_tokens

Soften = Callable[[Any, Any, float], Any]
"""(logits [groups, candidates], Gumbel noise of their shape, share of the training that is done from 0 to 1) → how much
of each weight stays, [groups, columns of a group]: plain arithmetic, on tensors or arrays."""


@dataclass(frozen=True)
class Rules:
    """soften: from logits to soft masks. reward: of the squared weights that stay, by the share that is done; it is
    taken off the loss.
    """

    soften: Soften
    reward: Callable[[float], float]


class MaskedLinear(nn.Module):
    """y = (W ⊙ M)·x + bias with W frozen and M drawn anew in every pass. logits: fp32 [out · in / 4, 6] trains."""

    def __init__(self, base: Linear, start: Floats, rules: Rules) -> None:
        super().__init__()
        self.register_buffer("weight", tensor_of(base.stored.dequantize()))
        self.bias = None if base.bias is None else base.bias.detach()
        self.logits = nn.Parameter(torch.tensor(start))
        self.rules, self.done = rules, 0.0
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]. `kept` becomes the squared norm of the weights that stayed."""
        weight = self.weight
        assert isinstance(weight, Tensor)
        noise = -torch.log(torch.empty_like(self.logits).exponential_())
        masked = weight * self.rules.soften(self.logits, noise, self.done).reshape(weight.shape)
        self.kept = masked.square().sum()
        y = x @ masked.T.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def learn_masks(
    model: Model,
    starts: Mapping[str, Floats],
    rules: Rules,
    batches: Batches,
    plan: Plan,
    *,
    checkpoint: Checkpoint | None = None,
    say: Say = lambda progress: None,
) -> dict[str, Floats]:
    """Logits fp32 [groups, candidates] after training on the next token, by the names of the linears in `starts`.

    The model stays as it is. An expert that no token of a step reaches has no gradient in it.
    """
    decoder = build(model).decoder
    masked = _attach(decoder, starts, rules)

    def loss(step: int) -> Tensor:
        done = step / plan.steps
        for linear in masked.values():
            linear.done, linear.kept = done, None
        tokens = tensor_of(batches.at(step))
        value = next_tokens(logits_of(decoder, tokens), tokens)
        kept = [linear.kept for linear in masked.values() if linear.kept is not None]
        return value - rules.reward(done) * torch.stack(kept).sum() if kept else value

    parameters = {name: linear.logits for name, linear in masked.items()}
    train(parameters, loss, plan, checkpoint=checkpoint, say=say)
    return {name: array_of(logits) for name, logits in parameters.items()}


def _attach(decoder: Decoder, starts: Mapping[str, Floats], rules: Rules) -> dict[str, MaskedLinear]:
    decoder.requires_grad_(False)
    masked: dict[str, MaskedLinear] = {}
    for name, start in starts.items():
        base = decoder.get_submodule(name)
        assert isinstance(base, Linear), f"{name} is a linear of the decoder"
        masked[name] = MaskedLinear(base, start, rules)
        path, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(path), leaf, masked[name])
    return masked
