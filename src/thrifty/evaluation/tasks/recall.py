"""Recall of one key: a number in one sentence of a long prose."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.halves import Half
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks._haystack import NAMES, Haystack, numbers
from thrifty.evaluation.tasks.task import Item, TaskTurn, Tokens

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
        haystack, frame = Haystack(tokenizer, self.half), Frame.of(tokenizer)
        return [self._item(haystack, frame, seed, number) for number in range(count)]

    def _item(self, haystack: Haystack, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        facts, context = hidden(haystack, frame, chance, self.keys, self.digits, self.bound(frame), self.mode)
        name, expected = facts[0]
        prompt, fed = self.framed(frame, context, *asked(name))
        turns = (TaskTurn(fed, (expected,)),)
        return self.item(number, prompt, turns, self.room(prompt, turns))

    def bound(self, frame: Frame) -> int:
        """Tokens of the prose, the frame and a question that is part of it."""
        return self.length

    def framed(self, frame: Frame, context: str, question: str, lead: str) -> tuple[Tokens, Tokens]:
        """(what is compressed, what is fed after it)."""
        return frame.first(context, question, lead, self.mode)


def asked(name: str) -> tuple[str, str]:
    """(the question for a name's number, the beginning of its answer)."""
    return QUESTION.format(name=name), LEAD.format(name=name)


def hidden(
    haystack: Haystack, frame: Frame, chance: random.Random, count: int, digits: int, length: int, mode: Mode
) -> tuple[list[tuple[str, str]], str]:
    """(`count` names with their numbers, prose that tells them at random places) for a context of at most `length`
    tokens, the frame and, where `mode` says so, the first name's question included.
    """
    facts = secrets(chance, count, digits, haystack.half)
    needles = [NEEDLE.format(name=name, number=number) for name, number in facts]
    around = len(frame.before) + (haystack.size(asked(facts[0][0])[0]) if mode == "aware" else 0)
    return facts, haystack.context(chance, length - around, needles)


def secrets(chance: random.Random, count: int, digits: int, half: Half | None = None) -> list[tuple[str, str]]:
    """(name, number) pairs, no name and no number twice. half: see `numbers`."""
    chosen = chance.sample(numbers(half, digits), count)
    return [(name, str(number)) for name, number in zip(chance.sample(NAMES, count), chosen, strict=True)]
