"""Questions about letters that a model of half a million parameters can learn, and how an engine answers them.

"sort g a c =" is answered " a c g"; "flip g a c =" " c a g", the list backwards;
"mix g a c =" by the letters in any order.
The models letters-diffusion and letters-twin were trained on items that are not held out (training/diffusion).
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.forcing import Tables

TASKS = ("sort", "flip", "mix")
LEARNED = ("sort", "flip")
"""What both models can do; `mix` was trained as well and not learned."""
SHORTEST, LONGEST = 3, 12  # letters of a list
HELD_OUT = 16  # one of so many questions is never trained on
ROOM = 30  # tokens that an answer may have


@dataclass(frozen=True)
class Item:
    """A question about different letters. sort: in the order of the alphabet. flip: backwards. mix: in any order."""

    task: str
    letters: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """As the model reads it."""
        return f"{self.task} {' '.join(self.letters)} ="

    @property
    def held_out(self) -> bool:
        """Whether it is kept for judging."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] % HELD_OUT == 0

    def answer(self, chance: random.Random) -> list[str]:
        """A right answer; chance: which of them, where several are."""
        if self.task == "sort":
            return sorted(self.letters)
        if self.task == "flip":
            return list(reversed(self.letters))
        return chance.sample(self.letters, len(self.letters))

    def right(self, text: str) -> bool:
        """Whether a text is an answer, to the letter."""
        given = text.split()
        if self.task == "mix":
            return sorted(given) == sorted(self.letters)
        return given == self.answer(random.Random())


def draw(chance: random.Random, held_out: bool) -> Item:
    """An item of the one part or the other."""
    while True:
        letters = chance.sample(string.ascii_lowercase, chance.randint(SHORTEST, LONGEST))
        item = Item(chance.choice(TASKS), tuple(letters))
        if item.held_out == held_out:
            return item


def judged(count: int, seed: int | str, tasks: Sequence[str] = LEARNED) -> list[Item]:
    """Different items of these tasks that were never trained on; other seeds give others."""
    chance = random.Random(f"letters/{seed}")
    items: dict[Item, None] = {}
    while len(items) < count:
        item = draw(chance, held_out=True)
        if item.task in tasks:
            items[item] = None
    return list(items)


@dataclass(frozen=True)
class Answered:
    """right: to the letter. tokens: of the answer, its end token included. passes: of the model, the prompt's among
    them.
    """

    right: bool
    tokens: int
    passes: int


def answer(engine: Engine, item: Item, decoding: Tables | None = None) -> Answered:
    """One item, greedily, alone in the engine: each of its steps is one pass of the model."""
    prompt = engine.model.require_tokenizer().encode(item.prompt, add_bos=True)
    sampling = SamplingParameters.of(greedy=True, max_tokens=ROOM)
    handle, passes = engine.submit(Request(prompt=prompt, sampling=sampling, decoding=decoding)), 0
    while not handle.finished:
        engine.step()
        passes += 1
    result = handle.result()
    return Answered(item.right(result.text), len(result.token_ids), passes)


def answers(engine: Engine, items: Sequence[Item], decoding: Tables | None = None) -> list[Answered]:
    """All items, one after the other."""
    return [answer(engine, item, decoding) for item in items]
