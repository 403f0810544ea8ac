"""Scores relative to a baseline of the same run, with bootstrap confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000
BLOCK = 16  # neighbouring tokens are not independent: whole blocks are drawn (Künsch 1989); items are: 1


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it with the stated confidence."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {"value": self.value, "low": self.low, "high": self.high}


def mean_interval(values: Tensor, confidence: float = 0.95, seed: int = 0, block: int = BLOCK) -> Interval:
    """Mean of `values` [tokens, or items with block = 1] with a block-bootstrap interval."""
    draws = values.double()[_draws(len(values), seed, block)].mean(1)
    return _interval(float(values.double().mean()), draws, confidence)


def ratio_interval(
    score: Tensor, baseline: Tensor, confidence: float = 0.95, seed: int = 0, block: int = BLOCK
) -> Interval | None:
    """mean(score) / mean(baseline), both [tokens, or items with block = 1], resampled in pairs. None where the
    baseline scores nothing:

    a task that the uncompressed model cannot do has no recovery.
    """
    score, baseline = score.double(), baseline.double()
    if float(baseline.mean()) <= 0:
        return None
    draws = _draws(len(score), seed, block)
    below = baseline[draws].mean(1)
    ratios = score[draws].mean(1)[below > 0] / below[below > 0]
    return _interval(float(score.mean() / baseline.mean()), ratios, confidence)


def _draws(count: int, seed: int, block: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    block = min(block, count)
    starts = torch.randint(0, count - block + 1, (RESAMPLES, -(-count // block)), generator=generator)
    return (starts[:, :, None] + torch.arange(block)).flatten(1)[:, :count]


def _interval(value: float, draws: Tensor, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high)
