"""Which slots have the largest scores."""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Floats, Integers


def best(scores: Floats, count: int) -> Integers:
    """Slots of the `count` largest of scores [n], rising; of equal ones the first. All slots where n ≤ count."""
    if count <= 0:
        return np.zeros(0, np.int64)
    if count >= len(scores):
        return np.arange(len(scores))
    bound = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen = scores > bound
    chosen[np.flatnonzero(scores == bound)[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)
