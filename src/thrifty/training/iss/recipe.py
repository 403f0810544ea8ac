"""What a training of an LSTM of characters is given: its options and its text. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Integers
from thrifty.errors import RecipeError

RARE = "\ufffd"  # stands for characters that a model does not know
HELD_OUT = 8  # the last 1 / HELD_OUT of a text is scored, and never trained on


@dataclass(frozen=True)
class Options:
    """strength: λ of the group lasso; 0 trains without. threshold: numbers below it become 0 after each step (the
    paper's 1e-4). width: of the embedding. hidden: units of each layer. keep: what dropout leaves. length, batch:
    tokens of a sequence, sequences of a step. rate: AdamW's. Raises RecipeError.
    """

    strength: float = 3.0
    threshold: float = 1e-4
    width: int = 64
    hidden: tuple[int, ...] = (128, 128)
    keep: float = 0.9
    length: int = 48
    batch: int = 16
    steps: int = 500
    rate: float = 6e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1 or self.width < 1:
            raise RecipeError(
                f"hidden {list(self.hidden)}, width {self.width}: use one or more layers of 1 or more units"
            )
        if not 0 < self.keep <= 1:
            raise RecipeError(f"keep {self.keep:g} is no share of numbers: use more than 0 and at most 1")
        for name in ("strength", "threshold", "rate"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise RecipeError(f"{name} {value:g} must be 0 or a positive number")
        if self.steps < 0 or self.length < 2:
            raise RecipeError(f"steps {self.steps}, length {self.length}: use 0 or more steps, and 2 or more tokens")


@dataclass(frozen=True)
class Text:
    """characters: of the training part and RARE, in order. train, held_out: int64 [tokens]."""

    characters: str
    train: Integers
    held_out: Integers

    def passages(self, length: int, count: int) -> Integers:
        """The first `count` held-out passages, or as many as there are: int64 [passages, length]."""
        count = min(count, len(self.held_out) // length)
        if count < 2:
            raise RecipeError(f"{len(self.held_out)} held-out characters hold fewer than 2 passages of {length}")
        return self.held_out[: count * length].reshape(count, length)

    @classmethod
    def of(cls, text: str) -> Text:
        """The end of a text is held out. Raises RecipeError for a text too short to have one."""
        cut = len(text) - len(text) // HELD_OUT
        if len(text) < 2 * HELD_OUT:
            raise RecipeError(f"a text of {len(text)} characters is too short: give {2 * HELD_OUT} or more")
        characters = RARE + "".join(sorted(set(text[:cut]) - {RARE}))
        return cls(characters, tokens_of(text[:cut], characters), tokens_of(text[cut:], characters))


def tokens_of(text: str, characters: str) -> Integers:
    """Places of a text's characters among `characters`, int64 [characters of the text]; RARE's where there is none."""
    places = {character: place for place, character in enumerate(characters)}
    return np.array([places.get(character, 0) for character in text], np.int64)
