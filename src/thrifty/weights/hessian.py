"""The squared error that other weights make in a linear's outputs: its second derivatives, and the error itself."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats
from thrifty.errors import RecipeError, ThriftyWarning
from thrifty.weights.calibration import Activations
from thrifty.weights.structure import LinearInfo

Doubles = npt.NDArray[np.float64]
SLICE = 1024  # tokens whose products are summed in fp32; slices are added in fp64
LEAF = 128  # columns of a triangle that is inverted at once


def finite_inputs(linear: LinearInfo, calibration: Activations | None) -> Floats:
    """What a linear reads, fp32 [tokens, columns]. Raises RecipeError where it is not finite."""
    assert calibration is not None, "the technique says that it needs calibration"
    if not np.isfinite(calibration.inputs).all():
        raise RecipeError(
            f"what '{linear.name}' reads on the calibration text has NaN or infinite values: the model overflows; "
            "calibrate with another text, or leave the layer out with skip"
        )
    return calibration.inputs


def inputs_of(linear: LinearInfo, calibration: Activations | None) -> Floats:
    """`finite_inputs`, with a warning where no token reached the linear, as happens to experts: a technique then has
    nothing to go by.
    """
    inputs = finite_inputs(linear, calibration)
    if not len(inputs):
        warnings.warn(
            f"no token of the calibration text reached '{linear.name}': it is rounded to the nearest; calibrate with a "
            "longer text",
            ThriftyWarning,
            stacklevel=2,
        )
    return inputs


def hessian(inputs: Floats) -> Doubles:
    """H = 2/n · Σ xᵀx, fp64 [columns, columns], of the squared output error in one row of weights (GPTQ, 2210.17323,
    §3.1, up to the factor 1/n). inputs: x, fp32 [n, columns]; no tokens give 0.
    """
    columns = inputs.shape[1]
    total = np.zeros((columns, columns))
    for start in range(0, len(inputs), SLICE):
        part = inputs[start : start + SLICE]
        total += part.T @ part
    total *= 2 / max(1, len(inputs))
    return total


def inverse_factor(hessian: Doubles, damping: float, name: str) -> Floats:
    """U, fp32 upper triangular with UᵀU = (H + λI)⁻¹ and λ = damping · mean(diag H) (GPTQ, §3.3, step 3).

    H = AAᵀ with A upper triangular is the Cholesky factor of H with rows and columns in reverse, and U = A⁻¹: the
    inverse of H is never formed. H is given up: it has λI added afterwards. A column that was always 0 has λ on the
    diagonal, and where all were, λ is 1. name: of the linear. Raises RecipeError where H + λI is not positive definite.
    """
    hessian[np.diag_indices_from(hessian)] += damping * float(np.diagonal(hessian).mean()) or 1.0
    try:
        lower = np.linalg.cholesky(hessian[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise RecipeError(
            f"the second moments of what '{name}' reads are not positive definite with damping = {damping:g}: "
            "use a larger damping, such as 0.1"
        ) from error
    factor = np.ascontiguousarray(lower[::-1, ::-1])
    del lower
    _invert(factor)
    return factor.astype(np.float32)


def _invert(upper: Doubles) -> None:
    """In place: of [[A, B], [0, D]] the inverse is [[A⁻¹, −A⁻¹BD⁻¹], [0, D⁻¹]]."""
    size = len(upper)
    if size <= LEAF:
        upper[:] = np.triu(np.linalg.inv(upper))
        return
    half = size // 2
    first, last, corner = upper[:half, :half], upper[half:, half:], upper[:half, half:]
    _invert(first)
    _invert(last)
    corner[:] = -(first @ corner) @ last


class OutputError:
    """The squared error of outputs, ‖D·Xᵀ‖², of any change D [rows, columns] of the weights; from XᵀX where there are
    fewer columns than tokens. inputs: X, fp32 [tokens, columns].
    """

    def __init__(self, inputs: Floats) -> None:
        self.inputs = inputs
        tokens, columns = inputs.shape
        self.moments = (hessian(inputs) * (tokens / 2)).astype(np.float32) if columns < tokens else None

    def __call__(self, difference: Floats) -> float:
        """The error, summed over tokens and rows."""
        if self.moments is None:
            return float(np.square(difference @ self.inputs.T).sum(dtype=np.float64))
        return float(np.einsum("rc,rc->", difference @ self.moments, difference, dtype=np.float64))
