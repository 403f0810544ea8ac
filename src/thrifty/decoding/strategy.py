"""The base of decoding strategies: what they see of a batch, and what they hand back.

In one step a sequence runs `1 + len(draft)` rows: its last committed token, then the draft. Row j's logits
are for the token after row j. Uncommitted rows live in a scratch tail; sealing, policies, statistics and
the prefix tree act on commit only, so a rejected draft is undone by truncation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from thrifty.arrays import Floats
from thrifty.decoding.sampling import Choice, Sampler


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


class Continuation(Protocol):
    """What a strategy may see of a sequence. It changes none of it."""

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and committed answer."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The sample's own random stream and penalties."""
        ...


@dataclass(frozen=True)
class Batch:
    """The sequences of one step that share a strategy. first_rows: where each one's rows begin in the scores."""

    continuations: Sequence[Continuation]
    drafts: Sequence[Draft] = ()
    first_rows: Sequence[int] = ()


@dataclass(frozen=True)
class Draft:
    """Tokens to try after the last committed one. Empty for plain decoding."""

    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """What a step commits for one sequence: at least one choice; all but the last are its draft's first
    tokens.

    As many rows as choices stay in the cache.
    """

    choices: tuple[Choice, ...]


class DecodingStrategy:
    """Base of the techniques of stage "decoding"."""

    def propose(self, batch: Batch) -> list[Draft]:
        """One draft a continuation. Called before the step's rows run."""
        return [Draft() for _ in batch.continuations]

    def accept(self, batch: Batch, scores: Scores) -> list[Accepted]:
        """What to commit, one a continuation. May be called again for a part of the batch: it keeps no state."""
        raise NotImplementedError


def choose(sampler: Sampler, scores: Scores, row: int, offset: int = 0) -> Choice:
    """The sampler's token for a row; by the step's own arg-max where nothing else of the logits is needed.

    offset: how many uncommitted tokens precede it. Raises PromptError where no token can be chosen.
    """
    if not sampler.needs_logits:
        best = scores.best(row)
        if best >= 0 and best not in sampler.absent.ids:
            return Choice(best)
    return sampler.choose(scores.logits(row), offset)
