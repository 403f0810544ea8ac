"""Texts of about so many tokens, without the model's tokenizer: common words, weighed by the server itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.loadtest.lengths import Shape

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information
back parent face others level office door health person art war history party result change morning reason
research girl guy moment air teacher force education foot boy age policy music market sense nation plan college
interest death experience effect use class control field development role effort rate heart drug show leader
light voice wife police mind price report decision son view relationship town road arm difference value building
action season society tax director position player record paper space ground form event matter center couple
site project activity star table need court american oil situation cost industry figure street image phone data
picture practice piece land product doctor wall patient worker news test movie north love support technology
""".split()  # noqa: SIM905  # a list of its own for each word takes 200 lines
"""Most of them are one token, with the space before it, in most vocabularies."""


@dataclass(frozen=True)
class Scale:
    """What words weigh here: tokens = overhead + words · per_word. overhead: of the template, and other fixed parts."""

    overhead: float = 0.0
    per_word: float = 1.0

    @classmethod
    def of(cls, few: tuple[int, int], many: tuple[int, int]) -> Scale:
        """From two prompts, each given as (words, tokens that the server counted)."""
        (words, tokens), (more_words, more_tokens) = few, many
        per_word = max(0.1, (more_tokens - tokens) / (more_words - words))
        return cls(max(0.0, tokens - per_word * words), per_word)

    def words(self, tokens: float) -> int:
        """How many words make so many tokens, at least one."""
        return max(1, round(tokens / self.per_word))


@dataclass(frozen=True)
class Prompt:
    """One request. shared: its beginning, which other requests have too; empty where none does. text: its own words.
    tokens: of both, as far as they are known. answer: the most tokens to come back.
    """

    shared: str
    text: str
    tokens: int
    answer: int


def words(count: int, chance: random.Random) -> str:
    """So many words, drawn each on its own."""
    return " ".join(chance.choices(WORDS, k=count))


def beginnings(count: int, tokens: int, scale: Scale, chance: random.Random) -> list[str]:
    """So many texts of so many tokens, for prompts to share; one that is empty where tokens is 0."""
    return [words(scale.words(tokens), chance) for _ in range(count)] if tokens else [""]


def make_prompts(
    shapes: Sequence[Shape], scale: Scale, shared: Sequence[str], shared_tokens: int, chance: random.Random
) -> list[Prompt]:
    """A prompt of each shape. shared: beginnings of `shared_tokens` tokens; each prompt has one of them, drawn on its
    own, and at least one word of its own.
    """
    prompts = []
    for shape in shapes:
        own = scale.words(shape.prompt - shared_tokens - scale.overhead)
        prompts.append(Prompt(chance.choice(shared), words(own, chance), shape.prompt, shape.answer))
    return prompts
