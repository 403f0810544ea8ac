"""Random tokens: a control. What a claim's program does not beat was won by the setting, not by the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from thrifty.cache.scores import best
from thrifty.card import Card
from thrifty.engine.prompt.program import Forward, ProgramTraits, Read, Work
from thrifty.engine.prompt.token_program import TokenProgram
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo

CARD = Card(
    title="Random tokens (a control, no published method)",
    paper="none: a baseline that every choice of tokens must beat",
    year=2024,
    mechanism="Reads the first tokens of a prompt, the last, and a random choice of the others; no model looks at it.",
    claim="none: at 1 budget with a program it must lose, or the measurement says nothing",
    limits=("made for claims, not for use", "single tokens: words fall apart, as they do where scores are not pooled"),
)


@technique(stage="prompt", card=CARD)
@dataclass(frozen=True, kw_only=True)
class RandomTokens(TokenProgram):
    """capacity: tokens of the prompt that are read, or keep: their share. Shorter prompts are read whole.

    first, last: tokens that stay, counted in the budget: what a question at the end is kept by is no choice of anyone.
    seed: another one is another choice.
    """

    first: Annotated[int, Field(ge=0)] = 4
    last: Annotated[int, Field(ge=0)] = 32
    seed: Annotated[int, Field(ge=0)] = 0

    traits = ProgramTraits(control=True)

    @property
    def forced(self) -> int:
        """The first and the last."""
        return self.first + self.last

    def run(self, prompt: Sequence[int], model: ModelInfo, forward: Forward, answer: int) -> Work[Read]:
        """By seed and number of tokens, so that a request has one choice alone and in a batch."""
        yield from ()
        scores = np.random.default_rng((self.seed, len(prompt))).random(len(prompt), dtype=np.float32)
        scores[: self.first] = 1.0
        scores[max(0, len(scores) - self.last) :] = 2.0
        return self.read(prompt, best(scores, self.rows(len(prompt))))
