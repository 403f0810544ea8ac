"""Knorm: keys of small norm receive most attention, so those stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thrifty.arrays import Floats
from thrifty.cache.scoring_policy import ScoringPolicy
from thrifty.cache.statistics import Stats
from thrifty.cache.traits import Traits
from thrifty.card import Card
from thrifty.registry import technique

if TYPE_CHECKING:
    from thrifty.cache.view import LayerView

CARD = Card(
    title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    paper="arXiv:2406.11430",
    year=2024,
    mechanism="Keeps, a head, the prompt tokens whose keys have the smallest L2 norm; no attention is looked at.",
    claim="half the cache without loss on language modelling and needles, a tenth of it on passkeys (Llama-2-7B)",
    limits=(
        "every layer is compressed; the paper leaves the first two whole for language modelling",
        "generated tokens are never evicted",
        "none of the newest tokens is kept for being new",
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Knorm(ScoringPolicy):
    """keep: kept share of the prompt, or capacity: kept slots of every head. Nothing happens to shorter prompts."""

    traits = Traits(exact=True)

    def score(self, kv: LayerView, head: int, stats: Stats) -> Floats:
        """[slots]: −‖k‖₂ (§3). Rotation does not change a key's norm."""
        return -np.sqrt(np.square(kv.keys(head)).sum(axis=1))
