"""Aggregation where no word is rare by design: the frequencies fall as in a language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._answering import share_of_first
from thrifty.evaluation.tasks._lists import WORDS, Listing
from thrifty.evaluation.tasks.task import Item, TaskTurn


@dataclass(frozen=True, kw_only=True)
class FrequentWords(Listing):
    """Frequent-words extraction of RULER (2404.06654, §3.3): the word of rank r makes up r^−alpha of a list (divided by
    the sum over all ranks), and the `common` most frequent are asked for.

    Unlike RULER's, the words are a language's own, and the first rank is asked for too. mode: see `Mode`. Score: the
    share of those words among as many words of the answer.
    """

    name: ClassVar[str] = "frequent-words"
    limit: ClassVar[int] = 30
    stop: ClassVar[tuple[str, ...]] = ()  # a list may have lines

    common: Annotated[int, Field(ge=1, le=8)] = 3
    alpha: Annotated[float, Field(gt=0, le=4)] = 2.0

    def counts(self, total: int) -> list[int]:
        weights = [rank**-self.alpha for rank in range(1, len(WORDS) + 1)]
        counts = [int(total * weight / sum(weights)) for weight in weights]
        return [counts[0] + total - sum(counts), *counts[1:]]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """0 to 1, by the first words of the list that the answer names."""
        return share_of_first(answer, turn.expected, WORDS)
