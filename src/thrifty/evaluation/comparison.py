"""A recipe beside the uncompressed model, item by item, so that an interrupted run has pairs to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from thrifty.evaluation.batched_runs import run_batched, width_of
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.forecast import Run
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.scoring import Summary, check_room, summarize
from thrifty.evaluation.tasks import labels
from thrifty.evaluation.tasks.task import Item, Record, Task

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

BASELINE, RECIPE = "baseline", "recipe"


@dataclass(frozen=True)
class TaskItems:
    """A task and its items."""

    task: Task
    items: tuple[Item, ...]


class Comparison:
    """Tasks × items × {baseline, recipe}. Iterate `run`; `summaries` tells what is known so far.

    baseline: an engine of the uncompressed model. recipe: an engine with the recipe's weights (the same one where it
    has none), None where only the baseline runs. cache: the recipe's cache tables.
    """

    def __init__(
        self, tasks: Sequence[Task], count: int, seed: int, baseline: Engine, recipe: Engine | None, cache: Tables
    ) -> None:
        """Makes the items. Raises PromptError where one does not fit the model's context."""
        self.baseline, self.recipe, self.cache = baseline, recipe, cache
        tokenizer = baseline.model.require_tokenizer()
        self.work: list[TaskItems] = []
        for task in tasks:
            items = tuple(task.items(tokenizer, count, seed))
            check_room(baseline, task, items)
            self.work.append(TaskItems(task, items))

    @property
    def total(self) -> int:
        """Items over all tasks."""
        return sum(len(work.items) for work in self.work)

    def left(self, records: RecordFile) -> Iterator[Run]:
        """The runs that `records` does not hold yet."""
        for work in self.work:
            for item in work.items:
                held = [records.get(side, work.task.label, item.identity) for side in (BASELINE, RECIPE)]
                if held[0] is None or (self.recipe is not None and held[1] is None):
                    effort = work.task.effort(item)
                    yield Run(effort, compresses=False)
                    if self.recipe is not None:
                        yield Run(effort, compresses=True)

    def run(self, records: RecordFile) -> Iterator[tuple[Task, Item]]:
        """Run what `records` does not hold yet; yields after every item, those from an earlier run first."""
        for work in self.work:
            missing = [item for item in work.items if not self._held(records, work.task, item)]
            yield from ((work.task, item) for item in work.items if item not in missing)
            if type(work.task).compare is not Task.compare:  # it looks at both sides of an item together
                for item in missing:
                    self._run(records, work.task, item)
                    yield work.task, item
                continue
            width = width_of(self.baseline, max((item.room for item in missing), default=1))
            for start in range(0, len(missing), width):
                yield from self._run_together(records, work.task, missing[start : start + width])

    def summaries(self, records: RecordFile) -> list[Summary]:
        """A row a task of which any item is done."""
        rows = []
        names = labels([work.task for work in self.work])
        for name, work in zip(names, self.work, strict=True):
            baseline = of_side(records, BASELINE, work)
            recipe = of_side(records, RECIPE, work)
            if (recipe or self.recipe is None) and baseline:
                clusters = {item.identity: item.cluster for item in work.items}
                row = summarize(name, work.task.metric, baseline, recipe, clusters)
                ours, theirs = work.task.over(recipe), work.task.over(baseline)
                rows.append(replace(row, beside=row.beside | ours, beside_baseline=row.beside_baseline | theirs))
        return rows

    def _held(self, records: RecordFile, task: Task, item: Item) -> bool:
        sides = [BASELINE] if self.recipe is None else [BASELINE, RECIPE]
        return all(records.get(side, task.label, item.identity) is not None for side in sides)

    def _run_together(self, records: RecordFile, task: Task, items: Sequence[Item]) -> Iterator[tuple[Task, Item]]:
        """Every item's baseline, then the recipe's side of it, several items at a time."""
        sides: list[tuple[str, Engine, Tables]] = [(BASELINE, self.baseline, [])]
        if self.recipe is not None:
            sides.append((RECIPE, self.recipe, self.cache))
        for side, engine, cache in sides:
            last = side == sides[-1][0]
            missing = [item for item in items if records.get(side, task.label, item.identity) is None]
            if last:
                yield from ((task, item) for item in items if item not in missing)
            for place, record in run_batched(engine, [partial(task.run, item=item, cache=cache) for item in missing]):
                records.add(side, record)
                if last:
                    yield task, missing[place]

    def _run(self, records: RecordFile, task: Task, item: Item) -> None:
        """A task that compares the two sides of an item itself."""
        if self.recipe is None:
            records.add(BASELINE, task.run(self.baseline, item, []))
            return
        for side, record in zip(
            (BASELINE, RECIPE), task.compare(self.baseline, self.recipe, item, self.cache), strict=True
        ):
            if records.get(side, task.label, item.identity) is None:
                records.add(side, record)


def of_side(records: RecordFile, side: str, work: TaskItems) -> list[Record]:
    """The records of one side of a task, in the order of its items."""
    held = (records.get(side, work.task.label, item.identity) for item in work.items)
    return [record for record in held if record is not None]
