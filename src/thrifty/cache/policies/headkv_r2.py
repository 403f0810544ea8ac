"""HeadKV-R2: HeadKV with heads scored by looking up the right one of two answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.cache.policies.headkv import LIMITS, Headkv
from thrifty.card import Card
from thrifty.registry import technique

CARD = Card(
    title=(
        "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and Reasoning "
        "(HeadKV-R2)"
    ),
    paper="arXiv:2410.19258",
    year=2024,
    mechanism=(
        "HeadKV whose scores are the attention that a head gives to the correct answer of a needle that holds a piece "
        "of reasoning, a wrong answer and the correct one."
    ),
    claim=(
        "97 % of the full cache's score on contextual questions with 1.5 % of it (Llama-3-8B, 128 slots a head: 32.00; "
        "Ada-SnapKV 28.52, SnapKV 26.43, full 32.90)"
    ),
    limits=(
        *LIMITS,
        (
            "the model must answer the riddles in its own words, twice as often rightly as wrongly: small ones guess, "
            "and `thrifty heads` says how often"
        ),
        (
            "N of eq. 2 is the tokens of the right answer, and looks at these count (the official code takes the whole "
            "sentence that holds it)"
        ),
    ),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class HeadkvR2(Headkv):
    """Headkv with the scores of kind "r2" (§3.1)."""

    kind: ClassVar[str] = "r2"
