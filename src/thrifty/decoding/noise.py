"""Noise that an answer is drawn with, as callers hold it: by place and token, fresh or as an observed text has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from thrifty.arrays import Floats
from thrifty.decoding.option_values import shown
from thrifty.errors import PromptError

GUMBEL = "gumbel"


class Observed(NamedTuple):
    """One token of a text that was observed. scores: of all tokens at its place, [vocabulary] fp32, −inf for those that
    could not be drawn there; temperature: above 0.
    """

    token: int
    scores: Floats
    temperature: float


@dataclass(frozen=True, eq=False)
class GumbelNoise:
    """Standard Gumbel noise for each place in the answer and each token: a function of the sample's seed and stream,
    whatever the model, the prompt and the batch are.

    observed: at these places the noise comes from its posterior, given the token that was observed there (see
    `gumbel.posterior`). nbytes of these rows are the holder's, not in the engine's ledger.
    """

    observed: Mapping[int, Observed] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of the rows that observed tokens take."""
        return sum(row.scores.nbytes for row in self.observed.values())


def as_noise(value: Any) -> GumbelNoise | None:
    """What a sampling option says: None, "gumbel", or noise itself. Raises PromptError for anything else."""
    if value is None or isinstance(value, GumbelNoise):
        return value
    if value == GUMBEL:
        return GumbelNoise()
    raise PromptError(f"noise = {shown(value)}; use '{GUMBEL}', a GumbelNoise, or None for a number a token")
