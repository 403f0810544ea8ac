"""Ada-KV: SnapKV's scores, with a layer's budget shared out among its heads by need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.layer_budgets import bottom_layer, check_beta, pyramid_budget
from thrifty.cache.model_info import LayerInfo
from thrifty.cache.policies.snapkv import Snapkv
from thrifty.cache.scores import best
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

CARD = Card(
    title="Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    paper="arXiv:2407.11550",
    year=2024,
    mechanism="Gives each head of a layer as many slots as it has among the layer's best scores, with a uniform floor.",
    claim="LongBench without the query, Llama-3.1-8B, 20 % of the cache: 42.87 against SnapKV's 41.29 (full: 49.20)",
    limits=(
        "heads hold different numbers of slots; rounding may add up to one slot a head",
        "`floor_alpha` weights the even part, as in the official code: 0 is all by need, 1 is SnapKV",
        "a query group's scores are reduced by their mean, the official code's `gqa_func`",
        "the official `normalize` and `skip` are left out (off by default there)",
        "relies on the question standing at the end of the prompt; generated tokens are never evicted",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class AdaKv(Snapkv):
    """floor_alpha: the share of the budget that is split evenly (the official code's default 0.2). beta: PyramidKV's,
    for budgets that shrink from layer to layer (the paper's Ada-Pyramid uses 20; 1: every layer the same).
    """

    floor_alpha: float = 0.2
    beta: float = 1.0

    traits = Traits(exact=True, ragged=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor_alpha <= 1:
            raise RecipeError(f"{self.name}: floor_alpha = {self.floor_alpha}; use 0 to 1")
        check_beta(self.name, self.beta)

    def budgets(self, layer: LayerInfo, counts: list[int], newest: int) -> list[int]:
        """As SnapKV, or the layer's place in a pyramid."""
        if self.beta == 1:
            return super().budgets(layer, counts, newest)
        return [pyramid_budget(layer, self.budget(layer.length, newest), newest, self.beta)] * len(counts)

    def allocate(self, scores: list[Floats], budgets: list[int]) -> list[Integers]:
        """cap_i = round((1−α)·f_i + ⌊α·b⌋), f_i: the slots of head i among the layer's top Σb scores (algorithm 1)."""
        lengths = [len(own) for own in scores]
        total = min(sum(budgets), sum(lengths))
        owner = np.repeat(np.arange(len(scores)), lengths)
        frequency = np.bincount(owner[best(np.concatenate(scores), total)], minlength=len(scores)).tolist()
        capacities = [
            round((1 - self.floor_alpha) * count + math.floor(self.floor_alpha * budget))
            for count, budget in zip(frequency, budgets, strict=True)
        ]
        return super().allocate(scores, capacities)

    def kept(self, prompt: int, generated: int = 0) -> int:
        """As SnapKV on the mean over heads, and one slot of rounding."""
        return min(prompt, self.budget(prompt, self.window) + self.window + 1) + generated

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """The bottom layer, and one slot of rounding."""
        largest = bottom_layer(prompt, self.budget(prompt, self.window), self.window, self.beta)
        return min(prompt, largest + 1) + generated
