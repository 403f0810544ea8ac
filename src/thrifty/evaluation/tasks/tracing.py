"""Multi-hop tracing: a number that is handed on from city to city."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._answering import Answering, share_of_first
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks._haystack import NAMES, Haystack, numbers
from thrifty.evaluation.tasks.recall import NEEDLE
from thrifty.evaluation.tasks.task import Item, TaskTurn

LINK = "The secret number of {name} is that of {other}."
QUESTION = "Which cities have the secret number {number}?"
LEAD = "The cities with the secret number {number} are"
MOST_HOPS, MOST_CHAINS = 4, 8


@dataclass(frozen=True, kw_only=True)
class Tracing(Answering):
    """Variable tracking of RULER (2404.06654, §3.2): a number is given to one city and handed on over `hops` others;
    all cities that have it are asked for.

    mode: see `Mode`. chains: such chains, of which one is asked for; the others hand other numbers on. A link stands
    after what it refers to. digits: of a number. Score: the share of the chain's cities among as many cities of the
    answer, so that naming all of them does not pay.
    """

    name: ClassVar[str] = "tracing"
    metric: ClassVar[str] = "share of the chain's cities named"
    limit: ClassVar[int] = 30
    stop: ClassVar[tuple[str, ...]] = ()  # a list may have lines

    mode: Mode = "agnostic"
    hops: Annotated[int, Field(ge=1, le=MOST_HOPS)] = 2
    chains: Annotated[int, Field(ge=1, le=MOST_CHAINS)] = 2
    digits: Annotated[int, Field(ge=2, le=12)] = 4

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        haystack, frame = Haystack(tokenizer, self.half), Frame.of(tokenizer)
        return [self._item(haystack, frame, seed, number) for number in range(count)]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0 to 1, by the first cities that the answer names."""
        return share_of_first(answer, turn.expected, NAMES)

    def _item(self, haystack: Haystack, frame: Frame, seed: int, number: int) -> Item:
        chance = self.chance(seed, number)
        chains, numbers = self._chains(chance)
        sentences = [told(names, value) for names, value in zip(chains, numbers, strict=True)]
        question, lead = QUESTION.format(number=numbers[0]), LEAD.format(number=numbers[0])
        around = len(frame.before) + (haystack.size(question) if self.mode == "aware" else 0)
        context = haystack.context(chance, self.length - around, interleaved(chance, sentences), ordered=True)
        prompt, fed = frame.first(context, question, lead, self.mode)
        turns = (TaskTurn(fed, tuple(chains[0])),)
        return self.item(number, prompt, turns, self.room(prompt, turns))

    def _chains(self, chance: random.Random) -> tuple[list[list[str]], list[str]]:
        """The cities of every chain, the asked one first, no city twice; and their numbers, no number twice."""
        size = self.hops + 1
        names = chance.sample(NAMES, size * self.chains)
        chosen = chance.sample(numbers(self.half, self.digits), self.chains)
        return [names[size * chain : size * (chain + 1)] for chain in range(self.chains)], list(map(str, chosen))


def told(names: list[str], number: str) -> list[str]:
    """The sentences of one chain: its number, then link after link."""
    links = [LINK.format(name=name, other=other) for other, name in itertools.pairwise(names)]
    return [NEEDLE.format(name=names[0], number=number), *links]


def interleaved(chance: random.Random, lists: list[list[str]]) -> list[str]:
    """All entries in random order, those of one list in theirs."""
    order = [place for place, entries in enumerate(lists) for _ in entries]
    chance.shuffle(order)
    sources = [iter(entries) for entries in lists]
    return [next(sources[place]) for place in order]
