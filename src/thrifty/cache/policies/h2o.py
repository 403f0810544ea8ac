"""H2O: the newest tokens and the heavy hitters of accumulated attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.watching.ranking import best
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    paper="arXiv:2306.14048",
    year=2023,
    mechanism=(
        "Keeps the newest tokens and those with the largest sum of attention over all queries so far, half "
        "the budget each."
    ),
    claim="near full quality with 20 % of the cache; throughput up to 29 times DeepSpeed and Accelerate",
    limits=(
        "evicts every 64 tokens, the paper at every step: up to 127 tokens above the budget in between",
        "with grouped queries the sums of a group are reduced by `group` (the paper has one query head a KV head)",
        "needs column sums: attention goes over the keys a second time",
        (
            "after a quantising technique, tokens evicted while decoding free bytes only where a whole page goes: "
            'no byte budget of a request can rely on it (capacity = "budget" is refused)'
        ),
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class H2o(CachePolicy):
    """keep: budget as a share of the prompt, fixed when it ends (§5: 20 %); capacity: a budget in tokens instead, or
    "budget": as many as the request's byte budget holds.

    recent: the share of the budget that goes to the newest tokens. group: how scores of grouped query heads are
    reduced.
    """

    keep: float = 0.2
    capacity: int | Literal["budget"] | None = None
    recent: float = 0.5
    group: Literal["sum", "mean", "max"] = "sum"

    budgeted = "capacity"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or not 0 <= self.recent <= 1:
            raise RecipeError(f"h2o: keep = {self.keep}, recent = {self.recent}; use 0 < keep ≤ 1 and 0 ≤ recent ≤ 1")
        if isinstance(self.capacity, int) and self.capacity < 1:
            raise RecipeError(f"h2o: capacity = {self.capacity}; use 1 token or more")

    def wants(self, model: ModelInfo) -> Statistics:
        """Column sums over the prompt's queries and, from then on, over generated ones."""
        return Statistics(column_sums=True, decode=True)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Evict down to the budget."""
        return self._evict(Edits(), kv, stats)

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Evict down to the budget again, layer by layer."""
        edits = Edits()
        for view, one in zip(layers, stats, strict=True):
            self._evict(edits, view, one)
        return edits

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The budget, and a period's tokens between two evictions."""
        return min(prompt + generated, self._budget(prompt) + min(generated, self.period))

    def _budget(self, prompt: int) -> int:
        return max(1, int(self.keep * prompt)) if self.capacity is None else self.known(self.capacity)

    def _evict(self, edits: Edits, kv: LayerView, stats: Stats) -> Edits:
        budget = self._budget(kv.info.prompt)
        counts = [kv.count(head) for head in range(kv.kv_heads)]
        if stats.column_sums is None or max(counts) <= budget:
            return edits
        kept = []
        for head, count in enumerate(counts):
            scores = reduce_group(stats.column_sums[head], self.group)
            kept.append(heavy_and_recent(scores, count, budget, int(budget * self.recent)))
        return edits.keep(kept, layer=kv.layer)


def heavy_and_recent(scores: Floats, count: int, budget: int, recent: int) -> Integers:
    """Sorted slots: the newest `recent` of `count`, and the best of the older by `scores` [count], `budget` in all."""
    if count <= budget:
        return np.arange(count)
    heavy = best(scores[: count - recent], budget - recent)
    return np.concatenate((heavy, np.arange(count - recent, count)))


def reduce_group(scores: Floats, how: str) -> Floats:
    """[group, slots] → [slots]."""
    if how == "max":
        return scores.max(axis=0)
    return scores.sum(axis=0) if how == "sum" else scores.mean(axis=0)
