"""The control of every task: with other items' answers taken for right, the score must fall.

A task whose scrambled score is not below its real one by the interval measures nothing on this model: the model cannot
do it, or the score pays for something else than what was asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.errors import PromptError
from thrifty.evaluation.comparison import BASELINE, TaskItems, of_side
from thrifty.evaluation.paired import Clustered, cluster_of, mean_interval
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.tasks import labels
from thrifty.evaluation.tasks.task import Answered

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.records import RecordFile

PARTNERS = 4  # items whose answers are tried on each


@dataclass(frozen=True)
class Scrambled:
    """score: of the uncompressed model. scrambled: with other items' answers for right. difference: of the two, items
    paired, and those that share a context resampled together.
    """

    task: str
    items: int
    score: float
    scrambled: float
    difference: Interval

    @property
    def passed(self) -> bool:
        """Whether the score certainly falls."""
        return self.difference.low > 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "task": self.task,
            "items": self.items,
            "score": self.score,
            "scrambled": self.scrambled,
            "difference": self.difference.as_dict(),
            "passed": self.passed,
        }


def scramble(engine: Engine, works: Sequence[TaskItems], records: RecordFile) -> Iterator[Scrambled]:
    """The control of every task whose items the uncompressed model has done. engine: of that model.

    Raises PromptError where a task has fewer than 2 items.
    """
    for name, work in zip(labels([work.task for work in works]), works, strict=True):
        done = of_side(records, BASELINE, work)
        held = {record.item: record for record in done}
        answered = [Answered(item, held[item.identity]) for item in work.items if item.identity in held]
        if len(answered) < 2:
            raise PromptError(
                f"the control of '{name}' takes 2 items or more, {len(answered)} are done; use --items 20"
            )
        yield control(engine, name, work, answered)


def control(engine: Engine, name: str, work: TaskItems, answered: Sequence[Answered]) -> Scrambled:
    """The control of one task: every item against the next ones, in a circle. Raises MeasurementError where all items
    share one context.
    """
    count = len(answered)
    fallen = []
    for place, own in enumerate(answered):
        others = [answered[(place + step) % count] for step in range(1, min(PARTNERS, count - 1) + 1)]
        fallen.append(work.task.scrambled(engine, own, others))
    scores = [own.record.score for own in answered]
    differences = tuple(score - scrambled for score, scrambled in zip(scores, fallen, strict=True))
    clusters = tuple(cluster_of(own.item) for own in answered)
    difference = mean_interval(Clustered(differences, clusters))
    return Scrambled(name, count, statistics.fmean(scores), statistics.fmean(fallen), difference)
