"""Scores of tasks, and what a recipe keeps of the baseline's."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thrifty.errors import PromptError
from thrifty.evaluation import paired as intervals
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.paired import Clustered
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.tasks.task import Item, Record, Task

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

UNDEFINED = "undefined: the baseline scores 0"


def score(engine: Engine, task: Task, items: Iterable[Item], cache: Tables | None) -> Iterator[Record]:
    """Run items one after the other. cache: the recipe's cache tables, [] for the full cache."""
    for item in items:
        yield task.run(engine, item, cache)


def recovery(
    records: Sequence[Record], baseline: Sequence[Record], clusters: Mapping[str, int] | None = None
) -> Interval | None:
    """Score over the baseline's score, items paired by identity and resampled as pairs; None where the baseline
    scores nothing. clusters: the context of each item by its identity, its own where one is not named: items that share
    one are resampled together. The interval is Student's at least (see `paired`), and of one
    context alone all that a score can be.

    Raises MeasurementError where the two share no item.
    """
    own, reference = paired(records, baseline)
    ours, theirs = _clustered(own, clusters), _clustered(reference, clusters)
    if theirs.mean <= 0:
        return None
    drawn = intervals.ratio_interval(ours, theirs) if ours.count > 1 else None
    return _within(drawn, ours.mean / theirs.mean, 1 / theirs.mean)


def paired(records: Sequence[Record], baseline: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of the items that both have, in the same order. Raises MeasurementError where there are none."""
    reference = {(record.task, record.item): record for record in baseline}
    own = [record for record in records if (record.task, record.item) in reference]
    if not own:
        raise MeasurementError(f"{len(records)} records and {len(baseline)} of the baseline share no item")
    return own, [reference[record.task, record.item] for record in own]


@dataclass(frozen=True)
class Summary:
    """A task in one row. score None: no recipe ran. recovery None with a score: undefined. beside, beside_baseline:
    means over items of the figures beside the score, such as `nll`.
    """

    task: str
    metric: str
    items: int
    baseline: Interval
    score: Interval | None = None
    recovery: Interval | None = None
    beside: dict[str, float] = field(default_factory=dict)
    beside_baseline: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "task": self.task,
            "metric": self.metric,
            "items": self.items,
            "baseline": self.baseline.as_dict(),
            "score": self.score and self.score.as_dict(),
            "recovery": self.recovery and self.recovery.as_dict(),
            "undefined": UNDEFINED if self.score is not None and self.recovery is None else None,
            "beside": self.beside,
            "beside_baseline": self.beside_baseline,
        }


def summarize(
    name: str,
    metric: str,
    baseline: Sequence[Record],
    records: Sequence[Record] = (),
    clusters: Mapping[str, int] | None = None,
) -> Summary:
    """One row of the items that both sides have; of the baseline's where no recipe ran (`records` empty). clusters: see
    `recovery`.
    """
    if not records:
        return Summary(name, metric, len(baseline), _mean(baseline, clusters), beside_baseline=_beside(baseline))
    own, reference = paired(records, baseline)
    return Summary(
        name,
        metric,
        len(own),
        _mean(reference, clusters),
        _mean(own, clusters),
        recovery(own, reference, clusters),
        _beside(own),
        _beside(reference),
    )


def check_room(engine: Engine, task: Task, items: Sequence[Item]) -> None:
    """Raise PromptError where an item does not fit the engine's context, before anything runs."""
    limit = engine.probe().context
    needed = max((item.room for item in items), default=0)
    if needed > limit:
        beside = max(item.room - len(item.prompt) for item in items)
        raise PromptError(
            f"task '{task.label}' with --length {task.length} takes {needed} tokens, answer included; this model's "
            f"context holds {limit}: use at most --length {max(16, limit - beside)}"
        )


def check_alone(chosen: Iterable[Task], where: str) -> None:
    """Raise PromptError for a task that scores pairs of answers. where: what scores every answer alone."""
    pairs = [task.label for task in chosen if task.pairs]
    if pairs:
        raise PromptError(
            f"{where} scores every answer alone, and {', '.join(pairs)} compares two: leave it out, and use "
            "thrifty eval --recipe for it"
        )


def _mean(records: Sequence[Record], clusters: Mapping[str, int] | None) -> Interval:
    scores = _clustered(records, clusters)
    return _within(intervals.mean_interval(scores) if scores.count > 1 else None, scores.mean, 1.0)


def _within(drawn: Interval | None, value: float, most: float) -> Interval:
    """An interval between 0 and what a score can be; all of that where nothing was drawn."""
    return Interval(value, *((0.0, most) if drawn is None else (max(0.0, drawn.low), min(most, drawn.high))))


def _clustered(records: Sequence[Record], clusters: Mapping[str, int] | None) -> Clustered:
    """Scores, and what each shares with others: its context, or nothing."""
    known: Mapping[str, Hashable] = clusters or {}
    shared = tuple(known.get(record.item, record.item) for record in records)
    return Clustered(tuple(record.score for record in records), shared)


def _beside(records: Sequence[Record]) -> dict[str, float]:
    names = dict.fromkeys(
        name for record in records for name, value in record.details.items() if isinstance(value, float)
    )
    return {
        name: statistics.fmean(record.details[name] for record in records if name in record.details) for name in names
    }
