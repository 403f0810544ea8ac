"""What a task is: items made from a seed, and a score for what the model does with one."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.halves import Half

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class TaskTurn:
    """One question. tokens: what is fed before the model answers, at least one. expected: what the answer must
    hold, all of it for a score of 1. options: for tasks that choose, the token ids of every option. right: a right
    answer's tokens, where a conversation may go on from it instead of the model's own.
    """

    tokens: Tokens
    expected: tuple[str, ...] = ()
    options: tuple[Tokens, ...] = ()
    right: Tokens = ()


@dataclass(frozen=True)
class Item:
    """One question of a task, or several over one context.

    identity: tells it from all other items, and changes with its content. prompt: token ids that are prefilled,
    and compressed before anything is scored. turns: what follows. room: tokens that a run holds at most, prompt
    and answers together. material: what else the task needs to grade it, JSON-ready. cluster: the number of the context
    (document, template) that it may share with other items of its task; their scores are no independent evidence.
    """

    identity: str
    prompt: Tokens
    turns: tuple[TaskTurn, ...]
    room: int
    material: Mapping[str, Any] = field(default_factory=dict)
    cluster: int = 0


@dataclass(frozen=True)
class Record:
    """What came of one item. score: 0 to 1. output: the model's words (or its choice). seconds: wall time.
    expected: what was right. details: figures beside the score, JSON-ready.
    """

    task: str
    item: str
    score: float
    output: str
    seconds: float
    expected: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """A record from `as_dict`, other keys left out. Raises KeyError, TypeError or ValueError where it is none."""
        return cls(
            task=str(values["task"]),
            item=str(values["item"]),
            score=float(values["score"]),
            output=str(values["output"]),
            seconds=float(values["seconds"]),
            expected=str(values["expected"]),
            details=dict(values["details"]),
        )


@dataclass(frozen=True)
class Answered:
    """An item and what a model did with it."""

    item: Item
    record: Record


@dataclass(frozen=True)
class Effort:
    """What a run of an item takes. prompt: tokens that are prefilled, `prefills` times. steps: the most tokens that
    follow, fed or chosen.
    """

    prompt: int
    prefills: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of all tasks. length: tokens of the compressed context, at most. half: see `evaluation.halves`.

    An item depends on half, seed and number alone, so the first ten of fifty are those of ten.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    writes: ClassVar[bool] = False  # whether `output` is text of the model's own
    pairs: ClassVar[bool] = False  # whether a score is of two answers, see `compare`: one alone has none
    package: ClassVar[str] = ""  # the one that items are read from, where they are not made at any length

    length: Annotated[int, Field(ge=16)] = 512
    half: Half = "judged"

    @abstractmethod
    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        """The first `count` items of a seed. Raises PromptError where the length leaves no room for one."""

    @abstractmethod
    def run(self, engine: Engine, item: Item, cache: Tables | None) -> Record:
        """Score one item. cache: the recipe's cache tables, [] for the full cache, None for the engine's own.

        Raises MeasurementError where the tables claim to compress and nothing compressed was read.
        """

    def effort(self, item: Item) -> Effort:
        """What a run of an item takes, for telling its time."""
        return Effort(len(item.prompt), 1, item.room - len(item.prompt))

    def compare(self, baseline: Engine, engine: Engine, item: Item, cache: Tables | None) -> tuple[Record, Record]:
        """(the baseline's record, the recipe's). baseline: an engine of the uncompressed model, or the same one."""
        return self.run(baseline, item, []), self.run(engine, item, cache)

    def scrambled(self, engine: Engine, own: Answered, others: Sequence[Answered]) -> float:
        """0 to 1: the mean score of what the uncompressed model did with an item where other items' answers count as
        right. A task that measures something gives about chance. engine: of the uncompressed model, for what the
        record does not hold. others: at least one. Raises MeasurementError for a task that has no such control.
        """
        raise MeasurementError(f"the task '{self.name}' has no control with scrambled answers")

    def over(self, records: Sequence[Record]) -> dict[str, float]:
        """Figures of all records of one side together, to be shown beside the mean score."""
        return {}

    @property
    def label(self) -> str:
        """The name with the options that differ from their defaults, as `parse` reads it; length left out."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name != "length" and getattr(self, field.name) != field.default
        ]
        return ":".join([self.name, *changed])

    def chance(self, seed: int, number: int) -> random.Random:
        """The random numbers of one item: another stream in either half."""
        stream = f"{seed}" if self.half == "judged" else f"{self.half}/{seed}"
        return random.Random(f"{self.name}/{stream}/{number}")

    def item(
        self,
        number: int,
        prompt: Tokens,
        turns: tuple[TaskTurn, ...],
        room: int,
        material: Mapping[str, Any] | None = None,
        cluster: int | None = None,
    ) -> Item:
        """An item, its identity made from its number and content. cluster: its own number where it is None."""
        content = json.dumps(
            [
                prompt,
                [[turn.tokens, turn.expected, turn.options, *filter(None, [turn.right])] for turn in turns],
                material or {},
            ]
        )
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        return Item(f"{number}-{digest}", prompt, turns, room, material or {}, number if cluster is None else cluster)
