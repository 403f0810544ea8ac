"""Divergence from the uncompressed model on prose after a compressed context."""

from __future__ import annotations

import math
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.tasks._passages import Passages, predictions
from thrifty.evaluation.tasks.task import Item, Record

if TYPE_CHECKING:
    from torch import Tensor

    from thrifty.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Divergence(Passages):
    """Both models are fed the same passage side by side. Next-token accuracy is the score; beside it stand `kl`, the
    mean of KL(baseline ‖ this) in nats, `top1`, how often both have the same first choice, and `nll`.
    """

    name: ClassVar[str] = "kl"

    def compare(self, baseline: Engine, engine: Engine, item: Item, cache: Tables | None) -> tuple[Record, Record]:
        started = time.perf_counter()
        reference, own = _Scores(), _Scores()
        with closing(predictions(baseline, item, [])) as theirs, closing(predictions(engine, item, cache)) as mine:
            for (target, expected), (_, found) in zip(theirs, mine, strict=True):
                reference.add(expected, expected, target)
                own.add(expected, found, target)
        seconds = (time.perf_counter() - started) / 2
        return (
            self.record(item, reference.accuracy, seconds, reference.details),
            self.record(item, own.accuracy, seconds, own.details),
        )


class _Scores:
    def __init__(self) -> None:
        self.right: list[bool] = []
        self.same: list[bool] = []
        self.kl: list[float] = []
        self.nll: list[float] = []

    def add(self, reference: Tensor, logits: Tensor, target: int) -> None:
        p, q = torch.log_softmax(reference.double(), 0), torch.log_softmax(logits.double(), 0)
        kl = float((p.exp() * (p - q)).sum())
        if not math.isfinite(kl):
            raise MeasurementError(f"the prediction of scored token {len(self.kl)} is not a number")
        best = int(logits.argmax())
        self.right.append(best == target)
        self.same.append(best == int(reference.argmax()))
        self.kl.append(max(0.0, kl))
        self.nll.append(-float(q[target]))

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.right)

    @property
    def details(self) -> dict[str, float]:
        return {
            "kl": statistics.fmean(self.kl),
            "top1": statistics.fmean(self.same),
            "nll": statistics.fmean(self.nll),
        }
