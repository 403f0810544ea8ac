"""Quest: each decoded row reads the pages of the cache in which its query can score most; nothing is evicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thrifty.cache.model_info import ModelInfo
from thrifty.cache.page_selection import PageSelection
from thrifty.cache.policy import CachePolicy
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.registry import technique

CARD = Card(
    title="Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
    paper="arXiv:2406.10774",
    year=2024,
    mechanism=(
        "Keeps the whole cache, and of every page the least and greatest key of each channel; a decoded token reads "
        "only the pages in which its query can score most."
    ),
    claim="attention up to 7.03 times, decoding up to 2.23 times as fast at 32K tokens, with little loss of accuracy",
    limits=(
        "the cache is not smaller: bounds of pages come on top of it, 1.6 % with pages of 64 tokens, 6.3 % with 16",
        (
            "pages of 64 tokens, as the cache lies in memory, where the paper has 16; page = 16 chooses as the paper "
            "does, but reads a block of 64 where any of its four pages is chosen, so that hardly any time is saved"
        ),
        (
            "every query head chooses for itself, as in the paper's evaluation code; query heads that share keys and "
            "values read what any of them chose, up to as many budgets as they are"
        ),
        (
            "the page that is being filled is always read and counts in the budget, as in the paper's kernels (its "
            "evaluation code lets it compete)"
        ),
        "bounds are bf16, exact for a bf16 cache, and rounded away from the keys otherwise",
        (
            "a policy that evicts before it leaves pages of what it kept; one that watches decoded attention (h2o, "
            "fastgen) or adds to scores (kvmerger) is refused beside it"
        ),
        "rows of a prompt attend to everything, the first token of an answer so too",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Quest(CachePolicy):
    """budget: tokens that a query head reads, whole pages, at least three of them (the official code's least).

    page: tokens of a page. dense: so many first layers read everything, two as published (attention is less sparse
    there).
    """

    budget: int = 1024
    page: Literal[16, 32, 64] = 64
    dense: int = 2

    traits = Traits(selects=True)

    def __post_init__(self) -> None:
        if self.page not in (16, 32, 64) or self.dense < 0:
            raise RecipeError(f"quest: page = {self.page}, dense = {self.dense}; use page 16, 32 or 64, and dense ≥ 0")
        if self.budget < 3 * self.page or self.budget % self.page:
            nearest = max(3, round(self.budget / self.page)) * self.page
            raise RecipeError(
                f"quest: a budget of {self.budget} tokens is no whole number of pages of {self.page}, three or more; "
                f"use {nearest}, or smaller pages"
            )

    def selection(self, model: ModelInfo) -> PageSelection:
        """The same budget in all layers but the first."""
        layers = tuple(layer for layer in model.policy_layers if layer >= self.dense)
        return PageSelection(layers, self.page, self.budget // self.page)
