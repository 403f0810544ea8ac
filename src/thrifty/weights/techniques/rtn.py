"""Round-to-nearest: the baseline that every other weight quantisation is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thrifty.card import Card
from thrifty.formats.linear import GroupLinear, PackedLinear
from thrifty.registry import technique
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import OUTSIDE, Activations, WeightTechnique


@technique(
    stage="weights",
    card=Card(
        title="Round-to-nearest (RTN), the baseline in GPTQ: Accurate Post-Training Quantization",
        paper="arXiv 2210.17323",
        year=2022,
        mechanism="Every group of consecutive weights of a row is rounded to the nearest of 2^bits evenly "
        "spaced values between its smallest and largest, without any calibration.",
        claim="LLaMA-7B, WikiText2 perplexity: 5.68 in FP16, 6.29 at 4 bits per output row "
        "(table in the GPTQ authors' repository)",
        limits=(
            "RTN has no paper of its own; the claim is that of a baseline in others' work",
            "the claim's grids span a whole row; here groups of 32 to 128 weights, which lose less",
            "the minimum is stored as float16, not as an integer zero point",
            "weights that already lie on such a grid come back exactly: score it on the off-grid view",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class RoundToNearest(WeightTechnique):
    """bits and group of the stored codes; symmetric: no minimum per group, 0.5 bit less at group 32.

    embedding_bits: also store the embedding and the logits' matrix, at 4 or 8 bits; None leaves them as they
    are.
    """

    bits: Literal[2, 3, 4, 8] = 4
    group: Literal[32, 64, 128] = 32
    symmetric: bool = False
    embedding_bits: Literal[4, 8] | None = None

    def covers(self, linear: LinearInfo) -> bool:
        if linear.role in OUTSIDE:
            return self.embedding_bits is not None
        return super().covers(linear)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        bits = self.embedding_bits if linear.role in OUTSIDE and self.embedding_bits else self.bits
        return GroupLinear.requantize(linear.linear, bits, self.group, self.symmetric)
