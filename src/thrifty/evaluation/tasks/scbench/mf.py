"""Extremes and the middle of a long list of numbers."""

from __future__ import annotations

import itertools
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, SharedContext, filled
from thrifty.evaluation.tasks.task import Item, TaskTurn

LOWEST, WIDEST = range(100, 4000), range(2000, 6000)  # the least number that may come, and how many may
LEAST = 9  # different numbers of a list
OPENING = "Below is a list of numbers; you will be asked about the whole list.\n\n"
ASK = "What is the {which} number in the list above?"
LEAD = "The {which} number in the list is"
WHICH: dict[str, Callable[[Sequence[int]], int]] = {
    "largest": lambda numbers: sorted(numbers)[-1],
    "second largest": lambda numbers: sorted(set(numbers))[-2],
    "smallest": lambda numbers: sorted(numbers)[0],
    "second smallest": lambda numbers: sorted(set(numbers))[1],
    "median": statistics.median_low,
}


@dataclass(frozen=True, kw_only=True)
class MathFind(SharedContext):
    """SCBench's Math.Find: the largest, smallest, their neighbours and the median of a list. The first number of the
    answer counts. Options: see `SharedContext`.
    """

    name: ClassVar[str] = "scbench-mf"
    limit: ClassVar[int] = 8

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many numbers as fit."""
        least, many = chance.choice(LOWEST), chance.choice(WIDEST)  # so that no extreme can be guessed
        drawn = (str(least + chance.randrange(many)) for _ in itertools.count())
        listed = filled(lambda number: frame.size(f" {number},"), room - frame.size(OPENING), drawn)
        numbers = [int(number) for number in listed]
        if len(set(numbers)) < LEAST:
            raise self.too_short()
        asked = chance.sample(list(WHICH), self.questions)
        return Session(OPENING + ", ".join(listed), tuple(_question(which, numbers) for which in asked))

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """Whether the first number is the right one."""
        number = re.search(r"\d+", answer)
        return float(number is not None and number[0] == turn.expected[0])


def _question(which: str, numbers: Sequence[int]) -> Question:
    right = str(WHICH[which](numbers))
    return Question(ASK.format(which=which), LEAD.format(which=which), (right,), f" {right}.")
