"""Generalised Gaussian priors: weights reshaped, and stored as sums of two powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from thrifty.card import Card
from thrifty.formats.linear import PackedLinear
from thrifty.kernels.reference.affine import require_finite
from thrifty.registry import technique
from thrifty.weights import rf8
from thrifty.weights.calibration import Activations
from thrifty.weights.generalised_gaussian import deep_shape
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import WeightTechnique


@technique(
    stage="weights",
    card=Card(
        title="It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs",
        paper="arXiv 2506.00486 (versions 1 to 3), 2504.16968",
        year=2025,
        mechanism="Weights follow a generalised Gaussian: a training begins with it and is drawn to it (BackSlash), "
        "so that entropy coding stores them in few bits; then DeepShape narrows their histogram, and RF8 stores each "
        "as a sum of two powers of two in 8 bits.",
        claim="BackSlash: 60 to 90 % less memory of entropy-coded weights without a loss of accuracy",
        limits=(
            "`thrifty compress` does DeepShape and RF8; first weights and BackSlash belong to a training: the claim's",
            "DeepShape is an option: the authors advise a short training after it, which `compress` does not do",
            "the shape is estimated for each matrix; the authors' code has one for all parameters",
            "DeepShape's tail begins at a share of a matrix's weights, over several levels; theirs at 1,000 of all",
            "RF8 has 16 exponents below a matrix's largest; what is smaller becomes 0.75 of the smallest, and 0 does",
            "the order of RF8's bits is our own: the published layout is unconfirmed",
            "the product reads a table of 256 values in fp32; the paper adds two shifted activations",
            "files are not entropy-coded: the claim counts the bits of Exp-Golomb codes",
            "BackSlash takes no weight past 0, leaves out vectors and estimates the shape every 20 steps",
            "first weights have a variance by inputs; the released code's by outputs. No gain of a leaky ReLU",
            "the claim's training has BackSlash to its end; the paper's goes on without it for a while",
            "version 4 of the paper has constraints on activations and gradients instead: not built",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class GGD(WeightTechnique):
    """reshape: DeepShape before RF8. tail: the share of a matrix's weights from which a level belongs to the tail that
    DeepShape leaves alone.
    """

    bytes_need_calibration: ClassVar[bool] = False

    reshape: bool = False
    tail: Annotated[float, Field(gt=0, le=0.5)] = 1e-5

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        weight = linear.linear.dequantize()
        require_finite(weight, f"'{linear.name}'")
        if self.reshape:
            weight = deep_shape(weight, max(1, round(self.tail * weight.size)))
        return rf8.stored(weight, linear.linear.bias)
