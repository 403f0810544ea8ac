"""What a model thinks of a prompt's own tokens: the head over rows that a prefill computed anyway."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.arrays import Floats
from thrifty.decoding.possible import Absent, check_logits
from thrifty.decoding.sampling import TokenLogprob, logprob_of
from thrifty.engine.runner import Runner

ROWS = 8
"""Rows that are scored together: each takes four bytes for every token of the vocabulary."""


def logprobs_behind(
    runner: Runner, hidden: Floats, following: Sequence[int], absent: Absent, alternatives: int, place: int
) -> list[TokenLogprob]:
    """The natural log-probability of the token behind each row, with the best `alternatives`.

    hidden: fp32 [rows, hidden], before the final norm. following: the token behind each. absent: rows of the head that
    are no token. place: of the first row in its text. Raises PromptError where the logits are no numbers.
    """
    scores = runner.logits(hidden)
    told = []
    for row, token in enumerate(following):
        logits = absent.without(scores.logits(row))
        check_logits(logits, place + row)
        told.append(logprob_of(logits, token, alternatives))
    return told
