"""A study of four cells, and a task that scores what it is told and writes down what ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from thrifty.evaluation.comparison import TaskItems
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.studies.harness.study import AGAIN, Control, Format, Study
from thrifty.evaluation.tasks.task import Item, Record, Task, TaskTurn

KIVI = ({"technique": "kivi", "bits": 4},)
RTN = ({"technique": "rtn", "bits": 8},)
HARSH = Control("two bits", ({"technique": "kivi", "bits": 2},), "lose")
ABSENT = Control("a technique that is not there", ({"technique": "no-such-policy"},), "lose")


class Small(Study):
    """Weights as they are or in 8 bits, the cache as it is or in 4 bits."""

    title: ClassVar[str] = "small"
    papers: ClassVar[tuple[str, ...]] = ("a paper",)
    departs: ClassVar[tuple[str, ...]] = ("it is <small>",)
    weights: ClassVar[tuple[Format, ...]] = (Format("plain"), Format("eight", RTN))
    caches: ClassVar[tuple[Format, ...]] = (Format("full"), Format("four", KIVI))
    tasks: ClassVar[tuple[str, ...]] = ("told",)
    off_grid: ClassVar[bool] = False
    controls: ClassVar[tuple[Control, ...]] = (AGAIN, HARSH, ABSENT)


@dataclass(frozen=True, kw_only=True)
class Told(Task):
    """Scores by what the cell does: `cost` of each thing that it compresses, off 1. ran: (item, what ran). fails: of a
    recipe what cannot be measured. forgets: the second baseline answers otherwise.
    """

    name: ClassVar[str] = "told"
    metric: ClassVar[str] = "told"
    writes: ClassVar[bool] = True

    cost: Mapping[str, float] = field(default_factory=dict)
    fails: str = ""
    forgets: bool = False
    ran: list[tuple[str, str]] = field(default_factory=list, compare=False)

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        return [self.item(number, (1, 2), (TaskTurn((3,)),), 10) for number in range(count)]

    def run(self, engine: Any, item: Item, cache: Tables | None) -> Record:
        words = ["eight"] if "rtn" in engine.model.version else []
        words += [f"{table['technique']}-{table['bits']}" for table in cache or ()]
        what = " ".join(words) or "plain"
        if self.fails and self.fails in what:
            raise MeasurementError(f"{what} cannot be measured")
        again = self.forgets and (item.identity, what) in self.ran
        self.ran.append((item.identity, what))
        score = 1.0 - sum(self.cost.get(word, 0.0) for word in words) - 0.5 * again
        return Record("told", item.identity, score, f"the answer of {what}", 0.01, details={"nll": 3.0 - score})

    @property
    def label(self) -> str:
        return self.name


def work_of(task: Task, count: int) -> dict[str, TaskItems]:
    """A task with its first items, as `Run` takes it."""
    return {task.label: TaskItems(task, tuple(task.items(None, count, 0)))}
