"""SnapKV: what the end of the prompt attends to is what the answer will need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policies.h2o import reduce_group
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.watching.observation import window_attention
from thrifty.cache.watching.ranking import best
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="SnapKV: LLM Knows What You are Looking for Before Generation",
    paper="arXiv:2404.14469",
    year=2024,
    mechanism=(
        "Keeps, a head, the prompt tokens that the last queries attend to most (pooled over neighbours), and "
        "those last tokens."
    ),
    claim="3.6 times faster decoding and 8.2 times longer input (131K against 16K) at 16K tokens, batch 2",
    limits=(
        "generated tokens are never evicted",
        "relies on the question standing at the end of the prompt",
        (
            "one set of slots a KV head: scores of a query group are reduced first (the official code stores "
            "every query head)"
        ),
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Snapkv(CachePolicy):
    """keep: kept share of the prompt, or capacity: kept tokens (window included). Nothing happens to shorter prompts.

    Defaults are the paper's LongBench setting: window 32, kernel 7, max pooling. group: how the scores of a KV head's
    query heads are reduced, before pooling: "max" recovers most (`benchmarks/query_group.py`; "sum" keeps what "mean"
    keeps).
    """

    keep: float = 0.5
    capacity: int | None = None
    window: int = 32
    kernel: int = 7
    pooling: Literal["max", "average"] = "max"
    group: Literal["mean", "max", "sum"] = "max"

    exact = True

    def __post_init__(self) -> None:
        name = type(self).name
        if not 0 < self.keep <= 1 or (self.capacity is not None and self.capacity < 1):
            raise RecipeError(
                f"{name}: keep = {self.keep}, capacity = {self.capacity}; use 0 < keep ≤ 1 and capacity ≥ 1"
            )
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise RecipeError(
                f"{name}: window = {self.window}, kernel = {self.kernel}; use window ≥ 1 and an odd kernel ≥ 1"
            )

    def wants(self, model: ModelInfo) -> Statistics:
        """The last `window` queries."""
        return Statistics(queries=self.window)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Keep the best-scored slots of every head, and the window."""
        if stats.queries is None:
            return Edits()
        window = len(stats.queries)
        counts = [kv.count(head) for head in range(kv.kv_heads)]
        free = self.budgets(layer, counts, window)
        if all(count <= budget + window for count, budget in zip(counts, free, strict=True)):
            return Edits()
        scores = [
            observed(kv, head, stats.queries, self.kernel, self.pooling, self.group) for head in range(kv.kv_heads)
        ]
        chosen = self.allocate(scores, free)
        kept = [
            np.concatenate((slots, np.arange(max(count - window, 0), count)))
            for slots, count in zip(chosen, counts, strict=True)
        ]
        return Edits().keep(kept, layer=layer.index)

    def allocate(self, scores: list[Floats], budgets: list[int]) -> list[Integers]:
        """Which slots each head keeps, rising, by its scores [slots before the window]: its top `budget`."""
        return [best(one, budget) for one, budget in zip(scores, budgets, strict=True)]

    def budgets(self, layer: LayerInfo, counts: list[int], window: int) -> list[int]:
        """Slots each KV head of a layer keeps before the window, of `counts` in all."""
        return [self.budget(count, window) for count in counts]

    def budget(self, count: int, window: int) -> int:
        """Slots a head keeps before the window, of `count` in all: the mean where heads or layers differ."""
        capacity = math.floor(self.keep * count) if self.capacity is None else self.capacity
        return max(1, capacity - window)

    def kept(self, prompt: int, generated: int = 0) -> int:
        """The capacity, and every generated token."""
        return min(prompt, self.budget(prompt, self.window) + self.window) + generated


def observed(kv: LayerView, head: int, queries: Floats, kernel: int, pooling: str, group: str) -> Floats:
    """Scores [slots − window] of one KV head: v_j = Σ over the window's queries of softmax attention to slot j (fp32,
    causal inside the window), reduced over the query group, pooled over neighbours (§4, listing 1).

    queries: [window, heads, head_dim], the rows of the newest `window` slots. A head of which an earlier policy left no
    more than the window has no slots to score.
    """
    before = kv.count(head) - len(queries)
    if before < 1:
        return np.zeros(0, np.float32)
    sums = window_attention(kv, head, queries)[:, :, :before].sum(axis=1)
    return pooled(reduce_group(sums, group), kernel, pooling)


def pooled(scores: Floats, kernel: int, pooling: str) -> Floats:
    """[n] → [n]: the maximum of each slot and its kernel // 2 neighbours on either side, or their sum over `kernel`."""
    padded = np.pad(scores, kernel // 2, constant_values=-np.inf if pooling == "max" else 0.0)
    shifted = np.stack([padded[offset : offset + len(scores)] for offset in range(kernel)])
    return shifted.max(axis=0) if pooling == "max" else shifted.mean(axis=0)
