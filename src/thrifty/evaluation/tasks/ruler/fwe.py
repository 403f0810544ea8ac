"""Frequent-words extraction: the most frequent of made-up words whose frequencies fall as in a language."""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from typing import Any, ClassVar

from thrifty.bisection import largest
from thrifty.evaluation.halves import Half, half_of
from thrifty.evaluation.tasks._answering import share_of_first
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._sessions import Question, Session, Sessions
from thrifty.evaluation.tasks.task import Item, TaskTurn

ALPHA, ZETA = 2, math.pi**2 / 6  # of the zeta distribution, and Riemann's zeta there
LETTERS, DOTS, ASKED = 6, "...", 3
TOKENS_A_WORD = 50  # of the context, for each word of the vocabulary
OPENING = "The text below is written in code. Some coded words appear more often than others; keep track of them.\n"
ASK = f"Which {ASKED} coded words appear most often in the text above? Leave the dots '{DOTS}' out and explain nothing."
LEAD = f"In the coded text above the {ASKED} words that appear most often are:"


@dataclass(frozen=True, kw_only=True)
class FrequentCodedWords(Sessions):
    """RULER's fwe (2404.06654, §3.3): the word of rank r comes N·r^−2/ζ(2) times, the first rank is dots, and the next
    three are asked for.

    mode: see `Mode`. Score: the share of the three among the first three that the answer names (RULER: in all of it; a
    short text has so few others that naming all of them would pay).
    """

    name: ClassVar[str] = "ruler-fwe"
    metric: ClassVar[str] = "share of frequent words named"
    limit: ClassVar[int] = 50
    stop: ClassVar[tuple[str, ...]] = ()  # a list may have lines

    def session(self, chance: random.Random, frame: Frame, stock: Any, room: int) -> Session:
        """The longest text that fits."""
        words = _words(chance, self.half, max(self.length // TOKENS_A_WORD, ASKED + 2))
        order = chance.getrandbits(32)
        room -= frame.size(OPENING)
        sizes = [frame.size(f" {word}") for word in words]
        total = largest(0, room, lambda total: _size(sizes, total) <= room)
        counts = _counts(total, len(words))
        if counts[ASKED] <= counts[ASKED + 1]:
            raise self.too_short()
        question = Question(ASK, LEAD, tuple(words[1 : ASKED + 1]), f" {', '.join(words[1 : ASKED + 1])}.")
        return Session(OPENING + _text(words, total, order), (question,), {"words": words[1:]})

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0 to 1, by the first coded words that the answer names."""
        return share_of_first(answer, turn.expected, item.material["words"])


def _words(chance: random.Random, half: Half, count: int) -> list[str]:
    """Dots, then coded words of a half, none twice."""
    words: dict[str, None] = {DOTS: None}
    while len(words) < count:
        word = "".join(chance.choices(string.ascii_lowercase, k=LETTERS))
        if half_of(word) == half:
            words[word] = None
    return list(words)


def _counts(total: int, ranks: int) -> list[int]:
    """How often the word of each rank comes in a text of about `total` words."""
    return [int(total * rank**-ALPHA / ZETA) for rank in range(1, ranks + 1)]


def _size(sizes: list[int], total: int) -> int:
    """Tokens of a text of about `total` words, from the tokens of each."""
    return sum(size * count for size, count in zip(sizes, _counts(total, len(sizes)), strict=True))


def _text(words: list[str], total: int, order: int) -> str:
    listed = [word for word, count in zip(words, _counts(total, len(words)), strict=True) for _ in range(count)]
    random.Random(order).shuffle(listed)
    return " ".join(listed)
