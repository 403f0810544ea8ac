"""The figures of a grid from its records: by cell and task scores, paired differences from the baseline, what the
setting could tell; over the tasks the mean; of weights and cache together what goes beyond the sum of both alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from thrifty.evaluation.comparison import TaskItems
from thrifty.evaluation.departure import Departure, departure
from thrifty.evaluation.paired import (
    Clustered,
    cluster_of,
    difference_interval,
    mean_interval,
    mean_over,
    ratio_interval,
    resolution,
)
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.studies.harness.grid import Cell, Grid
from thrifty.evaluation.studies.harness.state import StudyState
from thrifty.evaluation.tasks.task import Item, Record

LEAST = 2  # clusters that an interval takes
UNTOLD = "no difference told"


@dataclass(frozen=True)
class TaskFigures:
    """One cell on one task, over the items that it and the baseline have. difference: of the score, own − baseline.
    tells: the difference that these items can tell from none. excess: of the mean negative log-likelihood, nats, where
    the task has one. texts: where the task writes.
    """

    task: str
    metric: str
    items: int
    clusters: int
    score: Interval
    baseline: float
    difference: Interval
    recovery: Interval | None
    tells: float
    excess: Interval | None = None
    texts: Departure | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"reading": reading(self.difference)}


@dataclass(frozen=True)
class CellFigures:
    """One cell. difference: the mean over tasks of the differences (those aside left out), None while a task has too
    few items; tells: as of a task. beyond: what weights and cache lose together beyond what both lose alone (negative:
    more than the sum), None where one of them is uncompressed.
    """

    cell: Cell
    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    difference: Interval | None = None
    beyond: Interval | None = None

    @property
    def tells(self) -> float | None:
        """The difference of the mean that these items can tell from none."""
        return None if self.difference is None else resolution(self.difference)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "label": self.cell.label,
            "weights": self.cell.weights.name,
            "cache": self.cell.cache.name,
            "recipe": self.cell.recipe.as_dict(),
            "control": None if self.cell.control is None else self.cell.control.must,
            "tasks": {name: figures.as_dict() for name, figures in self.tasks.items()},
            "difference": None if self.difference is None else self.difference.as_dict(),
            "reading": None if self.difference is None else reading(self.difference),
            "tells": self.tells,
            "beyond_the_sum": None if self.beyond is None else self.beyond.as_dict(),
        }


@dataclass(frozen=True)
class Pairs:
    """Records of a cell and of the baseline, of the items that both have."""

    own: tuple[Record, ...]
    baseline: tuple[Record, ...]
    items: tuple[Item, ...]

    @property
    def clusters(self) -> tuple[str, ...]:
        """Of each item."""
        return tuple(map(cluster_of, self.items))

    @property
    def enough(self) -> bool:
        """Whether an interval can be told."""
        return len(set(self.clusters)) >= LEAST

    @property
    def scores(self) -> tuple[Clustered, Clustered]:
        """(the cell's, the baseline's)."""
        return self.values([record.score for record in self.own], [record.score for record in self.baseline])

    def values(
        self, own: Sequence[float], baseline: Sequence[float], *, bounded: bool = True
    ) -> tuple[Clustered, Clustered]:
        """Other values of the same items."""
        clusters = self.clusters
        return Clustered(tuple(own), clusters, bounded), Clustered(tuple(baseline), clusters, bounded)


class Figures:
    """Of a grid's cells, from what a state holds. work: tasks with their items. aside: tasks that do not count in the
    mean.
    """

    def __init__(self, grid: Grid, work: Mapping[str, TaskItems], state: StudyState, aside: Sequence[str] = ()) -> None:
        self._grid, self._work, self._state = grid, work, state
        self._counting = [label for label, own in work.items() if own.task.name not in aside]

    def of(self, cell: Cell) -> CellFigures:
        """The figures of one cell so far."""
        pairs = {label: self._paired(cell, own) for label, own in self._work.items()}
        known = {label: own for label, own in pairs.items() if own.enough}
        tasks = {label: _of_task(label, self._work[label], own) for label, own in known.items()}
        if not self._counting or not all(label in known for label in self._counting):
            return CellFigures(cell, tasks)
        differences = []
        for label in self._counting:
            own, baseline = known[label].scores
            differences.append(own.minus(baseline))
        return CellFigures(cell, tasks, mean_over(differences), self._beyond(cell))

    def equal(self, cell: Cell) -> tuple[int, int]:
        """(items that both have, of them those where all that came of them is the baseline's, to the bit)."""
        asked = same = 0
        for work in self._work.values():
            pairs = self._paired(cell, work)
            for mine, theirs in zip(pairs.own, pairs.baseline, strict=True):
                asked += 1
                same += _outcome(mine) == _outcome(theirs)
        return asked, same

    def between(self, cell: Cell, other: Cell) -> Interval | None:
        """The mean over tasks of the cell's score less another one's, items paired; None while a task has too few."""
        parts = []
        for label in self._counting:
            pairs = self._paired(cell, self._work[label], other)
            if not pairs.enough:
                return None
            own, theirs = pairs.scores
            parts.append(own.minus(theirs))
        return mean_over(parts) if parts else None

    def baseline_mean(self) -> float | None:
        """The uncompressed model's mean score over the tasks that count, None while one has no items."""
        own = self.of(self._grid.baseline).tasks
        if not self._counting or not all(label in own for label in self._counting):
            return None
        return sum(own[label].baseline for label in self._counting) / len(self._counting)

    def _paired(self, cell: Cell, work: TaskItems, other: Cell | None = None) -> Pairs:
        """Of the cell and another one, by default the uncompressed one."""
        own, baseline, items = [], [], []
        for item in work.items:
            mine, theirs = (self._record(side, work, item) for side in (cell, other or self._grid.baseline))
            if mine is not None and theirs is not None:
                own.append(mine)
                baseline.append(theirs)
                items.append(item)
        return Pairs(tuple(own), tuple(baseline), tuple(items))

    def _record(self, cell: Cell, work: TaskItems, item: Item) -> Record | None:
        return self._state.record(cell.key, work.task.label, item.identity)

    def _beyond(self, cell: Cell) -> Interval | None:
        """(joint − weights alone) − (cache alone − baseline), item by item."""
        base = self._grid.baseline
        if cell.control or cell.weights == base.weights or cell.cache == base.cache:
            return None
        cells = cell, Cell(cell.weights, base.cache), Cell(base.weights, cell.cache), base
        parts = []
        for label in self._counting:
            part = self._interplay(cells, self._work[label])
            if part is None or part.count < LEAST:
                return None
            parts.append(part)
        return mean_over(parts)

    def _interplay(self, cells: Sequence[Cell], work: TaskItems) -> Clustered | None:
        """joint − weights − cache + baseline of the items that all four have."""
        values, clusters = [], []
        for item in work.items:
            scores = [record.score for cell in cells if (record := self._record(cell, work, item)) is not None]
            if len(scores) == len(cells):
                joint, weights, cache, baseline = scores
                values.append(joint - weights - cache + baseline)
                clusters.append(cluster_of(item))
        return Clustered(tuple(values), tuple(clusters)) if values else None


def _outcome(record: Record) -> tuple[float, str, dict[str, Any]]:
    """Of a record what the model decides: score, words, and the figures beside them."""
    return record.score, record.output, dict(record.details)


def reading(difference: Interval) -> str:
    """What an interval of a difference says."""
    if difference.high < 0:
        return "lower"
    return "higher" if difference.low > 0 else UNTOLD


def _of_task(label: str, work: TaskItems, pairs: Pairs) -> TaskFigures:
    own, baseline = pairs.scores
    difference = difference_interval(own, baseline)
    texts = [(mine.output, theirs.output) for mine, theirs in zip(pairs.own, pairs.baseline, strict=True)]
    return TaskFigures(
        task=label,
        metric=work.task.metric,
        items=len(pairs.items),
        clusters=own.count,
        score=mean_interval(own),
        baseline=baseline.mean,
        difference=difference,
        recovery=ratio_interval(own, baseline),
        tells=resolution(difference),
        excess=_excess(pairs),
        texts=departure(texts) if work.task.writes else None,
    )


def _excess(pairs: Pairs) -> Interval | None:
    """Of the negative log-likelihood, where both sides have it."""
    if not all("nll" in record.details for record in (*pairs.own, *pairs.baseline)):
        return None
    own, baseline = ([float(record.details["nll"]) for record in side] for side in (pairs.own, pairs.baseline))
    return difference_interval(*pairs.values(own, baseline, bounded=False))
