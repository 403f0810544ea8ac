"""Common-words extraction: the ten words that come most often in a numbered list."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.errors import PromptError
from thrifty.evaluation.tasks._answering import share_of_first
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame
from thrifty.evaluation.tasks._sessions import Question, Session, Sessions
from thrifty.evaluation.tasks.ruler._words import vocabulary
from thrifty.evaluation.tasks.task import Item, TaskTurn

COMMON = 10
LONG = 4096  # tokens from which a list's words come as often as RULER's do
OPENING = "Below is a numbered list of words. Some of them appear more often than others; keep those in mind.\n"
ASK = f"Which {COMMON} words appear most often in the list above?"
LEAD = f"The {COMMON} words that appear most often in the list above are:"


@dataclass(frozen=True)
class Counts:
    """How often a common word comes, and any other one; how many others the solved example has."""

    common: int
    other: int
    example_common: int
    example_other: int
    example_others: int


BELOW, FROM = Counts(6, 1, 3, 1, 10), Counts(30, 3, 10, 3, 30)


@dataclass(frozen=True, kw_only=True)
class CommonWords(Sessions):
    """RULER's cwe (2404.06654, §3.3): ten words come 30 times, all others 3 times (below 4096 tokens 6 and 1), after
    a short solved list.

    mode: see `Mode`. Score: the share of the ten words among the first ten that the answer names (RULER: in all of it;
    a short list has so few others that naming all of them would pay). Words are those of the package's prose.
    """

    name: ClassVar[str] = "ruler-cwe"
    metric: ClassVar[str] = "share of common words named"
    limit: ClassVar[int] = 120
    stop: ClassVar[tuple[str, ...]] = ()  # a list may have lines

    def stock(self, tokenizer: Any) -> list[str]:
        """The words, but those of the question."""
        said = (OPENING + ASK + LEAD).lower()
        return [word for word in vocabulary(self.half) if word not in said]

    def session(self, chance: random.Random, frame: Frame, stock: list[str], room: int) -> Session:
        """The longest list that fits, after the example."""
        often = FROM if self.length >= LONG else BELOW
        words = chance.sample(stock, len(stock))
        example = self._example(chance, words[-COMMON - often.example_others :], often)
        common, others = words[:COMMON], words[COMMON : -COMMON - often.example_others]
        count = self._fitting(frame, room - frame.size(example + OPENING), common, others, often)
        if count < 1:
            raise self.too_short()
        if count == len(others):
            raise PromptError(f"there are only {count} words to fill a list with; use a smaller --length")
        listed = _numbered(_shuffled(chance, common, often.common, others[:count], often.other))
        question = Question(ASK, LEAD, tuple(common), " " + _numbered(common))
        return Session(example + OPENING + listed, (question,), {"words": [*common, *others[:count]]})

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0 to 1, by the first words of the list that the answer names."""
        return share_of_first(answer, turn.expected, item.material["words"])

    def _fitting(self, frame: Frame, room: int, common: Sequence[str], others: Sequence[str], often: Counts) -> int:
        """How many of the other words a list has room for, from the tokens of each word and number."""
        numbers = itertools.accumulate(frame.size(f" {number}.") for number in itertools.count(1))
        room -= often.common * sum(frame.size(f" {word}") for word in common)
        room -= list(itertools.islice(numbers, often.common * len(common)))[-1]
        for place, word in enumerate(others):
            room -= often.other * (
                frame.size(f" {word}") + frame.size(f" {often.common * COMMON + often.other * place}.")
            )
            if room < 0:
                return place
        return len(others)

    def _example(self, chance: random.Random, words: Sequence[str], often: Counts) -> str:
        """A solved list of words that the asked one does not have."""
        common, others = words[:COMMON], words[COMMON:]
        listed = _numbered(_shuffled(chance, common, often.example_common, others, often.example_other))
        return f"{OPENING}{listed}{SEPARATOR}{ASK}\n{LEAD} {_numbered(common)}{SEPARATOR}"


def _shuffled(
    chance: random.Random, common: Sequence[str], often: int, others: Sequence[str], seldom: int
) -> list[str]:
    words = [*common] * often + [*others] * seldom
    chance.shuffle(words)
    return words


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
