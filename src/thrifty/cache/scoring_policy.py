"""The base of policies that score slots: keep the best of every head, and the newest.

A subclass writes `score`, and where its paper differs `budgets` (how many slots each head keeps) and `allocate` (which
ones). The base checks options, cuts to the budget, returns the edits and promises what is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.edits import Edits
from thrifty.cache.policy import CachePolicy
from thrifty.cache.scores import best
from thrifty.cache.statistics import Stats
from thrifty.errors import RecipeError

if TYPE_CHECKING:
    from thrifty.cache.model_info import LayerInfo
    from thrifty.cache.view import LayerView


@dataclass(frozen=True, kw_only=True)
class ScoringPolicy(CachePolicy):
    """keep: kept share of the prompt, or capacity: kept slots of every head, the newest included. Nothing happens to
    shorter prompts, and generated tokens stay.
    """

    keep: float = 0.5
    capacity: int | Literal["budget"] | None = None

    def __post_init__(self) -> None:
        if self.capacity == "budget" and self.budgeted is None:
            raise RecipeError(f'{self.name}: capacity = "budget" is unknown to it; use a number of slots')
        if not 0 < self.keep <= 1 or (isinstance(self.capacity, int) and self.capacity < 1):
            raise RecipeError(
                f"{self.name}: keep = {self.keep}, capacity = {self.capacity}; use 0 < keep ≤ 1 and capacity ≥ 1"
            )

    # --- the formula ---------------------------------------------------------------------------------

    def score(self, kv: LayerView, head: int, stats: Stats) -> Floats:
        """Scores fp32 [slots] of one KV head, for all its slots or for those before the newest; the largest stay."""
        raise NotImplementedError

    def newest(self, prompt: int, stats: Stats | None = None) -> int:
        """How many of a head's newest slots stay whatever their scores, after a prompt of so many tokens. stats: of the
        layer at hand, None where bytes are promised."""
        return 0

    def budgets(self, layer: LayerInfo, counts: list[int], newest: int) -> list[int]:
        """Slots that each KV head of a layer keeps before the newest, of `counts` in all: those that it holds, after a
        later prompt of a sequence those that it ever held."""
        return [self.budget(count, newest) for count in counts]

    def allocate(self, scores: list[Floats], budgets: list[int]) -> list[Integers]:
        """Which slots each head keeps, rising int64, by its scores [slots before the newest]: its best `budget`."""
        return [best(own, budget) for own, budget in zip(scores, budgets, strict=True)]

    # --- the mechanics -------------------------------------------------------------------------------

    def slots(self, count: int) -> int:
        """Slots that a head keeps of `count`, the newest included: the mean where heads or layers differ."""
        return max(1, math.floor(self.keep * count)) if self.capacity is None else self.known(self.capacity)

    def budget(self, count: int, newest: int) -> int:
        """The same without the newest, one at least."""
        return max(1, self.slots(count) - newest)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Keep the best-scored slots of every head, and the newest."""
        return self.evict(Edits(), kv, stats)

    def evict(self, edits: Edits, kv: LayerView, stats: Stats) -> Edits:
        """`edits`, with one more where a head of the layer holds more than its budget. Nothing where a statistic that
        the method wants is not known."""
        layer, heads = kv.info, range(kv.kv_heads)
        if not stats.has(self.wants(layer.model)):
            return edits
        counts = [kv.count(head) for head in heads]
        newest = self.newest(layer.prompt, stats)
        seen = [max(count, layer.prompt) for count in counts] if layer.earlier else counts
        budgets = self.budgets(layer, seen, newest)
        if all(count <= budget + newest for count, budget in zip(counts, budgets, strict=True)):
            return edits
        older = [max(0, count - newest) for count in counts]
        scores = [self.score(kv, head, stats)[: older[head]] for head in heads]
        chosen = self.allocate(scores, budgets)
        kept = [np.concatenate((chosen[head], np.arange(older[head], counts[head]))) for head in heads]
        return edits.keep(kept, layer=kv.layer)

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The budget, the newest, and every generated token."""
        newest = self.newest(prompt)
        return min(prompt, self.budget(prompt, newest) + newest) + generated
