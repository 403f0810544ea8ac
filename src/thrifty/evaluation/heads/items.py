"""Questions for the head probes: a needle in prose, with the places of its tokens.

Retrieval (HeadKV-R, arXiv 2410.19258, §3.1): one sentence with a number. Retrieval and reasoning (R2): a sentence that
says which of two numbers counts, the wrong number and the right one, in either order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.errors import PromptError
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame
from thrifty.evaluation.tasks._haystack import NAMES, Haystack

DIGITS = 5
TOLD, ASKED = "The secret number of {name} is", "What is the secret number of {name}?"


@dataclass(frozen=True)
class Riddle:
    """reason, wrong, right: what is told. question: what is asked. The answer begins as `right` does: models of a few
    hundred million parameters answer no riddle that leaves the choice of words to them.
    """

    reason: str
    wrong: str
    right: str
    question: str


RIDDLES = (
    Riddle(
        "The clerk of {name} changed its code last week, and only the new code opens the door.",
        "The old code of {name} was",
        "The new code of {name} is",
        "Which code opens the door of {name} today?",
    ),
    Riddle(
        "Travellers to {name} pay with the secret number and never with the telephone number.",
        "The telephone number of {name} is",
        "The secret number of {name} is",
        "With which number do travellers to {name} pay?",
    ),
    Riddle(
        "Anna asked for the secret number of {name}, not for that of its neighbour.",
        "The neighbour of {name} has the number",
        "The secret number of {name} is",
        "What is the secret number of {name} that Anna asked for?",
    ),
)


@dataclass(frozen=True)
class ProbeItem:
    """tokens: the prompt and the answer, whose `answer` tokens are the last. needle: positions of all that was told;
    correct: those of the answer in it.
    """

    tokens: tuple[int, ...]
    answer: int
    needle: range
    correct: range


class Pieces:
    """Token ids put together from texts, so that places are known."""

    def __init__(self, tokenizer: Any, start: Sequence[int] = ()) -> None:
        self.tokens = list(start)
        self._tokenizer = tokenizer

    def add(self, text: str) -> range:
        """Append a text; the positions of its tokens."""
        first = len(self.tokens)
        self.tokens += self._tokenizer.encode(text, add_bos=False)
        return range(first, len(self.tokens))


class ProbeItems:
    """Makes the questions of one model. Building it counts the tokens of every sentence of the prose."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._haystack = Haystack(tokenizer)
        self._frame = Frame.of(tokenizer)

    def make(self, kind: str, length: int, depth: float, chance: random.Random) -> ProbeItem:
        """One question of about `length` tokens with its needle at `depth`, 0 to 1. Raises PromptError where `length`
        does not hold it.
        """
        name = chance.choice(NAMES)
        numbers = chance.sample(range(10 ** (DIGITS - 1), 10**DIGITS), 2)
        told, question, lead = _retrieval(numbers[0]) if kind == "r" else _riddle(chance, numbers)
        told = [(text.format(name=name), number) for text, number in told]
        question, lead = question.format(name=name), lead.format(name=name)
        body = self._body(chance, length, told, question + lead)
        place = round(depth * len(body))
        return self._item(body[:place], told, body[place:], question, lead, numbers[0])

    def _body(self, chance: random.Random, length: int, told: list[tuple[str, int | None]], asked: str) -> list[str]:
        """Consecutive sentences that leave room for the rest."""
        size = self._haystack.size
        needle = " ".join(text if number is None else f"{text} {number}." for text, number in told)
        room = length - size(needle) - size(asked) - 2 * DIGITS - len(self._frame.before) - size(self._frame.after)
        if room < 0:
            raise PromptError(
                f"a prompt of {length} tokens does not hold a question of the head probe; use at least {length - room}"
            )
        sentences = self._haystack.sentences
        place, body = chance.randrange(len(sentences)), []
        while (room := room - size(" " + sentences[place])) >= 0:
            body.append(sentences[place])
            place = (place + 1) % len(sentences)
        return body

    def _item(
        self,
        before: list[str],
        told: list[tuple[str, int | None]],
        after: list[str],
        question: str,
        lead: str,
        number: int,
    ) -> ProbeItem:
        pieces = Pieces(self._tokenizer, self._frame.before)
        pieces.add(" ".join(before))
        first, correct = len(pieces.tokens), range(0)
        for text, value in told:
            pieces.add(" " + text)
            if value is not None:
                place = pieces.add(f" {value}")
                correct = place if value == number else correct
                pieces.add(".")
        needle = range(first, len(pieces.tokens))
        pieces.add("".join(" " + sentence for sentence in after) + SEPARATOR + question + self._frame.after + lead)
        answer = pieces.add(f" {number}")
        return ProbeItem(tuple(pieces.tokens), len(answer), needle, correct)


def _retrieval(number: int) -> tuple[list[tuple[str, int | None]], str, str]:
    return [(TOLD, number)], ASKED, TOLD


def _riddle(chance: random.Random, numbers: list[int]) -> tuple[list[tuple[str, int | None]], str, str]:
    riddle = chance.choice(RIDDLES)
    both: list[tuple[str, int | None]] = [(riddle.right, numbers[0]), (riddle.wrong, numbers[1])]
    chance.shuffle(both)
    return [(riddle.reason, None), *both], riddle.question, riddle.right
