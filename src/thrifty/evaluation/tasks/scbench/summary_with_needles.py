"""What functions do, and numbers that are hidden between them, in turn."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, SharedContext, in_turn
from thrifty.evaluation.tasks.ruler._words import drawn, keys
from thrifty.evaluation.tasks.scbench import _code
from thrifty.evaluation.tasks.task import Item, TaskTurn
from thrifty.evaluation.textual import rouge_l

NEEDLE = "# The pass key of {name} is {number}. Remember it."
ASK = "What is the pass key of {name}?"
LEAD = "The pass key of {name} is"


@dataclass(frozen=True, kw_only=True)
class SummaryWithNeedles(SharedContext):
    """SCBench's Mix.Sum+NIAH: the first question, and every second one after it, asks for a number that stands in a
    comment between functions, the others what a function does. Options: see `SharedContext`.
    """

    name: ClassVar[str] = "scbench-summary-with-needles"
    metric: ClassVar[str] = "share of numbers and ROUGE-L of summaries, over the questions"
    limit: ClassVar[int] = 48

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """As many functions as fit beside the numbers."""
        count = (self.questions + 1) // 2
        told = [(name, drawn(chance, "number")) for name in itertools.islice(keys(chance, "word", self.half), count)]
        needles = [NEEDLE.format(name=name, number=number) for name, number in told]
        around = frame.size(_code.OPENING) + sum(frame.size(needle + _code.GAP) for needle in needles)
        made = _code.drawn(chance, frame, room - around, self.half, self.questions - count)
        if made is None:
            raise self.too_short()
        asked, texts = made
        for needle in needles:
            texts.insert(chance.randint(0, len(texts)), needle)
        numbers = [_question(name, number) for name, number in told]
        questions = in_turn(numbers, [_code.for_its_summary(function) for function in asked])
        return Session(_code.OPENING + _code.GAP.join(texts), questions)

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """Whether the answer's first number is the expected one; F1 of the longest common subsequence of words."""
        (expected,) = turn.expected
        if not expected.isdigit():
            return rouge_l(answer, expected)
        number = re.search(r"\d+", answer)
        return float(number is not None and number[0] == expected)


def _question(name: str, number: str) -> Question:
    return Question(ASK.format(name=name), LEAD.format(name=name), (number,), f" {number}.")
