"""SparseGPT: weights are left out where the layer's output needs them least, and the rest makes up for them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from thrifty.arrays import Flags, Floats
from thrifty.card import Card
from thrifty.errors import ThriftyWarning
from thrifty.kernels.reference.sparse_2_4 import GROUP, largest_two
from thrifty.registry import technique
from thrifty.weights.hessian import finite_inputs, hessian, inverse_factor
from thrifty.weights.sparse_technique import SparseTechnique, finite
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Activations

Matrix = npt.NDArray[np.float64]
BLOCK = 128  # columns whose updates of those behind them are put off and done together


@technique(
    stage="weights",
    card=Card(
        title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        paper="arXiv 2301.00774",
        year=2023,
        mechanism="Column by column from the left, the two weights of every four whose loss w² / [H⁻¹]² is least go, "
        "and all columns to the right move so that the layer's output on calibration text changes least.",
        claim="OPT-175B at 2:4, raw-WikiText2 perplexity: 8.74 against 8.35 dense (OPT-13B: 13.20 against 10.13)",
        limits=(
            "two of every four weights only; the paper has unstructured sparsity too",
            "calibrated with 16 sequences of 256 tokens by default; the paper: 128 of 2048 of C4",
            "values of 8 or 4 bits are rounded after the sweep, not inside it",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class SparseGPT(SparseTechnique):
    """values, group: how the kept weights are stored. damping: added to the diagonal of H, as a share of its mean.
    update: whether what is kept makes up for what is left out; without, masks alone are chosen so, by the weights as
    they are.
    """

    needs_calibration: ClassVar[bool] = True

    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    update: bool = True

    def prune(self, linear: LinearInfo, calibration: Activations | None) -> tuple[Floats, Flags]:
        """Algorithm 1 with a mask for every four columns (§3.4)."""
        weight, inputs = finite(linear), finite_inputs(linear, calibration)
        if not len(inputs):
            warnings.warn(
                f"no token of the calibration text reached '{linear.name}': its largest weights are kept; calibrate "
                "with a longer text",
                ThriftyWarning,
                stacklevel=2,
            )
            return weight, largest_two(np.abs(weight))
        weight[:, ~inputs.any(axis=0)] = 0  # what nothing reaches is as good as zero
        return swept(weight, inverse_factor(hessian(inputs), self.damping, linear.name), self.update)


def swept(weight: Floats, factor: Floats, update: bool) -> tuple[Floats, Flags]:
    """The weights after the sweep, fp32 [out, in], and the mask of those that are kept.

    factor: U [in, in], UᵀU = H⁻¹: the square of U_jj is [H⁻¹]_jj of the columns from j on alone, so that one factor has
    the inverses of all steps of the sweep (§3.3).
    """
    w, upper = weight.astype(np.float64), factor.astype(np.float64)
    mask = np.zeros(w.shape, np.bool_)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        errors = np.zeros((len(w), stop - start))
        for column in range(start, stop):
            if column % GROUP == 0:
                four = slice(column, column + GROUP)
                mask[:, four] = largest_two(saliency(w[:, four], np.diag(upper)[four]))
            if not update:
                continue
            gone = np.where(mask[:, column], 0.0, w[:, column])
            error = gone / upper[column, column]
            w[:, column:stop] -= np.outer(error, upper[column, column:stop])
            errors[:, column - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return np.where(mask, w, 0.0).astype(np.float32), mask


def saliency(weight: Matrix, diagonal: Matrix) -> Floats:
    """w² / [U_jj]²: what the layer's output loses without a weight, the best update of the others done (eq. 4)."""
    scores: Floats = np.square(weight / diagonal)
    return scores
