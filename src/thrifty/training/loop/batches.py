"""Token ids as batches: which sequences a step sees follows from its number alone, so a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Integers
from thrifty.errors import RecipeError


@dataclass(frozen=True)
class Batches:
    """sequences: int64 [sequences, tokens]. size: sequences of a step. seed: of the order, which is drawn anew every
    time through. Raises RecipeError where there is nothing to learn from.
    """

    sequences: Integers
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequences.ndim != 2 or not len(self.sequences) or self.sequences.shape[1] < 2:
            raise RecipeError(
                f"training text has shape {list(self.sequences.shape)}; it must be one or more sequences of 2 or more "
                "tokens"
            )
        if self.size < 1:
            raise RecipeError(f"a batch of {self.size} sequences teaches nothing; use 1 or more")

    def at(self, step: int) -> Integers:
        """The sequences of a step from 0 on: int64 [size, tokens]."""
        count = len(self.sequences)
        chosen = range(step * self.size, (step + 1) * self.size)
        orders = {epoch: self._order(epoch) for epoch in {item // count for item in chosen}}
        return self.sequences[[orders[item // count][item % count] for item in chosen]]

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(len(self.sequences)).tolist()
        return order


def cut(tokens: Sequence[int], length: int) -> Integers:
    """A text as sequences of `length` tokens, int64 [sequences, length]; what is left over at its end is dropped.

    Raises RecipeError where the text does not fill one.
    """
    count = len(tokens) // length if length > 0 else 0
    if count < 1:
        raise RecipeError(f"a text of {len(tokens)} tokens holds no sequence of {length}: give more text, or a length")
    return np.array(tokens[: count * length], np.int64).reshape(count, length)
