"""Rates of several streams while all of them run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from thrifty.loadtest.outcome import Outcome


def together(moments: Sequence[Sequence[float]]) -> float:
    """Tokens a second of all streams, from when the last of them has begun until the first of them ends. moments: when
    each token of each stream came, in seconds. Raises ValueError where they never run all together.
    """
    begin, end = max(own[0] for own in moments), min(own[-1] for own in moments)
    if end <= begin:
        raise ValueError(f"the streams never ran all together: the last begins at {begin}, the first ends at {end}")
    return sum(begin < moment <= end for own in moments for moment in own) / (end - begin)


def moments_of(outcome: Outcome) -> list[float]:
    """When each piece of an answer came."""
    return list(accumulate([outcome.start + outcome.ttft, *outcome.itl]))
