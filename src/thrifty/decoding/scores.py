"""The scores of a step's rows, as a runner gives them and as a strategy reads those of one sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from thrifty.arrays import Floats


class Scores(Protocol):
    """The outcome of a step's rows, valid until the runner's next step."""

    def logits(self, row: int) -> Floats:
        """[vocabulary] fp32 of one row. A view that the next step overwrites."""
        ...

    def best(self, row: int) -> int:
        """The token with the largest logit of one row; the lowest id where several are equal. −1 where none is: a
        logit is NaN, or the largest is infinite.
        """
        ...

    @property
    def taps(self) -> Mapping[int, Floats]:
        """Layer → fp32 [rows, hidden], the state after it; of the layers that a row of the step asked for."""
        ...


class ArrayScores:
    """Scores that lie in an array [rows, vocabulary] fp32. taps: see Scores."""

    def __init__(self, values: Floats, taps: Mapping[int, Floats] | None = None) -> None:
        self.values = values
        self.taps = taps or {}

    def logits(self, row: int) -> Floats:
        """[vocabulary] fp32 of one row."""
        return self.values[row]

    def best(self, row: int) -> int:
        """The row's arg-max, or −1 where it is no number."""
        best = int(np.argmax(self.values[row]))  # NaN where any is NaN
        return best if math.isfinite(self.values[row, best]) else -1


class SequenceScores:
    """The rows of one sequence in the scores of a step: row 0 is its last committed token, row i + 1 its draft's
    token i.
    """

    def __init__(self, scores: Scores, first: int) -> None:
        """first: the sequence's first row in `scores`."""
        self._scores = scores
        self._first = first

    def logits(self, row: int) -> Floats:
        """[vocabulary] fp32 of one row."""
        return self._scores.logits(self._first + row)

    def best(self, row: int) -> int:
        """See Scores."""
        return self._scores.best(self._first + row)

    @property
    def taps(self) -> Mapping[int, Floats]:
        """See Scores."""
        return {layer: states[self._first :] for layer, states in self._scores.taps.items()}
