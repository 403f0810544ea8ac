"""Giving a damaged model back what little training can: LoRA on all its linears, merged at the end or kept beside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thrifty.arrays import Floats
from thrifty.models.model import Model
from thrifty.reference.arrays import tensor_of
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import build
from thrifty.training.loop.batches import Batches
from thrifty.training.loop.checkpoint import Checkpoint
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.loop import Losses, Plan, Say, train
from thrifty.training.loop.lora import LoraLinear, LoraOptions, attach, parameters_of
from thrifty.training.loop.losses import divergence, next_tokens


@dataclass(frozen=True)
class Healed:
    """weights: fp32 [out, in] of each linear, merged. losses: of each step that was taken."""

    weights: dict[str, Floats]
    losses: list[float] = field(default_factory=list)


def heal(
    model: Model,
    names: Iterable[str],
    batches: Batches,
    plan: Plan,
    options: LoraOptions,
    *,
    teacher: Model | None = None,
    checkpoint: Checkpoint | None = None,
    say: Say = lambda progress: None,
) -> Healed:
    """Train low-rank additions to the linears `names` of a model, which stays as it is, and merge them.

    teacher: the model before the damage: its predictions are learned (KL); None: the text itself (cross-entropy).
    """
    added, losses = additions(model, names, batches, plan, options, teacher=teacher, checkpoint=checkpoint, say=say)
    return Healed({name: linear.merged() for name, linear in added.items()}, losses)


def additions(
    model: Model,
    names: Iterable[str],
    batches: Batches,
    plan: Plan,
    options: LoraOptions,
    *,
    teacher: Model | None = None,
    checkpoint: Checkpoint | None = None,
    say: Say = lambda progress: None,
) -> tuple[dict[str, LoraLinear], list[float]]:
    """As `heal`, not merged: the trained linears by name, and the losses of the steps that were taken."""
    decoder = build(model).decoder
    added = attach(decoder, names, options, plan.seed)
    decoder.train()
    loss = healing_loss(decoder, batches, teacher)
    return added, train(parameters_of(added), loss, plan, checkpoint=checkpoint, say=say)


def healing_loss(decoder: Decoder, batches: Batches, teacher: Model | None) -> Losses:
    """The loss of a step: of the teacher's predictions (KL), or of the text itself (cross-entropy) without one."""
    guide = None if teacher is None else build(teacher).decoder.requires_grad_(False)

    def loss(step: int) -> Tensor:
        tokens = tensor_of(batches.at(step))
        logits = logits_of(decoder, tokens)
        if guide is None:
            return next_tokens(logits, tokens)
        with torch.no_grad():
            wanted = logits_of(guide, tokens)
        return divergence(logits, wanted)

    return loss
