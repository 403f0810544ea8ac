"""The recovery protocol of "Give Me BF16 or Give Me Death" (2411.02355, §3) in short: a few number formats × tasks,
each with the score it keeps and how far its greedy text departs from the uncompressed model's. The whole grid, with
intervals of differences, controls and served cost, is the study `quantization`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.evaluation.comparison import BASELINE, TaskItems, of_side
from thrifty.evaluation.departure import departure
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.forecast import Run
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.scoring import Summary, check_room, paired, summarize
from thrifty.evaluation.tasks.task import Record, Task
from thrifty.recipe import Recipe

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.engines import Engines


@dataclass(frozen=True)
class Format:
    """A number format of weights or cache in the protocol."""

    label: str
    recipe: Recipe


FORMATS = (
    Format("W8A8: rtn 8, activations int8 per 32", Recipe(weights=[{"technique": "rtn", "bits": 8}])),
    Format("W4A8: rtn 4, activations int8 per 32", Recipe(weights=[{"technique": "rtn", "bits": 4}])),
    Format("cache: kivi 4", Recipe(cache=[{"technique": "kivi", "bits": 4}])),
    Format("cache: kivi 2", Recipe(cache=[{"technique": "kivi", "bits": 2}])),
)
"""The formats of the protocol, in the order of its table."""


@dataclass(frozen=True)
class FormatRow:
    """One format on one task. rouge_1, rouge_l: mean F1 with the baseline's text. same_tokens: mean number of first
    words that are the baseline's, of `tokens` words in its text. identical: share of texts that are the same.
    """

    format: str
    summary: Summary
    rouge_1: float
    rouge_l: float
    same_tokens: float
    tokens: float
    identical: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        own = {name: value for name, value in vars(self).items() if name != "summary"}
        return own | self.summary.as_dict()


class Protocol:
    """Formats are run one after the other, each with an engine of its own."""

    def __init__(self, tasks: Sequence[Task], count: int, seed: int, baseline: Engine) -> None:
        """Makes the items. Raises PromptError where one does not fit the model's context."""
        self.baseline = baseline
        self.work: list[TaskItems] = []
        for task in tasks:
            items = tuple(task.items(baseline.model.require_tokenizer(), count, seed))
            check_room(baseline, task, items)
            self.work.append(TaskItems(task, items))

    @property
    def total(self) -> int:
        """Items a format."""
        return sum(len(work.items) for work in self.work)

    def left(self, records: RecordFile, formats: Sequence[str]) -> Iterator[Run]:
        """The runs of the baseline and of formats that `records` does not hold yet."""
        for label in (BASELINE, *formats):
            for work in self.work:
                for item in work.items:
                    if records.get(label, work.task.label, item.identity) is None:
                        yield Run(work.task.effort(item), compresses=label != BASELINE)

    def run_all(self, records: RecordFile, engines: Engines) -> Iterator[Record]:
        """The baseline, then every format, each with an engine that is open while it runs."""
        yield from self.run_baseline(records)
        for form in FORMATS:
            with engines.beside(self.baseline, form.recipe) as engine:
                yield from self.run(records, form.label, engine, form.recipe.cache)

    def run_baseline(self, records: RecordFile) -> Iterator[Record]:
        """Run what `records` does not hold yet of the uncompressed model."""
        return self.run(records, BASELINE, self.baseline, [])

    def run(self, records: RecordFile, label: str, engine: Engine, cache: Tables) -> Iterator[Record]:
        """Run what `records` does not hold yet of a format."""
        for work in self.work:
            for item in work.items:
                held = records.get(label, work.task.label, item.identity)
                if held is None:
                    held = work.task.run(engine, item, cache)
                    records.add(label, held)
                yield held

    def rows(self, records: RecordFile, labels: Sequence[str]) -> list[FormatRow]:
        """A row a format and task of which any item is done."""
        table = []
        for label in labels:
            for work in self.work:
                own, reference = of_side(records, label, work), of_side(records, BASELINE, work)
                if own and reference:
                    table.append(_row(label, work.task, *paired(own, reference)))
        return table


def _row(label: str, task: Task, own: list[Record], reference: list[Record]) -> FormatRow:
    texts = departure([(mine.output, theirs.output) for mine, theirs in zip(own, reference, strict=True)])
    return FormatRow(label, summarize(task.label, task.metric, reference, own), **vars(texts))
