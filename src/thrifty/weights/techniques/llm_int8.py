"""LLM.int8(): vector-wise int8, with the few features that int8 would spoil multiplied apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from thrifty.arrays import Array, Floats
from thrifty.card import Card
from thrifty.formats.linear import PackedLinear, TokenWiseLinear
from thrifty.kernels.reference.affine import Halves, symmetric8
from thrifty.registry import technique
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations, WeightTechnique


@technique(
    stage="weights",
    card=Card(
        title="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
        paper="arXiv 2208.07339",
        year=2022,
        mechanism="Rows of weights and rows of activations are rounded to int8 with one scale each; the features of a "
        "row of activations that reach a threshold are left out of it and multiplied in higher precision.",
        claim="no degradation from 125M to 175B parameters: perplexity on C4 of the 13B model 12.45 in FP32 and 12.45 "
        "with LLM.int8()",
        limits=(
            "outlier features are found in each row of activations by itself: its result is the same in any batch",
            "the paper takes the union of outlier features over all rows of a batch",
            "weights of outlier columns are int8 codes times scales, as in the authors' code: 8 bits a weight in all",
            "the paper keeps those columns in FP16",
            "outliers are multiplied in FP32, in the paper in FP16; scales of weights are FP16, in its code FP32",
            "a row with many outliers is slower: each reads a column of the weights once more",
            "linears that read the same rows must have one threshold",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class LlmInt8(WeightTechnique):
    """threshold: of a feature's magnitude, from which on it is an outlier (§3.2: 6.0); 0: none is, which is vector-wise
    int8 alone.
    """

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 6.0

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        return TokenWiseLinear.rounded(linear.linear, vector_wise, 8, None, self.threshold or None)


def vector_wise(weight: Floats) -> tuple[Array, Halves]:
    """Codes int8 [n, in] and scales fp16 [n, 1] of rows fp32 [n, in]: 127/max|w| of each row, rounded to the nearest
    (§2.1, absmax quantisation; §3.1, one normalisation constant a row).
    """
    codes, scales = symmetric8(weight)
    return codes, np.ascontiguousarray(scales[:, None])
