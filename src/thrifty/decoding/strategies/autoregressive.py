"""Plain decoding: one forward pass, one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.card import Card
from thrifty.decoding.draft import NO_DRAFT, Accepted, Draft
from thrifty.decoding.scores import Scores
from thrifty.decoding.strategy import Asked, DecodingStrategy, Judged, choose
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

    def propose(self, asked: Sequence[Asked]) -> list[Draft]:
        """No draft for anybody."""
        return [NO_DRAFT] * len(asked)

    def accept(self, judged: Sequence[Judged], scores: Scores) -> list[Accepted]:
        """One choice a sequence, from its only row."""
        return [Accepted((choose(sequence.continuation.sampler, scores, sequence.first_row),)) for sequence in judged]
