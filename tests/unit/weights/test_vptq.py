"""VPTQ: the sweep against column by column with an explicit inverse, and what its options store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError, ThriftyWarning
from thrifty.formats.linear import DenseLinear, VectorLinear
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.hessian import hessian, inverse_factor
from thrifty.weights.sizes import Predictor
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.vptq import Columns, sweep

TEXT = CalibrationSet("numbers", np.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]], np.int64))
NAME = "layers.0.attention.query"


def vptq(**options: Any) -> Any:
    return registry.build("weights", {"technique": "vptq"} | options)


def example(rows: int = 24, columns: int = 20) -> tuple[Floats, Floats]:
    """A weight, and inputs of which some are related."""
    random = np.random.default_rng(0)
    mixing = random.standard_normal((columns, columns)) * 0.4 + np.eye(columns) * np.linspace(0.5, 2, columns)
    inputs = random.standard_normal((64, columns)) @ mixing
    return random.standard_normal((rows, columns)).astype(np.float32), inputs.astype(np.float32)


def slow_sweep(
    weight: Floats, moments: Any, columns: Columns, main: Floats, rest: Floats | None
) -> tuple[list[list[int]], Floats]:
    """Columns by falling H_jj; what each gets wrong is made up for by w −= e·H⁻¹[j, :] / H⁻¹[j, j] in those that are
    left (OBQ, whose inverse then loses row and column j); vectors by the least distance, one by one.
    """
    order, w = columns.order, weight.astype(np.float64)
    damped = moments + 0.01 * np.trace(moments) / len(moments) * np.eye(len(moments))
    codes: list[list[int]] = [[] for _ in order]
    result = np.zeros_like(w)
    for place, j in enumerate(order):
        inverse = np.linalg.inv(damped[np.ix_(order[place:], order[place:])])
        scale, offset = float(columns.scales[j]), float(columns.offsets[j])
        for first in range(0, len(w), columns.v):
            vector = (w[first : first + columns.v, j] - offset) / scale
            code = int(np.argmin([np.square(vector - c).sum() for c in main[columns.books[j]].astype(np.float64)]))
            value = main[columns.books[j], code].astype(np.float64)
            if rest is not None:
                over = [np.square(vector - value - c).sum() for c in rest[columns.books[j]].astype(np.float64)]
                value = value + rest[columns.books[j], int(np.argmin(over))].astype(np.float64)
            codes[j].append(code)
            result[first : first + columns.v, j] = value * scale + offset
        error = w[:, j] - result[:, j]
        for later, k in enumerate(order[place + 1 :], start=1):
            w[:, k] -= error * inverse[0, later] / inverse[0, 0]
    return codes, result.astype(np.float32)


@pytest.mark.parametrize("v", [4, 8])
@pytest.mark.parametrize("k_residual", [0, 16])
@pytest.mark.parametrize("outliers", [0.0, 0.1])
def test_the_sweep_is_columns_one_by_one(v: int, k_residual: int, outliers: float) -> None:
    weight, inputs = example()
    moments = hessian(inputs)
    columns = Columns.of(weight, moments, v, outliers)
    factor = inverse_factor(moments[columns.order][:, columns.order], 0.01, "it")
    main = columns.table(columns.normal(weight), 16)
    codes, rest_codes, errors = sweep(weight, factor, columns, main, None)
    slow_codes, slow = slow_sweep(weight, moments, columns, main, None)
    assert codes.T.tolist() == slow_codes and rest_codes is None
    rest = None
    if k_residual:
        rest = columns.table(errors, k_residual)
        codes, rest_codes, _ = sweep(weight, factor, columns, main, rest)
        slow = slow_sweep(weight, moments, columns, main, rest)[1]
    linear = vptq(v=v, k=16, k_residual=k_residual, outliers=outliers).compress(
        LinearInfo(NAME, DenseLinear.from_weight(weight)), Activations(inputs)
    )
    assert isinstance(linear, VectorLinear) and (linear.books is not None) == bool(outliers)
    np.testing.assert_allclose(linear.dequantize(), slow, rtol=1e-3, atol=1e-3)


def error_of(linear: Any, weight: Floats, inputs: Floats) -> float:
    return float(np.square(inputs @ (linear.dequantize() - weight).T).sum())


def test_each_part_of_the_method_lowers_the_error_of_outputs() -> None:
    weight, inputs = example(128, 48)
    info = LinearInfo(NAME, DenseLinear.from_weight(weight))
    one = error_of(vptq(v=4, k=16, k_residual=0).compress(info, Activations(inputs)), weight, inputs)
    two = error_of(vptq(v=4, k=16, k_residual=16).compress(info, Activations(inputs)), weight, inputs)
    more = error_of(vptq(v=4, k=256, k_residual=0).compress(info, Activations(inputs)), weight, inputs)
    assert two < 0.7 * one and more < 0.7 * one
    blind = vptq(v=4, k=16, k_residual=0).compress(info, Activations(np.eye(48, dtype=np.float32)))
    assert one < error_of(blind, weight, inputs)


@pytest.mark.parametrize("name", ["untied-biased", "experts"])
def test_a_model_is_stored_and_its_bytes_predicted(name: str) -> None:
    model = build(CONFIGS[name])
    technique = vptq(v=4, k=16, k_residual=16, outliers=0.1, layers=[1], skip=["*.gate*", "*.down*"])
    small = prepare(model, [technique], calibration=TEXT)
    predicted = Predictor([technique])
    stored_linears = 0
    for name, linear in small.linears.items():
        before = model.linears[name]
        stored = predicted.stored(name, linear.out_features, linear.in_features, bias=before.bias is not None)
        if linear is before:
            assert any(part in name for part in ("router", "gate", "down", "layers.0", "embedding", "head"))
            continue
        stored_linears += 1
        assert isinstance(linear, VectorLinear) and linear.label == "vq4-4+4"
        assert stored == (linear.nbytes, linear.label)
        assert before.bias is None or np.array_equal(linear.bias, before.bias)
    assert stored_linears >= 5


def test_a_constant_column_and_rows_that_are_no_whole_vector() -> None:
    weight, inputs = example(13, 20)
    weight[:, 3] = 0.25
    inputs[:, 5] = 0
    linear = vptq(v=8, k=256, k_residual=0).compress(
        LinearInfo(NAME, DenseLinear.from_weight(weight)), Activations(inputs)
    )
    assert linear.dequantize().shape == (13, 20)
    assert np.isfinite(linear.dequantize()).all()
    assert error_of(linear, weight, inputs) < 0.2 * float(np.square(inputs @ weight.T).sum())


def test_without_tokens_it_warns_and_without_finite_numbers_it_refuses() -> None:
    weight, inputs = example()
    info = LinearInfo(NAME, DenseLinear.from_weight(weight))
    with pytest.warns(ThriftyWarning, match=f"no token of the calibration text reached '{NAME}'"):
        linear = vptq().compress(info, Activations(inputs[:0]))
    assert np.square(linear.dequantize() - weight).sum() < 0.2 * np.square(weight).sum()
    broken = weight.copy()
    broken[0, 0] = np.inf
    with pytest.raises(KernelError, match=f"'{NAME}' has 1 NaN or infinite"):
        vptq().compress(LinearInfo(NAME, DenseLinear.from_weight(broken)), Activations(inputs))
    with pytest.raises(RecipeError, match="option 'k'"):
        vptq(k=100)
    with pytest.raises(RecipeError, match="Did you mean 'k_residual'"):
        vptq(residual=16)
