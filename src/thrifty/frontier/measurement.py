"""What is known of a candidate: bytes and time that follow from its recipe, and figures of its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.evaluation.measuring.noise import DISTURBED
from thrifty.evaluation.quality import Quality
from thrifty.evaluation.recovery import Interval
from thrifty.frontier.candidates import Candidate

PREDICTED, DIVERGENCE, TASKS = "predicted", "divergence", "tasks"
"""How far a candidate came: only predicted, KL on a little text, or the last measurement with its tasks."""

CERTAIN = Interval(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Need:
    """Bytes that a recipe takes at the budget's context and batch: weights, workspace and the cache's bounds."""

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
class Prediction:
    """What follows from a recipe without running it. seconds: the roofline of a decode step of the whole batch at the
    budget's context, less than any machine takes. context_bytes: of one sequence's cache there. floor: the roofline of
    a step of one sequence that has read nothing. prefills: how often the prompt is read, in prefills of the
    uncompressed model, for what must look at it again; prefill: seconds of all of that, by the roofline.
    """

    candidate: Candidate
    need: Need
    seconds: float
    context_bytes: int
    floor: float
    prefills: float = 1.0
    prefill: float = 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second of one sequence."""
        return 1 / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the candidate."""
        values = dataclasses.asdict(self)
        del values["candidate"]
        return values

    @classmethod
    def from_dict(cls, candidate: Candidate, values: Mapping[str, Any]) -> Prediction:
        """What `as_dict` made."""
        return cls(candidate, **{**values, "need": Need(**values["need"])})


@dataclass(frozen=True)
class Scored:
    """A task's mean score and its recovery; None where the uncompressed model scores nothing."""

    score: float
    recovery: Interval | None
    items: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        recovery = self.recovery.as_dict() if self.recovery else None
        return {"score": self.score, "recovery": recovery, "items": self.items}


@dataclass(frozen=True)
class Measurement:
    """One row of the frontier.

    need: at the budget's context, exact. fits: whether need.peak is within the budget. The rest was measured
    in the run after a prompt of `prompt` tokens. ledger_peak, ledger_steady: bytes that the ledger counted.
    process_peak: the process's resident bytes at their highest (before the last rung: at the run's end), Python
    included. Rates in tokens a second. others: the share of the processors that other processes took meanwhile; where
    it is too much the rates are no facts (see `quiet`), and the prediction from bytes stands. quality: None for a
    baseline, which is compared with nothing. rung: which measurement it was, later ones take longer and tell more.
    tasks: by name, in the last one. predicted: the roofline of a decode step at the budget's context and batch,
    seconds; step: what the run lets expect there. quick: whether `step` is within the bound on latency.
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
    rung: int = 0
    stage: str = DIVERGENCE
    tasks: Mapping[str, Scored] = field(default_factory=dict)
    predicted: float | None = None
    step: float | None = None
    quick: bool = True
    others: float = 0.0

    @property
    def quiet(self) -> bool:
        """Whether the rates were measured on a machine that did little else."""
        return self.others <= DISTURBED

    @property
    def rate_from_bytes(self) -> float:
        """Tokens a second of a decode step that takes as long as its bytes at the budget's context: no machine is
        faster.
        """
        return 1 / self.predicted if self.predicted else self.decode_rate

    @property
    def kl(self) -> float:
        """Mean KL divergence from the baseline, nats; 0 for the baseline itself."""
        return self.quality.kl.value if self.quality else 0.0

    @property
    def eligible(self) -> bool:
        """Whether it can be served within the bounds on memory and latency."""
        return self.fits and self.quick and self.candidate.servable

    @property
    def recovery(self) -> Interval | None:
        """The mean recovery over the tasks that have one (next-token accuracy on the text is one of them); the errors
        of tasks are independent. None before the last measurement, and where no task has one.
        """
        if self.stage != TASKS:
            return None
        if self.quality is None:
            return CERTAIN
        recoveries = [scored.recovery for scored in self.tasks.values() if scored.recovery is not None]
        if self.quality.recovery is not None:
            recoveries.append(self.quality.recovery)
        return mean_of(recoveries) if recoveries else None

    @property
    def recovered(self) -> float:
        """The recovery as rows are ranked by it: what is beyond the baseline's is luck; where a task has none, nothing
        is known, which counts as 0.
        """
        return min(1.0, self.recovery.value) if self.recovery is not None else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        recovery = self.recovery
        return described(self.candidate, self.need, self.predicted) | {
            "fits": self.fits and self.quick,
            "measured_after_tokens": self.prompt,
            "ledger_peak_bytes": self.ledger_peak,
            "ledger_steady_bytes": self.ledger_steady,
            "process_peak_bytes": self.process_peak,
            "prefill_tok_s": round(self.prefill_rate, 2) if self.quiet else None,
            "decode_tok_s": round(self.decode_rate, 2) if self.quiet else None,
            "others_share": round(self.others, 3),
            "quality": self.quality.as_dict() if self.quality else None,
            "tasks": {name: scored.as_dict() for name, scored in self.tasks.items()},
            "recovery": recovery.as_dict() if recovery else None,
            "stage": self.stage,
        }


def mean_of(intervals: list[Interval]) -> Interval:
    """The mean of independent figures: half-widths add in squares."""
    count = len(intervals)
    value = sum(interval.value for interval in intervals) / count
    below = sum((interval.value - interval.low) ** 2 for interval in intervals) ** 0.5 / count
    above = sum((interval.high - interval.value) ** 2 for interval in intervals) ** 0.5 / count
    return Interval(value, value - below, value + above)


def described(candidate: Candidate, need: Need, predicted: float | None) -> dict[str, Any]:
    """What every row of the JSON document starts with."""
    recipe = candidate.recipe
    return {
        "recipe": candidate.label,
        "weights": recipe.weights,
        "cache": recipe.cache,
        "decoding": recipe.decoding,
        "grid": candidate.grid.value,
        "need_peak_bytes": need.peak,
        "need_steady_bytes": need.steady,
        "weights_bytes": need.weights,
        "predicted_decode_tok_s": round(1 / predicted, 2) if predicted else None,
    }


def only_predicted(prediction: Prediction, fits: bool) -> dict[str, Any]:
    """The row of the JSON document of a candidate that never ran."""
    nothing = (
        "measured_after_tokens",
        "ledger_peak_bytes",
        "ledger_steady_bytes",
        "process_peak_bytes",
        "prefill_tok_s",
        "decode_tok_s",
        "others_share",
        "quality",
        "recovery",
    )
    known = described(prediction.candidate, prediction.need, prediction.seconds)
    return known | {"fits": fits, **dict.fromkeys(nothing), "tasks": {}, "stage": PREDICTED}


def measured(
    predicted: Prediction,
    rung: int,
    values: Mapping[str, Any],
    tasks: dict[str, Scored] | None,
    *,
    fits: bool,
    batch: int,
    limit: float | None,
) -> Measurement:
    """The row of a run. values: as the workshop gives them. tasks: their scores, None where none were run. limit:
    seconds that a decode step of the batch may take.
    """
    step, others = predicted.seconds, values.get("others", 0.0)
    if others <= DISTURBED:
        step = expected_step(predicted, values["decode_rate"], values["cache_bytes"], batch)
    return Measurement(
        candidate=predicted.candidate,
        need=predicted.need,
        fits=fits,
        prompt=values["prompt"],
        ledger_peak=values["ledger_peak"],
        ledger_steady=values["ledger_steady"],
        process_peak=values["process_peak"],
        prefill_rate=values["prefill_rate"],
        decode_rate=values["decode_rate"],
        quality=quality_of(values["quality"]),
        rung=rung,
        stage=DIVERGENCE if tasks is None else TASKS,
        tasks=tasks or {},
        predicted=predicted.seconds,
        step=step,
        quick=limit is None or step <= limit,
        others=others,
    )


def expected_step(predicted: Prediction, decode_rate: float, cache_bytes: int, batch: int) -> float:
    """Seconds of a decode step of the batch at the budget's context: what one sequence took in a run that read
    `cache_bytes`, and what the roofline adds for what is read beyond that.
    """
    whole = batch * predicted.context_bytes
    per_byte = (predicted.seconds - predicted.floor) / whole if whole else 0.0
    return 1 / decode_rate + predicted.seconds - predicted.floor - per_byte * cache_bytes


def quality_of(values: dict[str, Any] | None) -> Quality | None:
    """What `Quality.as_dict` made."""
    if values is None:
        return None
    recovery = values["recovery"]
    return Quality(
        kl=Interval(**values["kl"]),
        top1=Interval(**values["top1"]),
        recovery=Interval(**recovery) if recovery else None,
        nll=values["nll"],
        tokens=values["tokens"],
    )


def on_frontier(row: Measurement, rows: list[Measurement]) -> bool:
    """Whether no other servable row is at least as good in bytes, divergence and the time of a decode step, and better
    in one. Time is the prediction at the budget's context, since rungs measure after different numbers of tokens.
    """
    rivals = [other for other in rows if other is not row and other.candidate.servable]
    return row.candidate.servable and not any(dominates(_costs(rival), _costs(row)) for rival in rivals)


def dominates(costs: Sequence[float], others: Sequence[float]) -> bool:
    """Whether costs are nowhere more than others, and somewhere less."""
    return all(a <= b for a, b in zip(costs, others, strict=True)) and costs != others


def _costs(row: Measurement) -> tuple[float, float, float]:
    return (row.need.peak, row.kl, 1 / row.rate_from_bytes)
