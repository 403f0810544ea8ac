"""Random eviction: a control. What a claim's technique does not beat was won by the setting, not by the technique."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.scoring_policy import ScoringPolicy
from thrifty.cache.statistics import Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="Random eviction (a control, no published method)",
    paper="none: a baseline that every eviction must beat",
    year=2023,
    mechanism="Keeps, a head, the first tokens and a random choice of the others; nothing of the model is looked at.",
    claim="none: at 1 budget with a technique it must lose, or the measurement says nothing",
    limits=(
        "made for claims, not for use",
        "every layer and head draws its own slots, so that many tokens survive in some head",
        "generated tokens are never evicted",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class RandomEviction(ScoringPolicy):
    """keep: kept share of the prompt, or capacity: kept slots of every head. sinks: first slots that stay, counted in
    the budget: without them a model falls apart, and a control would lose too easily. window: newest slots that stay,
    counted in the budget and at most half of it: where a question ends the prompt, what keeps it would win by that
    alone. seed: another one is another choice.
    """

    sinks: int = 4
    window: int = 0
    seed: int = 0

    traits = Traits(exact=True, control=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0 or self.window < 0 or self.seed < 0:
            raise RecipeError(
                f"random-eviction: sinks = {self.sinks}, window = {self.window}, seed = {self.seed}; use 0 or more"
            )

    def newest(self, prompt: int, stats: Stats | None = None) -> int:
        """The window."""
        return min(self.window, self.slots(prompt) // 2)

    def score(self, kv: LayerView, head: int, stats: Stats) -> Floats:
        """[slots] fp32: uniform by seed, layer, head, number of slots and slot, so that a request has one choice alone
        and in a batch, and prompts of other lengths have others.
        """
        slots = kv.count(head)
        scores = np.random.default_rng((self.seed, kv.layer, head, slots)).random(slots, dtype=np.float32)
        scores[: self.sinks] = 2.0
        return scores
