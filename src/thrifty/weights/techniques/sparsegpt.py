"""SparseGPT: weights are left out where the layer's output needs them least, and the rest makes up for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from thrifty.arrays import Flags, Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.kernels.reference.sparse_2_4 import GROUP, largest_two
from thrifty.registry import technique
from thrifty.weights.sparse_technique import SparseTechnique
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

    def prune(self, weight: Floats, calibration: Activations | None) -> tuple[Floats, Flags]:
        """Algorithm 1 with a mask for every four columns (§3.4)."""
        assert calibration is not None, "prepare shows it"
        if not len(calibration.inputs):  # an expert that no token reached
            return weight, largest_two(np.abs(weight))
        return swept(weight, hessian(calibration.inputs), self.damping, self.update)


def hessian(inputs: Floats) -> Matrix:
    """H = X·Xᵀ / tokens of inputs [tokens, columns]: fp64 [columns, columns] (eq. 2, but for its constant)."""
    columns = inputs.astype(np.float64)
    if not np.isfinite(columns).all():
        raise RecipeError("the calibration text makes inputs that are NaN or infinite: a layer before is damaged")
    product: Matrix = columns.T @ columns / len(columns)
    return product


def inverse_factor(second: Matrix, damping: float) -> Matrix:
    """U, upper, with UᵀU = H⁻¹, H damped. The square of U_jj is [H⁻¹]_jj of the columns from j on alone, so one factor
    has the inverses of all steps of the sweep (§3.3).
    """
    damped = second + np.eye(len(second)) * (damping * np.diag(second).mean())
    upper: Matrix = np.linalg.cholesky(np.linalg.inv(damped)).T
    return upper


def swept(weight: Floats, second: Matrix, damping: float, update: bool) -> tuple[Floats, Flags]:
    """The weights after the sweep, fp32 [out, in], and the mask of those that are kept."""
    w, h = weight.astype(np.float64), second.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    upper = inverse_factor(h, damping)
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
