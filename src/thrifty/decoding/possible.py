"""Which tokens can be chosen at all: those that have a text, where the model's logits are numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from thrifty.arrays import Floats
from thrifty.errors import PromptError


class Absent:
    """The rows of a model's vocabulary that are no token: they pad its matrices, and have no probability."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.ids = frozenset(ids)
        self._places = np.array(sorted(self.ids), np.int64)

    def without(self, logits: Floats) -> Floats:
        """Logits [vocabulary] in which these rows are −inf: a copy where there are any, else the logits themselves."""
        if not self.ids:
            return logits
        possible = logits.copy()
        possible[self._places] = -math.inf
        return possible

    def check(self, name: str, tokens: Iterable[int]) -> None:
        """Raise PromptError where one of these rows is asked for."""
        for token in tokens:
            if token in self.ids:
                raise PromptError(
                    f"{name} names token {token}, a row that pads the model's vocabulary and has no text, or a mask: "
                    "it can never be chosen; leave it out"
                )


NONE_ABSENT = Absent()


def check_logits(logits: Floats, position: int) -> None:
    """Raise PromptError where no token can be chosen from a row of logits [vocabulary] fp32, as the model gave it.

    −inf is a token without probability. NaN or +inf anywhere, or nothing but −inf, is an overflow.
    """
    best = float(logits.max())  # NaN where any is NaN
    if not math.isfinite(best):
        raise PromptError(
            f"no token can be chosen at position {position} of the answer: the model's best logit is {best}, so its "
            "numbers overflowed. Check the checkpoint's weights, or try native=False (--reference) and no recipe"
        )


def check_scores(scores: Floats, position: int) -> None:
    """Raise PromptError where penalties, bans and a grammar leave no token of a row of scores [vocabulary] fp32."""
    best = float(scores.max())
    if not math.isfinite(best):
        raise PromptError(
            f"no token can be chosen at position {position} of the answer: with penalties and logit_bias the best "
            f"score is {best}; lift a ban in logit_bias (a grammar may need that token), or use smaller penalties"
        )
