"""The tasks of the last rung: every item's score is kept as it is made, and recovery is against the uncompressed
model's on the same items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty.frontier import doors
from thrifty.frontier.candidates import Candidate
from thrifty.frontier.measurement import Scored
from thrifty.frontier.state import State

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

DEFAULT_TASKS = ("recall",)
ITEMS = 24  # of every task


class Exam:
    """tasks: by name. items: of each. seed: which items. Raises RecipeError for an unknown task."""

    def __init__(self, tokenizer: Any, state: State, tasks: Sequence[str], items: int, seed: int) -> None:
        self._state = state
        self._tasks = [doors.load(name) for name in dict.fromkeys(tasks)]
        self._items = {task.name: task.items(tokenizer, items, seed) for task in self._tasks}

    @property
    def names(self) -> list[str]:
        """The tasks, in order."""
        return list(self._items)

    def complete(self, candidate: Candidate) -> bool:
        """Whether every item has its record."""
        return not any(self._missing(candidate, task.name) for task in self._tasks)

    def take(self, engine: Engine, candidate: Candidate) -> None:
        """Ask what was not asked yet. engine: one that holds the candidate's weights."""
        for task in self._tasks:
            missing = self._missing(candidate, task.name)
            for record in doors.score(engine, task, missing, candidate.recipe.cache):
                self._state.add("record", _key(candidate, task.name, record.item), dataclasses.asdict(record))

    def scores(self, candidate: Candidate, base: Candidate) -> dict[str, Scored]:
        """Every task's score, and its recovery against the records of `base`."""
        found = {}
        for task in self._tasks:
            records, reference = self._records(candidate, task.name), self._records(base, task.name)
            if not records:
                continue
            mean = sum(record.score for record in records) / len(records)
            found[task.name] = Scored(mean, doors.recovery(records, reference), len(records))
        return found

    def undefined(self, base: Candidate) -> list[str]:
        """Tasks at which `base` scores nothing: no recovery can be told, so nothing is chosen by them."""
        found = []
        for task in self._tasks:
            records = self._records(base, task.name)
            if records and not any(record.score for record in records):
                found.append(task.name)
        return found

    def seconds(self, candidate: Candidate) -> float:
        """What the candidate's records took."""
        return sum(record.seconds for task in self._tasks for record in self._records(candidate, task.name))

    def _missing(self, candidate: Candidate, task: str) -> list[doors.Item]:
        return [
            item
            for item in self._items[task]
            if self._state.find("record", _key(candidate, task, item.identity)) is None
        ]

    def _records(self, candidate: Candidate, task: str) -> list[doors.Record]:
        held = [self._state.find("record", _key(candidate, task, item.identity)) for item in self._items[task]]
        return [doors.Record(**values) for values in held if values is not None]


def _key(candidate: Candidate, task: str, item: str) -> str:
    return f"{task}|{item}|{candidate.key}"
