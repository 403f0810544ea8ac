"""Aggregation: which words come most often in a long list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.evaluation.tasks._lists import WORDS, Listing


@dataclass(frozen=True, kw_only=True)
class Aggregation(Listing):
    """Common-words extraction of RULER (2404.06654, §3.3): `common` words make up `share` of a list, evenly.

    The rest are the other words in turn. mode: see `Mode`. Score: the share of the common words that are named.
    """

    name: ClassVar[str] = "aggregation"

    share: Annotated[float, Field(gt=0, lt=1)] = 0.4

    def counts(self, total: int) -> list[int]:
        often, rest = round(total * self.share / self.common), len(WORDS) - self.common
        others = total - often * self.common
        return [often] * self.common + [others // rest + (place < others % rest) for place in range(rest)]
