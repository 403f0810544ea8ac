"""MARLIN's GPTQ against the authors' search, slowly, one row and candidate at a time; what it keeps and hands on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS
from tests.unit.weights.conftest import build as build_model

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError, ThriftyWarning
from thrifty.formats.linear import DenseLinear, GroupLinear, ZeroPointLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference import marlin as layout
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.hessian import OutputError
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques import marlin as module

RANDOM = np.random.default_rng(21)
COLUMNS = 200  # a group of 128 and a short one
WEIGHT = RANDOM.standard_t(3, (8, COLUMNS)).astype(np.float32)
INPUTS = RANDOM.standard_normal((500, COLUMNS), np.float32) @ (RANDOM.standard_normal((COLUMNS, COLUMNS)) / 8).astype(
    np.float32
)
TEXT = CalibrationSet("numbers", np.random.default_rng(2).integers(0, 50, (4, 24)))


def marlin(**options: Any) -> Any:
    return registry.build("weights", {"technique": "marlin"} | options)


def compressed(weight: Floats, inputs: Floats, **options: Any) -> GroupLinear:
    linear = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight))
    stored = marlin(**options).compress(linear, Activations(inputs))
    assert isinstance(stored, GroupLinear)
    return stored


def slow(weight: Floats, inputs: Floats) -> Floats:
    """The authors' loop in fp64: at each group's first column the scale of 76 whose rounding of what is left of the
    group has the least ‖(ŵ − w)·U⁻¹‖², U the group's part of the factor; then GPTQ's columns, zero point 8.
    """
    moments = 2 / len(inputs) * inputs.astype(np.float64).T @ inputs
    moments += 0.1 * np.diagonal(moments).mean() * np.eye(len(moments))
    upper = np.linalg.cholesky(np.linalg.inv(moments)).T
    result = np.empty(weight.shape)
    for row in range(len(weight)):
        rest = weight[row].astype(np.float64)
        for column in range(len(rest)):
            if column % 128 == 0:
                end = min(column + 128, len(rest))
                group, part = rest[column:end], upper[column:end, column:end]
                errors = {}
                for tried in range(76):
                    scale = float(np.float16(2 * (1 - tried / 100) * np.abs(group).max() / 15))
                    rounded = scale * (np.clip(np.rint(group / scale) + 8, 0, 15) - 8)
                    errors[scale] = np.square(np.linalg.solve(part.T, rounded - group)).sum()
                scale = min(errors, key=errors.__getitem__)
            result[row, column] = scale * (np.clip(np.rint(rest[column] / scale) + 8, 0, 15) - 8)
            error = (rest[column] - result[row, column]) / upper[column, column]
            rest[column:] -= error * upper[column, column:]
    return result.astype(np.float32)


def test_it_is_the_authors_gptq() -> None:
    """Equal weights, but where fp32 decides between two codes or scales otherwise than fp64."""
    expected, own = slow(WEIGHT, INPUTS), compressed(WEIGHT, INPUTS).dequantize()
    assert (own == expected).mean() > 0.95
    error = OutputError(INPUTS)
    assert error(own - WEIGHT) == pytest.approx(error(expected - WEIGHT), rel=0.03)


def test_clipping_is_better_for_weights_with_long_tails() -> None:
    error = OutputError(INPUTS)
    ours, unclipped = (error(compressed(WEIGHT, INPUTS, shrink=shrink).dequantize() - WEIGHT) for shrink in (0.75, 0.0))
    nearest = error(GroupLinear.quantize(WEIGHT, 4, 128, symmetric=True).dequantize() - WEIGHT)
    assert ours < 0.9 * unclipped and unclipped < nearest


def test_codes_that_are_marlins_stay_to_the_bit() -> None:
    codes = RANDOM.integers(0, 16, (40, COLUMNS), np.uint8)
    scales = RANDOM.random((40, 2)).astype(np.float16)
    bias = RANDOM.standard_normal(40).astype(np.float32)
    zeros = np.full((40, 2), 8)
    file = ZeroPointLinear.from_codes(codes, scales, zeros, 4, 128, bias)
    own = marlin().compress(LinearInfo("a", file), None)
    assert isinstance(own, GroupLinear) and not own.has_minimum and own.nbytes < file.nbytes
    assert np.array_equal(own.dequantize(), file.dequantize()) and np.array_equal(own.bias, bias)
    assert marlin().compress(LinearInfo("a", own), None) is own


@pytest.mark.parametrize("zero, group", [(7, 128), (8, 64)])
def test_other_grids_are_rounded_anew(zero: int, group: int) -> None:
    codes = RANDOM.integers(0, 16, (20, COLUMNS), np.uint8)
    groups = -(-COLUMNS // group)
    scales, zeros = RANDOM.random((20, groups)) / 8 + 0.01, np.full((20, groups), 8)
    zeros[3, 1] = zero
    file = ZeroPointLinear.from_codes(codes, scales, zeros, 4, group)
    assert module.carried(file) is None
    own = marlin().compress(LinearInfo("a", file), Activations(INPUTS))
    assert own.label == "int4-g128" and not np.array_equal(own.dequantize(), file.dequantize())


def test_a_gpu_reads_the_same_weights() -> None:
    weight = RANDOM.standard_normal((256, 256), np.float32)
    own = compressed(weight, RANDOM.standard_normal((300, 256), np.float32))
    x = RANDOM.standard_normal((16, 256)).astype(np.float16)
    y = layout.matmul(x, *module.gpu_arrays(own))
    np.testing.assert_allclose(y, x.astype(np.float32) @ own.dequantize().T, rtol=1e-4, atol=1e-3)
    if dispatch.native() is not None:  # whose activations have 8 bits
        here = dispatch.matmul(own, x.astype(np.float32))
        assert np.linalg.norm(here - y) < 0.01 * np.linalg.norm(y)


def test_what_has_no_form_for_gpus_is_refused() -> None:
    with pytest.raises(KernelError, match="not 8 × 200"):
        module.gpu_arrays(compressed(WEIGHT, INPUTS))
    with pytest.raises(KernelError, match="symmetric int4-g128, not int4-g32"):
        module.gpu_arrays(GroupLinear.quantize(WEIGHT, 4, 32))


def test_a_row_is_the_same_in_every_batch() -> None:
    if dispatch.native() is None:
        pytest.skip("needs the native kernels")
    own = compressed(RANDOM.standard_normal((48, COLUMNS), np.float32), INPUTS)
    x = RANDOM.standard_normal((64, COLUMNS), np.float32)
    whole = dispatch.matmul(own, x)
    np.testing.assert_array_equal(own.oracle(x), whole)
    for rows in (1, 2, 4, 7, 16, 32):
        assert np.array_equal(dispatch.matmul(own, x[:rows]), whole[:rows])


def test_what_is_no_number_is_refused_and_options_have_bounds() -> None:
    broken = WEIGHT.copy()
    broken[2, 5] = np.nan
    with pytest.raises(KernelError, match=r"'layers\.0\.mlp\.up' has 1 NaN or infinite value"):
        compressed(broken, INPUTS)
    for option in ({"damping": 0}, {"shrink": 1.0}):
        with pytest.raises(RecipeError, match=f"option '{next(iter(option))}'"):
            marlin(**option)


def test_odd_widths_zero_rows_biases_and_experts_without_tokens() -> None:
    weight, bias = WEIGHT[:, :33].copy(), np.arange(8, dtype=np.float32)
    weight[1] = 0
    linear = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight, bias=bias))
    with pytest.warns(ThriftyWarning, match="no token of the calibration text reached"):
        stored = marlin().compress(linear, Activations(np.empty((0, 33), np.float32)))
    values = stored.dequantize()
    assert np.array_equal(stored.bias, bias) and not values[1].any()
    assert np.linalg.norm(values - weight) < 0.2 * np.linalg.norm(weight)


@pytest.mark.filterwarnings("ignore:no token of the calibration text")
@pytest.mark.parametrize("name", ["plain", "untied-biased", "experts"])
def test_linears_of_the_layers_are_compressed_and_nothing_else(name: str) -> None:
    model = build_model(dataclasses.replace(CONFIGS[name]))
    small = prepare(model, [marlin()], calibration=TEXT)
    changed = {own for own, linear in small.linears.items() if linear is not model.linears[own]}
    assert changed and all(own.startswith("layers.") and "router" not in own for own in changed)
    assert {small.linears[own].label for own in changed} == {"int4-g128"}
