"""How much two texts have in common: ROUGE-1 and ROUGE-L (Lin 2004), and the words up to the first difference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, as the reference implementation of ROUGE cuts text without stemming."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_1(text: str, expected: str) -> float:
    """F1 of the words that both have, counted. Two texts without a word are equal: 1."""
    first, second = words(text), words(expected)
    return _f1(sum((Counter(first) & Counter(second)).values()), first, second)


def rouge_l(text: str, expected: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, §3.1). Two texts without a word are equal: 1."""
    first, second = words(text), words(expected)
    return _f1(_longest_common(first, second), first, second)


def common_prefix(said: Sequence[object], expected: Sequence[object]) -> int:
    """How many first elements are the same."""
    for place, (word, other) in enumerate(zip(said, expected, strict=False)):
        if word != other:
            return place
    return min(len(said), len(expected))


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        above = 0
        for place, other in enumerate(second, 1):
            above, row[place] = row[place], above + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def _f1(common: int, first: Sequence[str], second: Sequence[str]) -> float:
    if not first and not second:
        return 1.0
    return 2 * common / (len(first) + len(second))
