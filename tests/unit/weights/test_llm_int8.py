"""LLM.int8(): its formula written out, and what the base does with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, TokenWiseLinear
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.llm_int8 import vector_wise

THRESHOLD = 6.0


def technique(**options: Any) -> Any:
    return registry.build("weights", {"technique": "llm-int8"} | options)


def compressed(weight: Floats, **options: Any) -> TokenWiseLinear:
    linear = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight))
    packed = technique(**options).compress(linear, None)
    assert isinstance(packed, TokenWiseLinear)
    return packed


def papers(x: Floats, weight: Floats) -> Floats:
    """Equation 8 by loops, for one row x [in] and W [out, in]: outlier features in full precision, the rest in int8
    with absmax constants of the row and of each row of W.
    """
    outliers = {j for j, value in enumerate(x) if abs(float(value)) >= THRESHOLD}
    row = max((abs(float(value)) for j, value in enumerate(x) if j not in outliers), default=0.0) or 1.0
    result = []
    for own in weight:
        absmax = max(abs(float(value)) for value in own)
        codes = [round(127 * float(value) / absmax) for value in own]
        whole = sum(codes[j] * round(127 * float(x[j]) / row) for j in range(len(x)) if j not in outliers)
        apart = sum(codes[j] * absmax / 127 * float(x[j]) for j in outliers)
        result.append(whole * row * absmax / 127**2 + apart)
    return np.array(result)


def test_products_are_equation_8() -> None:
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((21, 50)), random.standard_normal((4, 50))
    x[0, [4, 11]], x[1, 7] = (9.0, -30.0), 6.0
    weight, x = weight.astype(np.float32), x.astype(np.float32)
    linear = compressed(weight)
    for row in range(4):
        expected = papers(x[row], weight)
        for y in (linear.multiply(x)[row], linear.oracle(x[row : row + 1])[0]):
            assert np.abs(y - expected).max() < 0.004 * np.abs(expected).max(), "scales have 16 bits"


def test_a_row_of_weights_has_one_scale_and_codes_within_127() -> None:
    weight = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    weight[3] = 0
    codes, scales = vector_wise(weight)
    assert scales.shape == (5, 1) and np.abs(codes).max(axis=1).tolist() == [127, 127, 127, 0, 127]
    for row, scale in zip(weight, scales[:, 0].tolist(), strict=True):
        assert scale == pytest.approx(max(abs(float(value)) for value in row) / 127, rel=1e-3, abs=1e-7)


def test_a_rows_outliers_do_not_reach_its_neighbours() -> None:
    """The paper's union over the batch would take column 4 apart for both rows."""
    weight = np.random.default_rng(2).standard_normal((32, 64)).astype(np.float32)
    x = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32)
    linear = compressed(weight)
    alone = linear.multiply(x[1:])
    x[0, 4] = 100
    assert np.array_equal(linear.multiply(x)[1:], alone)


def test_without_a_threshold_it_is_vector_wise_int8(plain: Model) -> None:
    ours, theirs = compressed(np.eye(32, dtype=np.float32), threshold=0), compressed(np.eye(32, dtype=np.float32))
    assert (ours.label, theirs.label) == ("int8-row-token", "int8-row-outliers")
    x = np.full((1, 32), 0.1, np.float32)
    x[0, 0] = 50
    assert np.abs(theirs.multiply(x) - x).max() < 0.03 and np.abs(ours.multiply(x)[0, 1:]).max() == 0
    small = prepare(plain, [technique()])
    labels = {name: linear.label for name, linear in small.linears.items()}
    assert labels.pop("embedding") == "f32" and set(labels.values()) == {"int8-row-outliers"}
    assert all(0 < entry.error < 0.02 for entry in small.report)


def test_what_it_cannot_do_is_told(plain: Model) -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="option 'threshold'"):
            technique(threshold=wrong)
    weight = np.ones((16, 32), np.float32)
    weight[2, 3] = np.inf
    with pytest.raises(KernelError, match="weight rows 0..15 has 1 NaN or infinite value"):
        compressed(weight)
