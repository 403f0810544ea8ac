"""Recall of one key as claims measure it: the task `recall` with its question at the end of what is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thrifty.evaluation import tasks
from thrifty.evaluation.scoring import score
from thrifty.evaluation.tasks.task import Item, Task

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.forcing import Tables


def needles(tokenizer: Any, tokens: int, count: int, seed: int = 0) -> list[Item]:
    """`count` questions of at most `tokens` prompt tokens, their keys at random places of the text."""
    return _task(length=tokens).items(tokenizer, count, seed)


def recalled(engine: Engine, questions: Sequence[Item], cache: Tables) -> list[bool]:
    """Whether each greedy answer under a cache recipe holds the number."""
    return [record.score == 1.0 for record in score(engine, _task(), questions, cache)]


def _task(**length: int) -> Task:
    return tasks.load("recall", mode="aware", **length)
