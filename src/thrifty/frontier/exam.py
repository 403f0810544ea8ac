"""The tasks of the last rung: every item's score is kept as it is made, and recovery is against the uncompressed
model's on the same items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty.evaluation import scoring, tasks
from thrifty.evaluation.paired import Clustered, cluster_of, mean_over
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.tasks.task import Item, Record, Task
from thrifty.frontier.candidates import Candidate
from thrifty.frontier.measurement import Scored
from thrifty.frontier.space import shortened
from thrifty.frontier.state import SearchState

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

DEFAULT_TASKS = ("recall", "choice")
ITEMS = 12  # of every task
LENGTH = 512  # tokens of an item's compressed context, unless the task says otherwise


class Exam:
    """names: tasks and groups as `tasks.parse_all` reads them. items: of each. seed: which items. longest: tokens
    that a context may have. Raises TaskError for an unknown task, PromptError where one has no room.
    """

    def __init__(
        self, tokenizer: Any, state: SearchState, names: Sequence[str], items: int, seed: int, longest: int = LENGTH
    ) -> None:
        self._state = state
        chosen = tasks.parse_all(names, length=min(LENGTH, longest))
        self._tasks: dict[str, Task] = dict(zip(tasks.labels(chosen), chosen, strict=True))
        self._items = {label: task.items(tokenizer, items, seed) for label, task in self._tasks.items()}

    @property
    def names(self) -> list[str]:
        """The tasks, in order."""
        return list(self._items)

    @property
    def length(self) -> int:
        """Tokens of the longest context that is asked about."""
        return max((task.length for task in self._tasks.values()), default=0)

    def steps(self, items: int | None = None) -> float:
        """Tokens that are fed or said after the contexts of the first `items` questions of every task, at most."""
        return float(sum(_steps(item) for asked in self._items.values() for item in asked[:items]))

    def count(self, items: int | None = None) -> int:
        """Questions of all tasks, the first `items` of each."""
        return sum(len(asked[:items]) for asked in self._items.values())

    def complete(self, candidate: Candidate, items: int | None = None) -> bool:
        """Whether every item (the first `items` of every task) has its record."""
        return not any(self._missing(candidate, label, items) for label in self._tasks)

    def take(self, engine: Engine, candidate: Candidate, full_prefix: int, items: int | None = None) -> None:
        """Ask what was not asked yet of the first `items` of every task. engine: one that holds the candidate's
        weights. full_prefix: the prompt that the candidate's budgets in tokens are meant for; they shrink with the
        length of an item's context.

        Raises MeasurementError where nothing of an item would be compressed.
        """
        for label, task in self._tasks.items():
            scoring.check_room(engine, task, self._items[label])
            cache = shortened(candidate, task.length / full_prefix).recipe.cache
            for record in scoring.score(engine, task, self._missing(candidate, label, items), cache):
                self._state.add("record", _key(candidate, label, record.item), record.as_dict())

    def scores(self, candidate: Candidate, base: Candidate, items: int | None = None) -> dict[str, Scored]:
        """Every task's score over its first `items`, and its recovery against the records of `base`."""
        scores = {}
        for label in self._tasks:
            records, reference = (self._records(taker, label, items) for taker in (candidate, base))
            if not records:
                continue
            mean = sum(record.score for record in records) / len(records)
            recovery = scoring.recovery(records, reference) if reference else None
            scores[label] = Scored(mean, recovery, len(records))
        return scores

    def difference(self, candidate: Candidate, other: Candidate) -> Interval | None:
        """The candidate's score minus the other's on the questions that both were asked, mean over the tasks, with the
        interval over their contexts; None where a task has too few of them.
        """
        parts = []
        for label, asked in self._items.items():
            held = [
                (self._record(candidate, label, item), self._record(other, label, item), cluster_of(item))
                for item in asked
            ]
            both = [(own.score - theirs.score, name) for own, theirs, name in held if own and theirs]
            if len({name for _, name in both}) < 2:
                return None
            parts.append(Clustered(tuple(value for value, _ in both), tuple(name for _, name in both)))
        return mean_over(parts) if parts else None

    def undefined(self, base: Candidate) -> list[str]:
        """Tasks at which `base` scores nothing: no recovery can be told, so nothing is chosen by them."""
        labels = []
        for label in self._tasks:
            records = self._records(base, label)
            if records and not any(record.score for record in records):
                labels.append(label)
        return labels

    def seconds(self, candidate: Candidate, items: int | None = None) -> float:
        """What the candidate's records of the first `items` of every task took."""
        return sum(record.seconds for label in self._tasks for record in self._records(candidate, label, items))

    def _missing(self, candidate: Candidate, label: str, items: int | None) -> list[Item]:
        return [
            item
            for item in self._items[label][:items]
            if self._state.find("record", _key(candidate, label, item.identity)) is None
        ]

    def _records(self, candidate: Candidate, label: str, items: int | None = None) -> list[Record]:
        held = [self._record(candidate, label, item) for item in self._items[label][:items]]
        return [record for record in held if record is not None]

    def _record(self, candidate: Candidate, label: str, item: Item) -> Record | None:
        values = self._state.find("record", _key(candidate, label, item.identity))
        return None if values is None else Record.from_dict(values)


def _steps(item: Item) -> int:
    fed = sum(len(turn.tokens) + sum(map(len, turn.options)) for turn in item.turns)
    return max(fed, item.room - len(item.prompt))


def _key(candidate: Candidate, label: str, item: str) -> str:
    return f"{label}|{item}|{candidate.key}"
