"""A model of given sizes with new weights, trained on a text from the beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from thrifty.arrays import Floats, Integers
from thrifty.formats.linear import DenseLinear
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import build
from thrifty.training.loop.batches import Batches
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.loop import Plan, Say, train
from thrifty.training.loop.losses import next_tokens

FirstWeights = Callable[[int, int, int], Floats]
"""(rows, columns, seed) → fp32 [rows, columns]."""
AfterStep = Callable[[int], None]


@dataclass(frozen=True)
class Trained:
    """weights: fp32 [out, in] of each linear. losses: nats of each token of each held-out sequence, [sequences,
    tokens − 1].
    """

    weights: dict[str, Floats]
    losses: Floats


def with_new_weights(model: Model, first: FirstWeights, seed: int) -> Model:
    """A model of the same sizes with plain weights that train: linears as `first` draws them, norms of ones."""
    linears = {
        name: DenseLinear.from_weight(first(linear.out_features, linear.in_features, 1000 * seed + place), packed=False)
        for place, (name, linear) in enumerate(model.linears.items())
    }
    norms = {name: np.full_like(norm, 1 - model.config.norm_offset) for name, norm in model.norms.items()}
    return replace(model, linears=dict(linears), norms=norms, report=[], version="")


def train_from_scratch(
    model: Model,
    batches: Batches,
    held_out: Integers,
    plan: Plan,
    *,
    after: Callable[[Mapping[str, nn.Parameter]], AfterStep] | None = None,
    say: Say = lambda progress: None,
) -> Trained:
    """Train all of a model that trains, in place, to predict next tokens.

    held_out: int64 [sequences, tokens] that are scored at the end. after: makes of the parameters what is done after
    each step, such as `BackSlash`.
    """
    decoder = build(model).decoder
    parameters = dict(decoder.named_parameters())
    decoder.train()
    hook: AfterStep = (lambda step: None) if after is None else after(parameters)
    train(parameters, lambda step: _loss(decoder, batches, step), plan, say=say, after=hook)
    weights = {name: array_of(parameters[f"{name}.weight"]) for name in model.linears}
    return Trained(weights, _held_out(decoder, held_out))


def _loss(decoder: Decoder, batches: Batches, step: int) -> torch.Tensor:
    tokens = tensor_of(batches.at(step))
    return next_tokens(logits_of(decoder, tokens), tokens)


@torch.no_grad()
def _held_out(decoder: Decoder, sequences: Integers) -> Floats:
    rows = []
    for sequence in sequences:
        tokens = tensor_of(sequence[None])
        logits = logits_of(decoder, tokens)[0, :-1].float()
        rows.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none"))
    return array_of(torch.stack(rows))
