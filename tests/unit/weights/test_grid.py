"""Grids and the second moments of inputs: what techniques round to, and what they hold an error against."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.errors import RecipeError, ThriftyWarning
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.weights.calibration import Activations
from thrifty.weights.grid import Grid
from thrifty.weights.hessian import OutputError, hessian, inputs_of, inverse_factor
from thrifty.weights.structure import LinearInfo

RANDOM = np.random.default_rng(5)
WEIGHT = RANDOM.standard_normal((20, 150), np.float32)
WEIGHT[3, 32:64] = 0.25  # a group that is constant, another of zeros
WEIGHT[4, :32] = 0.0
INPUTS = RANDOM.standard_normal((300, 150), np.float32) * np.exp(RANDOM.standard_normal(150, np.float32))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_a_grid_is_the_one_that_rounding_to_the_nearest_has(bits: int, group: int, symmetric: bool) -> None:
    """150 columns: the last group is a short one."""
    grid = Grid(bits, group, symmetric)
    expected = GroupLinear.quantize(WEIGHT, bits, group, symmetric)
    assert np.array_equal(grid.rounded(WEIGHT), expected.dequantize())
    groups = grid.split(WEIGHT)
    steps = grid.fit(groups)
    codes = steps.codes(groups)
    stored = grid.stored(codes.reshape(20, -1)[:, :150], steps, None)
    assert stored.label == expected.label and stored.nbytes == expected.nbytes
    for name, array in expected.state().items():
        assert np.array_equal(stored.state()[name], array), name
    assert np.array_equal(steps.values(codes).reshape(20, -1)[:, :150], expected.dequantize())


def test_the_factor_is_that_of_the_inverse() -> None:
    """Of 150 columns, so that the triangle is inverted in parts."""
    moments = hessian(INPUTS)
    exact = INPUTS.astype(np.float64)
    assert np.allclose(moments, 2 / 300 * exact.T @ exact, rtol=1e-4, atol=1e-4)
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(150)
    factor = inverse_factor(moments.copy(), 0.01, "layer")
    assert np.array_equal(factor, np.triu(factor)) and (np.diagonal(factor) > 0).all()
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    assert np.allclose(factor, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_moments_that_have_no_factor_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"'layer' reads are not positive definite with damping = 0\.01: use a larger"
    ):
        inverse_factor(np.array([[1.0, 2.0], [2.0, 1.0]]), 0.01, "layer")


@pytest.mark.parametrize("tokens", [40, 300])
def test_an_output_error_is_summed_over_tokens_and_rows(tokens: int) -> None:
    """With fewer tokens than columns and with more."""
    inputs, difference = INPUTS[:tokens], WEIGHT * 0.01
    expected = np.square(difference.astype(np.float64) @ inputs.T.astype(np.float64)).sum()
    assert OutputError(inputs)(difference) == pytest.approx(expected, rel=1e-4)


def test_inputs_that_are_missing_or_no_numbers_are_told() -> None:
    linear = LinearInfo("layers.1.mlp.experts.up.3", DenseLinear.from_weight(WEIGHT))
    none = Activations(np.empty((0, 150), np.float32))
    with pytest.warns(
        ThriftyWarning, match=r"no token of the calibration text reached 'layers\.1\.mlp\.experts\.up\.3'"
    ):
        assert len(inputs_of(linear, none)) == 0
    broken = INPUTS.copy()
    broken[7, 3] = np.inf
    with pytest.raises(RecipeError, match=r"'layers\.1\.mlp\.experts\.up\.3' reads .* NaN or infinite values"):
        inputs_of(linear, Activations(broken))
