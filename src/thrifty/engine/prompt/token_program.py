"""The base of programs that choose which tokens of a prompt are read: a budget, and what stays whatever is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.engine.prompt.program import PromptProgram, Read
from thrifty.errors import RecipeError

if TYPE_CHECKING:
    from thrifty.arrays import Integers


@dataclass(frozen=True, kw_only=True)
class TokenProgram(PromptProgram):
    """capacity: tokens of the prompt that are read, or keep: their share, and at least one more than stay whatever they
    score. Shorter prompts are read whole.
    """

    capacity: int = 1024
    keep: float | None = None

    def __post_init__(self) -> None:
        if self.capacity < 1 or (self.keep is not None and not 0 < self.keep <= 1):
            raise RecipeError(
                f"{self.name}: capacity = {self.capacity}, keep = {self.keep}; use capacity ≥ 1, and 0 < keep ≤ 1 or "
                "none"
            )

    def applies(self, prompt: int) -> bool:
        """Whether the prompt is longer than its budget."""
        return prompt > self.rows(prompt)

    @property
    def forced(self) -> int:
        """Tokens that stay whatever they score."""
        return 0

    def rows(self, prompt: int) -> int:
        """The budget."""
        share = self.capacity if self.keep is None else max(self.forced + 1, math.floor(self.keep * prompt))
        return min(prompt, share)

    @staticmethod
    def read(prompt: Sequence[int], places: Integers) -> Read:
        """The tokens at these places, rising int64."""
        return Read(tuple(prompt[place] for place in places.tolist()), len(places))
