"""What is known of a candidate: bytes that follow from its recipe, and figures of its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thrifty.evaluation.quality import Quality
from thrifty.frontier.candidates import Candidate


@dataclass(frozen=True)
class Need:
    """Bytes that a recipe takes at the budget's context: weights, workspace and the cache's bounds."""

    weights: int
    workspace: int
    cache_peak: int
    cache_steady: int

    @property
    def peak(self) -> int:
        """What the budget must hold."""
        return self.weights + self.workspace + self.cache_peak

    @property
    def steady(self) -> int:
        """What stays held between steps."""
        return self.weights + self.cache_steady


@dataclass(frozen=True)
class Measurement:
    """One row of the frontier.

    need: at the budget's context, exact. fits: whether need.peak is within the budget. The rest was measured
    in the run after a prompt of `prompt` tokens. ledger_peak, ledger_steady: bytes that the ledger counted.
    process_peak: the process's resident bytes at their highest, Python and torch included. Rates in tokens a
    second. quality: None for a baseline, which is compared with nothing.
    """

    candidate: Candidate
    need: Need
    fits: bool
    prompt: int
    ledger_peak: int
    ledger_steady: int
    process_peak: int
    prefill_rate: float
    decode_rate: float
    quality: Quality | None

    @property
    def kl(self) -> float:
        """Mean KL divergence from the baseline, nats; 0 for the baseline itself."""
        return self.quality.kl.value if self.quality else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        recipe = self.candidate.recipe
        return {
            "recipe": self.candidate.label,
            "weights": recipe.weights,
            "cache": recipe.cache,
            "grid": self.candidate.grid.value,
            "fits": self.fits,
            "need_peak_bytes": self.need.peak,
            "need_steady_bytes": self.need.steady,
            "weights_bytes": self.need.weights,
            "measured_after_tokens": self.prompt,
            "ledger_peak_bytes": self.ledger_peak,
            "ledger_steady_bytes": self.ledger_steady,
            "process_peak_bytes": self.process_peak,
            "prefill_tok_s": round(self.prefill_rate, 2),
            "decode_tok_s": round(self.decode_rate, 2),
            "quality": self.quality.as_dict() if self.quality else None,
        }


def on_frontier(row: Measurement, rows: list[Measurement]) -> bool:
    """Whether no other servable row is at least as good in bytes, divergence and decode speed, and better in
    one.
    """
    return row.candidate.servable and not any(_dominates(other, row) for other in rows if other is not row)


def _dominates(one: Measurement, other: Measurement) -> bool:
    if not one.candidate.servable:
        return False
    ours = (one.need.peak, one.kl, -one.decode_rate)
    theirs = (other.need.peak, other.kl, -other.decode_rate)
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs
