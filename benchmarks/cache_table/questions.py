"""What every row is asked: tasks at one length, and a longer prompt at which speed and bytes are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.evaluation import tasks
from thrifty.evaluation.tasks.task import Item, Task

SPEED = "speed"
"""The part of a row that is no task."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Questions:
    """items: by the task's label. context, steps: prompt and decoded tokens of the speed measurement; no context, no
    such part."""

    tasks: dict[str, Task]
    items: dict[str, list[Item]]
    context: int
    steps: int

    @property
    def parts(self) -> list[str]:
        """What a row is made of: what any machine answers alike first, what must have the machine to itself last."""
        return [*self.tasks, *([SPEED] if self.context else [])]


def questions(tokenizer: Any, names: Sequence[str], length: int, items: int, context: int, steps: int) -> Questions:
    """The questions of seed 0. context: 0 leaves the speed out. Raises TaskError or PromptError."""
    found = tasks.parse_all(names, length=length)
    by_label = dict(zip(tasks.labels(found), found, strict=True))
    made = {label: task.items(tokenizer, items, 0) for label, task in by_label.items()}
    return Questions(by_label, made, context, steps)
