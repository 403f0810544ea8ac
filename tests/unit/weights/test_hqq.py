"""HQQ against its loop in plain numbers, and against figures of the authors' package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.weights.grid import Grid
from thrifty.weights.structure import LinearInfo
from thrifty.weights.techniques.hqq import Solver, half_quadratic, shrink, solve

RANDOM = np.random.default_rng(7)
WEIGHT = (RANDOM.standard_normal((5, 80)) * 0.05).astype(np.float32)
WEIGHT[1, 7], WEIGHT[4, 70] = 0.9, -0.6  # outliers, which the sparse norm is for


def hqq(**options: Any) -> Any:
    return registry.build("weights", {"technique": "hqq"} | options)


def slow(weight: Floats, group: int, highest: int, solver: Solver) -> dict[tuple[int, int], float]:
    """The zero point of every row and group, by plain numbers."""
    groups = {
        (row, first): [float(value) for value in weight[row, first : first + group]]
        for row in range(len(weight))
        for first in range(0, weight.shape[1], group)
    }
    inverse = {key: min(highest / (max(values) - min(values)), 2e4) for key, values in groups.items()}
    zero = {key: -min(values) * inverse[key] for key, values in groups.items()}
    if highest == 15:
        zero = {key: float(np.rint(value)) for key, value in zero.items()}
    least, beta = math.inf, solver.beta
    for _ in range(solver.iterations):
        total = 0.0
        for key, values in groups.items():
            s, z, centred = inverse[key], zero[key], []
            for value in values:
                code = min(max(float(np.rint(value * s + z)), 0.0), float(highest))
                error = value - (code - z) / s
                total += abs(error)
                kept = max(abs(error) - abs(error) ** (solver.norm - 1) / beta, 0.0) if error else 0.0
                centred.append(code - (value - math.copysign(kept, error)) * s)
            zero[key] = sum(centred) / len(centred)
        beta *= solver.kappa
        if total / weight.size >= least:
            break
        least = total / weight.size
    return zero


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("solver", [Solver(), Solver(norm=1.0, beta=300.0, kappa=1.01), Solver(iterations=1)])
def test_it_is_the_loop_in_plain_numbers(bits: int, solver: Solver) -> None:
    """80 columns in groups of 32: the last group is a short one."""
    expected = slow(WEIGHT, 32, (1 << bits) - 1, solver)
    inverse, zero = solve(WEIGHT, Grid(bits, 32), solver)
    for (row, first), value in expected.items():
        assert zero[row, first // 32] == pytest.approx(value, abs=2e-3 * (1 << bits) / 16), (row, first)
    assert inverse.shape == zero.shape == (5, 3)


def test_outliers_are_what_is_left_of_large_errors() -> None:
    errors = np.array([0.0, 0.01, -0.01, 0.5, -2.0], np.float32)
    expected = [0.0, 0.0, 0.0, 0.5 - 0.5**-0.3 / 10, -(2.0 - 2.0**-0.3 / 10)]
    assert np.allclose(shrink(errors, 10.0, 0.7), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_the_nearest_on_the_grid_that_is_stored(bits: int) -> None:
    grid = Grid(bits, 32)
    stored = half_quadratic(WEIGHT, grid)
    inverse, zero = solve(WEIGHT, grid, Solver())
    step = np.repeat(1 / inverse, 32, axis=1)[:, :80]
    inside = (np.repeat(zero, 32, axis=1)[:, :80] + WEIGHT / step).clip(0, (1 << bits) - 1)
    near = np.abs(stored.dequantize() / step + np.repeat(zero, 32, axis=1)[:, :80] - inside)
    assert near.max() < 0.5 + 0.02 * (1 << bits) / 16
    assert stored.label == f"int{bits}-g32" and stored.nbytes == GroupLinear.quantize(WEIGHT, bits, 32).nbytes


def test_the_sparse_norm_of_the_errors_falls() -> None:
    """Of weights with heavy tails, whose least and greatest say little of the rest."""
    weight = np.random.default_rng(1).standard_t(4, (64, 256)).astype(np.float32)
    own, nearest = half_quadratic(weight, Grid(4, 64)), GroupLinear.quantize(weight, 4, 64)

    def norm(linear: GroupLinear) -> float:
        return float((np.abs(linear.dequantize() - weight) ** 0.7).sum())

    assert norm(own) < norm(nearest)


def test_a_constant_group_comes_back() -> None:
    constant = np.full((2, 64), 0.375, np.float32)
    assert np.allclose(half_quadratic(constant, Grid(4, 64)).dequantize(), constant, atol=1e-3)


def test_the_layer_keeps_its_bias_and_refuses_what_is_no_number() -> None:
    bias = np.arange(5, dtype=np.float32)
    stored = hqq(group=32).compress(LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(WEIGHT, bias=bias)), None)
    assert np.array_equal(stored.bias, bias)
    assert np.array_equal(stored.dequantize(), half_quadratic(WEIGHT, Grid(4, 32)).dequantize())
    broken = WEIGHT.copy()
    broken[0, 0] = np.inf
    with pytest.raises(KernelError, match=r"'layers\.0\.mlp\.up' has 1 NaN or infinite value"):
        hqq().compress(LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(broken)), None)
    with pytest.raises(RecipeError, match="option 'kappa'"):
        hqq(kappa=0.5)


AUTHORS = {
    2: [0.35594070, 1.66250479, 1.35134375, 2.50272727],
    3: [0.54927832, 3.33751130, 3.71563506, 5.99594688],
    4: [1.65470338, 7.18752384, 8.03796864, 12.98238659],
    8: [27.81745911, 125.87540436, 128.83296204, 212.98181152],
}
"""Zero points of hqq 0.2.8.post1 on a CPU in fp32: group_size 32, axis 1, round_zero at 4 bits as by default there."""


@pytest.mark.parametrize("bits", sorted(AUTHORS))
def test_zero_points_are_those_of_the_authors_package(bits: int) -> None:
    row, column = np.divmod(np.arange(128), 64)
    weight = (np.sin(0.7 * column + 1.3 * row) * 0.05 * (1 + row)).astype(np.float32).reshape(2, 64)
    weight[0, 9], weight[1, 40] = 0.4, -0.5
    _, zero = solve(weight, Grid(bits, 32), Solver())
    assert np.allclose(zero.reshape(-1), AUTHORS[bits], rtol=2e-5)
