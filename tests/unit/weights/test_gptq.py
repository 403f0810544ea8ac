"""GPTQ against the paper's equations with an explicit inverse, one weight at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS
from tests.unit.weights.conftest import build as build_model

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError, ThriftyWarning
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.model import Model
from thrifty.reference.loading import build
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.grid import Grid
from thrifty.weights.hessian import OutputError, hessian
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare

RANDOM = np.random.default_rng(11)
COLUMNS = 200  # two blocks of 128 and a short last group
WEIGHT = RANDOM.standard_normal((6, COLUMNS), np.float32)
MIXING = RANDOM.standard_normal((COLUMNS, COLUMNS), np.float32) / 8
INPUTS = RANDOM.standard_normal((400, COLUMNS), np.float32) @ MIXING
TEXT = CalibrationSet("numbers", np.random.default_rng(2).integers(0, 50, (4, 24)))


def gptq(**options: Any) -> Any:
    return registry.build("weights", {"technique": "gptq"} | options)


def compressed(weight: Floats, inputs: Floats, **options: Any) -> GroupLinear:
    linear = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight))
    stored = gptq(**options).compress(linear, Activations(inputs))
    assert isinstance(stored, GroupLinear)
    return stored


def slow(weight: Floats, inputs: Floats, grid: Grid, order: list[int], fixed: bool) -> Floats:
    """Eq. 2 and 3 in fp64: after each column the inverse of the rest is worked out by eliminating it."""
    exact = inputs.astype(np.float64)
    moments = 2 / len(inputs) * exact.T @ exact
    moments += 0.01 * np.diagonal(moments).mean() * np.eye(len(moments))
    result = np.empty_like(weight)
    for row in range(len(weight)):
        rest, inverse = weight[row].astype(np.float64), np.linalg.inv(moments)
        for place, column in enumerate(order):
            first = column // grid.group * grid.group
            if fixed or place % grid.group == 0:
                source = weight[row] if fixed else rest.astype(np.float32)
                steps = grid.fit(source[None, first : first + grid.group])
            rounded = float(steps.values(steps.codes(np.float32(rest[column]).reshape(1, 1)))[0, 0])
            result[row, column] = rounded
            rest -= (rest[column] - rounded) / inverse[column, column] * inverse[:, column]
            inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
            inverse[column, :] = inverse[:, column] = 0.0
    return result


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_papers_loop(symmetric: bool, act_order: bool) -> None:
    """Equal codes, but where a number lies between two of them within the rounding of fp32."""
    grid = Grid(4, 32, symmetric)
    order = np.argsort(-np.diagonal(hessian(INPUTS)), kind="stable").tolist() if act_order else list(range(COLUMNS))
    expected = slow(WEIGHT, INPUTS, grid, order, fixed=act_order)
    own = compressed(WEIGHT, INPUTS, symmetric=symmetric, act_order=act_order).dequantize()
    assert (own == expected).mean() > 0.98
    error = OutputError(INPUTS)
    assert error(own - WEIGHT) == pytest.approx(error(expected - WEIGHT), rel=0.03)


@pytest.mark.parametrize(
    "options", [{}, {"act_order": True}, {"symmetric": True}, {"bits": 8, "group": 128}, {"bits": 2}]
)
def test_outputs_are_closer_than_those_of_the_nearest(options: dict[str, Any]) -> None:
    own = compressed(WEIGHT, INPUTS, **options)
    nearest = GroupLinear.quantize(WEIGHT, own.bits, own.group, symmetric=not own.has_minimum)
    assert own.label == nearest.label and own.nbytes == nearest.nbytes
    error = OutputError(INPUTS)
    assert error(own.dequantize() - WEIGHT) < 0.6 * error(nearest.dequantize() - WEIGHT)
    assert not np.array_equal(own.dequantize(), nearest.dequantize())


def test_inputs_without_correlation_leave_the_nearest() -> None:
    """Then no column can make up for another."""
    apart = np.eye(COLUMNS, dtype=np.float32)
    assert np.array_equal(compressed(WEIGHT, apart).dequantize(), GroupLinear.quantize(WEIGHT, 4, 32).dequantize())


def test_a_column_that_is_never_read_is_rounded_to_the_nearest() -> None:
    inputs = INPUTS.copy()
    inputs[:, 0] = 0.0
    own, nearest = compressed(WEIGHT, inputs).dequantize(), GroupLinear.quantize(WEIGHT, 4, 32).dequantize()
    assert np.array_equal(own[:, 0], nearest[:, 0]) and not np.array_equal(own, nearest)


def test_an_expert_without_tokens_is_rounded_to_the_nearest_with_a_warning() -> None:
    with pytest.warns(ThriftyWarning, match="no token of the calibration text reached"):
        own = compressed(WEIGHT, np.empty((0, COLUMNS), np.float32))
    assert np.array_equal(own.dequantize(), GroupLinear.quantize(WEIGHT, 4, 32).dequantize())


def test_what_is_no_number_is_refused() -> None:
    broken = WEIGHT.copy()
    broken[2, 5] = np.nan
    with pytest.raises(KernelError, match=r"'layers\.0\.mlp\.up' has 1 NaN or infinite value"):
        compressed(broken, INPUTS)
    with pytest.raises(RecipeError, match="option 'damping'"):
        gptq(damping=0)


def test_biases_and_odd_widths_survive() -> None:
    weight, bias = WEIGHT[:, :33], np.arange(6, dtype=np.float32)
    linear = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight, bias=bias))
    stored = gptq().compress(linear, Activations(INPUTS[:, :33]))
    assert np.array_equal(stored.bias, bias) and stored.in_features == 33
    assert np.abs(stored.dequantize() - weight).max() < 1.0


@pytest.mark.filterwarnings("ignore:no token of the calibration text")
@pytest.mark.parametrize("name", ["plain", "experts"])
def test_a_model_comes_closer_than_rounded_to_the_nearest(name: str) -> None:
    model = build_model(CONFIGS[name])

    def distance(small: Model) -> float:
        logits = [build(small).logits(tokens).numpy() for tokens in TEXT.sequences.tolist()]
        return float(np.linalg.norm(np.concatenate(logits) - np.concatenate(expected)))

    expected = [build(model).logits(tokens).numpy() for tokens in TEXT.sequences.tolist()]
    small = prepare(model, [gptq()], calibration=TEXT)
    nearest = prepare(model, [registry.build("weights", {"technique": "rtn"})])
    assert {name: own.label for name, own in small.linears.items()} == {
        name: own.label for name, own in nearest.linears.items()
    }
    assert small.nbytes == nearest.nbytes
    assert distance(small) < 0.9 * distance(nearest)
    assert "+gptq(" in small.version and "[numbers:4x24:" in small.version
