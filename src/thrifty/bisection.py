"""Searching a number by halving."""

from __future__ import annotations

from collections.abc import Callable


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest whole number of low..high that holds, where all up to it do and none above; `low` is not asked, and
    is the answer where no other holds.
    """
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
