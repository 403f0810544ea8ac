"""How far greedy texts depart from those of the uncompressed model: the text-similarity study of "Give Me BF16 or Give
Me Death" (2411.02355, §4.3), without BERTScore and STS, which take a second model.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.evaluation.textual import common_prefix, rouge_1, rouge_l


@dataclass(frozen=True)
class Departure:
    """Means over pairs of texts. rouge_1, rouge_l: F1 with the baseline's text. same_tokens: first words that are the
    baseline's, of `tokens` words in its text. identical: share of texts that are the same.
    """

    rouge_1: float
    rouge_l: float
    same_tokens: float
    tokens: float
    identical: float


def departure(texts: Sequence[tuple[str, str]]) -> Departure:
    """Of (own text, the baseline's), at least one pair."""
    split = [(mine.split(), theirs.split()) for mine, theirs in texts]
    return Departure(
        rouge_1=statistics.fmean(rouge_1(*pair) for pair in texts),
        rouge_l=statistics.fmean(rouge_l(*pair) for pair in texts),
        same_tokens=statistics.fmean(common_prefix(*pair) for pair in split),
        tokens=statistics.fmean(len(theirs) for _, theirs in split),
        identical=statistics.fmean(mine == theirs for mine, theirs in texts),
    )
