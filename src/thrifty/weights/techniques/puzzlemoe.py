"""PuzzleMoE: experts merged two by two, element by element; masks and signs lie in bits that bf16 does not need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.formats.linear import PackedLinear, PairedLinear
from thrifty.kernels.reference.affine import require_finite
from thrifty.registry import technique
from thrifty.weights.expert_pairs import ExpertLinear, ExpertPairs

Mask = npt.NDArray[np.bool_]


class Merged(NamedTuple):
    """magnitude: fp32, at least 0, of both experts. has: which elements the first and the second read it at."""

    magnitude: Floats
    has: tuple[Mask, Mask]


@technique(
    stage="weights",
    card=Card(
        title="PuzzleMoE: Efficient Compression of Large Mixture-of-Experts Models via Sparse Expert Merging and "
        "Bit-packed Inference",
        paper="arXiv 2511.04805",
        year=2025,
        mechanism="Merges experts in pairs: weights of like magnitude become their mean, of the others the more "
        "salient one stays and its partner has a zero there; masks and signs lie in the bits of a bf16 word that "
        "weights do not use.",
        claim="Mixtral-8x7B with half its experts' bytes: 72.6 on average over zero-shot tasks, 74.1 unmerged (98 %)",
        limits=(
            "what experts read is seen layer by layer, in the model as merged so far; the paper runs the model once",
            "calibration text is the package's own unless another is given, not C4",
            "an expert that no calibration token was sent to has no salience: its partner keeps what is not similar",
            "experts that are stored in another format are read from it and merged as bf16",
            "magnitudes below 2^-15 become that or 0, whichever is nearer; the paper clamps all of them up",
            "pairs are drawn at random, as in the paper, anew in each layer",
            "the paper's further rounding of merged experts to 3 bits is not built in",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class PuzzleMoE(ExpertPairs):
    """similarity: the relative difference of magnitudes up to which two weights are merged into their mean (τ). seed:
    of the pairs.
    """

    similarity: Annotated[float, Field(ge=0, le=1)] = 0.4
    seed: Annotated[int, Field(ge=0)] = 0

    def pairs(self, layer: int, count: int) -> list[tuple[int, int]]:
        """Experts in random order, neighbours together (§3.1: looking for better pairs gains less than 0.3 %)."""
        order = np.random.default_rng([self.seed, layer]).permutation(count).tolist()
        return [(order[place], order[place + 1]) for place in range(0, count, 2)]

    def merge(self, first: ExpertLinear, second: ExpertLinear) -> tuple[PackedLinear, PackedLinear]:
        a, b = (one.info.linear.dequantize() for one in (first, second))
        for one, weight in ((first, a), (second, b)):
            require_finite(weight, f"'{one.info.name}'")
        merged = merge(a, b, first.strength, second.strength, self.similarity)
        made = PairedLinear.pair(merged.magnitude, (a < 0, b < 0), merged.has)
        for one, linear in zip((first, second), made, strict=True):
            if one.info.linear.bias is not None:
                linear.set_bias(one.info.linear.bias)
        return made


def merge(first: Floats, second: Floats, strength: Floats, other_strength: Floats, similarity: float) -> Merged:
    """Of two weights fp32 [out, in], what they share. strength, other_strength: ‖X‖₂ of what each reads, fp32 [in].

    Similar where |a − b| / (a + b) ≤ τ with a, b the magnitudes (eq. 1): both have the mean. Elsewhere the one of
    greater salience |W|·‖X‖₂ has its own magnitude, the other nothing (eq. 2 to 4); of equals the first.
    """
    a, b = np.abs(first), np.abs(second)
    similar = np.abs(a - b) <= np.float32(similarity) * (a + b)
    wins = a * strength >= b * other_strength
    magnitude = np.where(similar, (a + b) / 2, np.where(wins, a, b))
    return Merged(magnitude.astype(np.float32), (wins | similar, ~wins | similar))
