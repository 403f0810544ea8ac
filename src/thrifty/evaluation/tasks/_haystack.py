"""Contexts to search in: real prose of the package, with sentences put between."""

from __future__ import annotations

import random
import re
from typing import Any

from thrifty.errors import PromptError
from thrifty.evaluation.halves import Half
from thrifty.evaluation.text import prose

CITIES = (
    "Lisbon Oslo Cairo Lima Quito Turin Dakar Hanoi Perth Kyoto Bergen Tampa Leeds Nairobi Boston Denver Vienna Prague "
    "Dublin Madrid Athens Havana Delhi Seoul Geneva Zagreb Warsaw Sydney Berlin Dallas Milan Munich Tokyo Rome Paris "
    "London Naples Porto Lyon Seville"
)
NAMES = tuple(CITIES.split())
SHORTEST, LONGEST = 40, 250  # characters of a sentence


def sentences(half: Half | None = None) -> list[str]:
    """The sentences of the package's prose that are neither fragments nor monsters, in order. half: see `prose`."""
    parts = re.split(r"(?<=[.!?])\s+", prose(half))
    return [part.strip() for part in parts if SHORTEST <= len(part.strip()) <= LONGEST]


def numbers(half: Half | None, digits: int) -> range:
    """The numbers of so many digits that a half asks for: even ones for tuning, odd ones for judging; None: all."""
    first = 10 ** (digits - 1)
    if half is None:
        return range(first, 10**digits)
    return range(first if half == "tuning" else first + 1, 10**digits, 2)


class Haystack:
    """Prose of a wanted number of tokens. Building one counts the tokens of every sentence. half: see `prose`."""

    def __init__(self, tokenizer: Any, half: Half | None = None) -> None:
        self.half = half
        self.sentences = sentences(half)
        self._tokenizer = tokenizer
        self._sizes = [self.size(" " + sentence) for sentence in self.sentences]

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_bos=False))

    def context(self, chance: random.Random, room: int, needles: list[str], *, ordered: bool = False) -> str:
        """Consecutive sentences from a random place with the needles at random places, at most `room` tokens.

        ordered: the needles stand in the order given. Raises PromptError where the needles alone take more.
        """
        room -= sum(self.size(" " + needle) for needle in needles)
        if room < 0:
            raise PromptError(
                f"{len(needles)} sentences to recall take {-room} tokens more than the context has; use a larger "
                "--length"
            )
        place = chance.randrange(len(self.sentences))
        body: list[str] = []
        while self._sizes[place] <= room:
            body.append(self.sentences[place])
            room -= self._sizes[place]
            place = (place + 1) % len(self.sentences)
        if ordered:
            places = sorted(chance.randint(0, len(body)) for _ in needles)
            for where, needle in zip(reversed(places), reversed(needles), strict=True):
                body.insert(where, needle)
            return " ".join(body)
        for needle in needles:
            body.insert(chance.randint(0, len(body)), needle)
        return " ".join(body)
