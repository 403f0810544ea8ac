"""Plain decoding: one forward pass, one token."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.card import Card
from thrifty.decoding.strategy import Accepted, Batch, DecodingStrategy, Scores, choose
from thrifty.registry import technique


@technique(
    stage="decoding",
    card=Card(
        title="Autoregressive decoding",
        paper="the baseline that every other decoding strategy is measured against",
        year=1951,
        mechanism="Each step runs the model once on the last token and samples the next from its logits.",
        claim="1 token a forward pass; the output distribution is the model's own",
        limits=("reads all weights once for every token",),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Autoregressive(DecodingStrategy):
    """One token a step and sequence, drawn by the sequence's own sampler."""

    def accept(self, batch: Batch, scores: Scores) -> list[Accepted]:
        """One choice a continuation, from its only row."""
        pairs = zip(batch.continuations, batch.first_rows, strict=True)
        return [Accepted((choose(item.sampler, scores, row),)) for item, row in pairs]
