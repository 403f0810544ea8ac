"""The full cache: every token, as it was written."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cache.policy import CachePolicy
from thrifty.card import Card
from thrifty.registry import technique

CARD = Card(
    title="Attention Is All You Need",
    paper="arXiv:1706.03762",
    year=2017,
    mechanism="Keeps the key and value of every token at full precision: the baseline of every cache technique.",
    claim="2 · layers · KV heads · head size · 2 bytes a token; no loss",
    limits=("memory and the bytes read per token grow with the context",),
)


@technique(stage="cache", card=CARD)
@dataclass(frozen=True, kw_only=True)
class Full(CachePolicy):
    """Nothing is compressed; prefixes are shared through the tree."""
