"""SparseGPT and magnitude pruning against slow sweeps written out, and the mechanics of 2:4 techniques."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Flags, Floats
from thrifty.errors import RecipeError, ThriftyWarning
from thrifty.formats.linear import DenseLinear, Sparse24Linear
from thrifty.models.model import Model
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.hessian import hessian, inverse_factor
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.sparsegpt import SparseGPT, swept

TEXT = CalibrationSet("numbers", np.random.default_rng(0).integers(0, 50, (4, 16)))
DAMPING = 0.01


def correlated(tokens: int, columns: int, seed: int = 0) -> Floats:
    """Inputs whose columns go together, as real ones do."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, columns)) @ random.standard_normal((columns, columns))
    return mixed.astype(np.float32)


def factor_of(inputs: Floats) -> Floats:
    return inverse_factor(hessian(inputs), DAMPING, "a layer")


def slow_sweep(weight: Floats, inputs: Floats) -> tuple[Floats, Flags]:
    """Algorithm 1 by its meaning: the inverse Hessian of the columns that are left is inverted anew at each column, and
    each weight that goes is made up for by the best update of those behind it (optimal brain surgeon).
    """
    w, x = weight.astype(np.float64), inputs.astype(np.float64)
    h = x.T @ x / len(x)
    h += np.eye(len(h)) * DAMPING * np.diag(h).mean()
    mask = np.ones(w.shape, bool)
    for column in range(w.shape[1]):
        if column % 4 == 0:
            for row in range(len(w)):
                scores = []
                for other in range(column, column + 4):
                    inverse = np.linalg.inv(h[other:, other:])[0, 0]
                    scores.append(w[row, other] ** 2 / inverse)
                for gone in sorted(range(4), key=lambda i: scores[i])[:2]:
                    mask[row, column + gone] = False
        inverse = np.linalg.inv(h[column:, column:])
        for row in range(len(w)):
            if not mask[row, column]:
                w[row, column:] -= w[row, column] * inverse[0] / inverse[0, 0]
    return np.where(mask, w, 0).astype(np.float32), mask


def test_the_sweep_is_algorithm_1() -> None:
    weight, inputs = np.random.default_rng(2).standard_normal((6, 24), np.float32), correlated(64, 24)
    found, mask = swept(weight, factor_of(inputs), update=True)
    wanted, kept = slow_sweep(weight, inputs)
    assert np.array_equal(mask, kept)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_columns_behind_a_block_are_updated_too() -> None:
    """More columns than are swept at once."""
    weight, inputs = np.random.default_rng(3).standard_normal((2, 136), np.float32), correlated(300, 136)
    found, mask = swept(weight, factor_of(inputs), update=True)
    wanted, kept = slow_sweep(weight, inputs)
    assert (mask == kept).mean() > 0.99, "scores that are nearly equal may change places"
    same = (mask == kept).all(axis=1)
    np.testing.assert_allclose(found[same], wanted[same], rtol=1e-3, atol=1e-3)


def test_outputs_are_nearer_than_those_of_the_largest_weights() -> None:
    weight, inputs = np.random.default_rng(4).standard_normal((32, 64), np.float32), correlated(256, 64)
    info, shown = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight)), Activations(inputs)

    def error(**table: Any) -> float:
        packed = registry.build("weights", table).compress(info, shown)
        return float(np.square(inputs @ (packed.dequantize() - weight).T).sum())

    updated, still = error(technique="sparsegpt"), error(technique="sparsegpt", update=False)
    magnitude = error(technique="magnitude")
    assert updated < 0.7 * magnitude and still < magnitude
    assert updated < error(technique="sparsegpt", values="int8") * 1.05 < error(technique="sparsegpt", values="int4")


def test_without_an_update_the_kept_weights_stay() -> None:
    weight, inputs = np.random.default_rng(5).standard_normal((8, 32), np.float32), correlated(64, 32)
    found, mask = swept(weight, factor_of(inputs), update=False)
    assert np.array_equal(found, np.where(mask, weight, 0))


def test_columns_that_nothing_reaches_are_left_out() -> None:
    weight, inputs = np.ones((4, 8), np.float32), correlated(32, 8)
    inputs[:, [1, 6]] = 0
    _, mask = SparseGPT().prune(LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight)), Activations(inputs))
    assert not mask[:, [1, 6]].any()


def test_magnitude_keeps_the_two_largest_of_four() -> None:
    weight = np.random.default_rng(6).standard_normal((5, 12), np.float32)
    packed = registry.build("weights", {"technique": "magnitude"}).compress(
        LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight)), None
    )
    assert isinstance(packed, Sparse24Linear)
    for row in range(5):
        for first in range(0, 12, 4):
            own = np.abs(weight[row, first : first + 4])
            kept = sorted(sorted(range(4), key=lambda i: -own[i])[:2])
            assert np.flatnonzero(packed.mask()[row, first : first + 4]).tolist() == kept


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("technique", ["magnitude", "sparsegpt"])
def test_all_linears_of_the_layers_become_sparse(technique: str, name: str) -> None:
    model = build(CONFIGS[name])
    sparse = prepare(model, [registry.build("weights", {"technique": technique, "values": "int8"})], calibration=TEXT)
    for place, linear in sparse.linears.items():
        role = LinearInfo(place, linear).role
        kept = role in ("embedding", "head", "router", "shared_gate")
        assert linear.label == ("f32" if kept else "2:4-int8-g32"), place
        before = model.linears[place].bias
        assert (linear.bias is None) == (before is None)
    report = {entry.name: entry for entry in sparse.report}
    assert 0 < report["layers.0.mlp.up"].error < 1 and report["layers.0.mlp.up"].origin == "f32"


def test_what_cannot_be_sparse_is_named(plain: Model) -> None:
    weight = plain.linears["layers.1.mlp.up"].dequantize().copy()
    weight[0, 0] = np.inf
    plain.replace("layers.1.mlp.up", DenseLinear.from_weight(weight))
    with pytest.raises(RecipeError, match=r"'layers\.1\.mlp\.up' has 1 NaN or infinite weights of 15360"):
        prepare(plain, [registry.build("weights", {"technique": "magnitude"})])


def test_columns_that_are_not_fours_are_refused_before_the_work() -> None:
    import dataclasses

    model = build(dataclasses.replace(CONFIGS["plain"], intermediate_size=162))
    with pytest.raises(
        RecipeError, match=r"'layers\.0\.mlp\.down' has 162 columns.*skip = \[\"layers\.0\.mlp\.down\"\]"
    ):
        prepare(model, [registry.build("weights", {"technique": "magnitude"})])
    sparse = prepare(model, [registry.build("weights", {"technique": "magnitude", "skip": ["*.down"]})])
    assert sparse.linears["layers.0.mlp.down"].label == "f32"


def test_an_expert_that_no_token_reached_keeps_its_largest_weights() -> None:
    weight = np.random.default_rng(7).standard_normal((4, 8), np.float32)
    shown = Activations(np.empty((0, 8), np.float32))
    with pytest.warns(ThriftyWarning, match="no token of the calibration text reached 'layers.0.mlp.up': its largest"):
        found, mask = SparseGPT().prune(LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight)), shown)
    assert np.array_equal(found, weight) and mask.sum() == 16


def test_inputs_that_are_no_numbers_are_refused() -> None:
    inputs = np.ones((3, 8), np.float32)
    inputs[1, 2] = np.nan
    linear = LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(np.ones((4, 8), np.float32)))
    with pytest.raises(RecipeError, match=r"what 'layers\.0\.mlp\.up' reads on the calibration text has NaN"):
        SparseGPT().prune(linear, Activations(inputs))
