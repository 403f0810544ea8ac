"""Divergence from the uncompressed model on prose after a compressed context."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.quality import TokenScores
from thrifty.evaluation.tasks._passages import Passages, predictions
from thrifty.evaluation.tasks.task import Item, Record

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine


DETAILS = {"kl": "kl", "top1": "same", "nll": "nll"}
"""What a record shows beside the score, and the scores that it is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Divergence(Passages):
    """Both models are fed the same passage side by side. Next-token accuracy is the score; beside it stand `kl`, the
    mean of KL(baseline ‖ this) in nats, `top1`, how often both have the same first choice, and `nll`.
    """

    name: ClassVar[str] = "kl"

    def compare(self, baseline: Engine, engine: Engine, item: Item, cache: Tables | None) -> tuple[Record, Record]:
        started = time.perf_counter()
        reference, own = TokenScores(), TokenScores()
        with closing(predictions(baseline, item, [])) as theirs, closing(predictions(engine, item, cache)) as mine:
            for (target, expected), (_, logits) in zip(theirs, mine, strict=True):
                reference.add(expected, expected, target)
                own.add(expected, logits, target)
        seconds = (time.perf_counter() - started) / 2
        return (
            self.record(item, statistics.fmean(reference.right), seconds, _details(reference)),
            self.record(item, statistics.fmean(own.right), seconds, _details(own)),
        )


def _details(scores: TokenScores) -> dict[str, float]:
    return {name: statistics.fmean(getattr(scores, field)) for name, field in DETAILS.items()}
