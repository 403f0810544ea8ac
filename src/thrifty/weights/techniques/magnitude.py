"""Magnitude pruning: the smallest weights go. The baseline of every pruning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thrifty.arrays import Flags, Floats
from thrifty.card import Card
from thrifty.kernels.reference.sparse_2_4 import largest_two
from thrifty.registry import technique
from thrifty.weights.sparse_technique import SparseTechnique, finite
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations


@technique(
    stage="weights",
    card=Card(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        paper="arXiv 1506.02626",
        year=2015,
        mechanism="Of every four weights of a row the two of largest magnitude stay, the others are zero and not "
        "stored; no calibration.",
        claim="AlexNet 9 times and VGG-16 13 times fewer weights without loss of accuracy, after retraining",
        limits=(
            (
                "the paper prunes by a threshold a layer and retrains, again and again; here once, two of every four "
                "weights (2:4, arXiv 2104.08378), without retraining: a baseline for maskllm and sparsegpt"
            ),
            "its claim is of convolutional networks and has no check here",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Magnitude(SparseTechnique):
    """values, group: how the kept weights are stored."""

    def prune(self, linear: LinearInfo, calibration: Activations | None) -> tuple[Floats, Flags]:
        """The two largest |w| of every four."""
        weight = finite(linear)
        return weight, largest_two(np.abs(weight))
