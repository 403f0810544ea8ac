"""Steps of AdamW on a loss: a cosine schedule, clipped gradients, seeds by step, checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thrifty.errors import RecipeError
from thrifty.training.loop.checkpoint import Checkpoint

Losses = Callable[[int], Tensor]
"""The loss of a step, a number with gradients. Random numbers are torch's own: they are seeded by the step."""
Say = Callable[["Progress"], None]


@dataclass(frozen=True)
class Plan:
    """steps: how many. rate: of learning, after `warm_up` steps; it falls to `last_rate` along half a cosine. betas and
    weight_decay: AdamW's. clip: the largest norm of all gradients together. save, save_seconds: a checkpoint is written
    after so many steps, or after the step that ends so many seconds behind the last one.
    """

    steps: int
    rate: float
    last_rate: float = 0.0
    warm_up: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    save: int = 20
    save_seconds: float = 300.0

    def rate_at(self, step: int) -> float:
        """The rate of a step from 0 on."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.last_rate + (self.rate - self.last_rate) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Progress:
    """After `step` of `steps`: the loss of that step, in its own unit, and the seconds that are left at this pace.
    saved: the steps that a run that is killed now goes on behind; 0 without a checkpoint.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float
    saved: int = 0


def train(
    parameters: Mapping[str, nn.Parameter],
    loss: Losses,
    plan: Plan,
    *,
    checkpoint: Checkpoint | None = None,
    say: Say = lambda progress: None,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Change the parameters by `plan.steps` steps; the losses of those that were taken now, in order.

    after: called when the update of a step, from 0 on, is done. checkpoint: where the state is kept: a run that was
    killed goes on from there, to the same bits. Raises RecipeError
    where a loss is no finite number, and what the checkpoint raises.
    """
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay
    )
    first = 0 if checkpoint is None else checkpoint.restore(parameters, optimizer)
    losses: list[float] = []
    began = kept_at = time.monotonic()
    saved = first
    for step in range(first, plan.steps):
        losses.append(_step(optimizer, parameters, loss, plan, step))
        after(step)
        done = step + 1
        late = time.monotonic() - kept_at >= plan.save_seconds
        if checkpoint is not None and (late or done % plan.save == 0 or done == plan.steps):
            checkpoint.save(parameters, optimizer, done)
            saved, kept_at = done, time.monotonic()
        pace = (time.monotonic() - began) / (done - first)
        say(Progress(done, plan.steps, losses[-1], pace * (plan.steps - done), saved))
    return losses


def _step(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], loss: Losses, plan: Plan, step: int
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = plan.rate_at(step)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(plan.seed * 1_000_003 + step)
        value = loss(step)
        if not bool(torch.isfinite(value)):
            raise RecipeError(
                f"the loss of step {step + 1} is {float(value.detach())}: the weights hold numbers that are none, or "
                f"the learning rate of {plan.rate:g} is too high"
            )
        value.backward()
    nn.utils.clip_grad_norm_(list(parameters.values()), plan.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(value.detach())
