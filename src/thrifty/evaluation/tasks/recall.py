"""Recall of one key: a number in one sentence of a long prose."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks._haystack import NAMES, Haystack
from thrifty.evaluation.tasks.task import Item, Turn

NEEDLE = "The secret number of {name} is {number}."
QUESTION = "What is the secret number of {name}?"
LEAD = "The secret number of {name} is"


@dataclass(frozen=True, kw_only=True)
class Recall(Answering):
    """The needle in a haystack (Kamradt 2023; single-key retrieval of RULER, 2404.06654, §3.1).

    mode: see `Mode`. keys: sentences with a number, of which one is asked for. digits: of a number.
    """

    name: ClassVar[str] = "recall"
    metric: ClassVar[str] = "share of numbers found"

    mode: Mode = "agnostic"
    keys: Annotated[int, Field(ge=1, le=len(NAMES))] = 1
    digits: Annotated[int, Field(ge=2, le=12)] = 4

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        haystack, frame = Haystack(tokenizer), Frame.of(tokenizer)
        return [self._item(haystack, frame, seed, number) for number in range(count)]

    def _item(self, haystack: Haystack, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        facts = secrets(chance, self.keys, self.digits)
        needles = [NEEDLE.format(name=name, number=found) for name, found in facts]
        asked, expected = facts[0]
        question, lead = QUESTION.format(name=asked), LEAD.format(name=asked)
        around = len(frame.before) + (haystack.size(question) if self.mode == "aware" else 0)
        context = haystack.context(chance, self.length - around, needles)
        prompt, fed = frame.first(context, question, lead, self.mode)
        turns = (Turn(fed, (expected,)),)
        return self.item(number, prompt, turns, self.room(prompt, turns))


def secrets(chance: random.Random, count: int, digits: int) -> list[tuple[str, str]]:
    """(name, number) pairs, no name and no number twice."""
    numbers = chance.sample(range(10 ** (digits - 1), 10**digits), count)
    return [(name, str(number)) for name, number in zip(chance.sample(NAMES, count), numbers, strict=True)]
