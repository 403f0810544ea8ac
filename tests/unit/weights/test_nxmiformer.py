"""NxMiFormer: the projection, ADMM's steps and the search against versions written out."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear, Sparse24Linear
from thrifty.models.config.model_config import RopeConfig
from thrifty.models.model import Model
from thrifty.training.loop.admm import Split
from thrifty.training.loop.comparing import Compared
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.component_search import Component, assign
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.nxmiformer import FORMATS, nearest_sparse

TEXT = CalibrationSet("numbers", np.random.default_rng(5).integers(1, 50, (6, 24), np.int64))


def tiny() -> Model:
    layers = tuple(dataclasses.replace(layer, rope=RopeConfig(1e4, 32)) for layer in CONFIGS["plain"].layers)
    return build(dataclasses.replace(CONFIGS["plain"], hidden_size=128, head_dim=32, layers=layers))


def compressed(model: Model, **options: Any) -> Model:
    own = registry.build("weights", {"technique": "nxmiformer", "batch": 2, **options})
    return prepare(model, [own], calibration=TEXT)


def slow_projection(weight: Floats) -> Floats:
    made = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 4):
            four = weight[row, start : start + 4]
            best = max(itertools.combinations(range(4), 2), key=lambda pair: sum(float(four[i]) ** 2 for i in pair))
            for place in best:
                made[row, start + place] = four[place]
    return made


def test_the_projection_is_the_nearest_weight_with_two_of_four() -> None:
    weight = np.random.default_rng(1).standard_normal((9, 20), np.float32)
    np.testing.assert_array_equal(nearest_sparse(weight), slow_projection(weight))


def test_admm_takes_the_steps_of_the_paper() -> None:
    chance = np.random.default_rng(2)
    weights = [chance.standard_normal((4, 8), np.float32) for _ in range(4)]
    split = Split(nearest_sparse, weights[0])
    z, u = slow_projection(weights[0]), np.zeros((4, 8), np.float32)
    for weight in weights[1:]:
        split.update(weight)
        z = slow_projection(weight + u)
        u = u + weight - z
        np.testing.assert_allclose(split.z, z)
        np.testing.assert_allclose(split.u, u)


def test_admm_finds_the_constrained_least_squares() -> None:
    """f(W) = ‖W − A‖² / 2 by exact steps: it ends at a weight with two of four, where W = Z."""
    target = np.random.default_rng(3).standard_normal((3, 8)).astype(np.float32)
    split, rho = Split(nearest_sparse, target), np.float32(2)
    weight: Floats = target
    for _ in range(300):
        weight = ((target + rho * (split.z - split.u)) / (1 + rho)).astype(np.float32)
        split.update(weight)
    np.testing.assert_allclose(weight, split.z, atol=1e-3)
    np.testing.assert_allclose(split.z, slow_projection(target), atol=1e-3)


def test_every_result_has_two_of_four_and_training_helps() -> None:
    model = tiny()
    at_once, trained = compressed(model, steps=0), compressed(model, steps=30, rate=2e-3)
    compared = Compared(model, TEXT.sequences)
    before, after = (
        compared.divergence({name: own for name, own in made.linears.items() if name.startswith("layers")})
        for made in (at_once, trained)
    )
    assert after < 0.9 * before
    for name, linear in trained.linears.items():
        if name.startswith("layers"):
            assert isinstance(linear, Sparse24Linear) and linear.values == "int4"
            assert (linear.mask().reshape(len(linear.mask()), -1, 4).sum(-1) == 2).all()


def test_without_steps_it_is_largest_two_rounded() -> None:
    model = tiny()
    made = compressed(model, steps=0)
    for name, linear in made.linears.items():
        if name.startswith("layers"):
            weight = nearest_sparse(model.linears[name].dequantize())
            expected = GroupLinear.quantize(weight, 4, 32, True).dequantize()
            np.testing.assert_array_equal(linear.dequantize(), expected)


def test_the_search_keeps_the_target_and_gives_bits_where_they_count() -> None:
    model = tiny()
    made = compressed(model, steps=0, target=4.0)
    inside = [own for name, own in made.linears.items() if name.startswith("layers")]
    weights = sum(own.out_features * own.in_features for own in inside)
    assert sum(own.nbytes for own in inside) <= 4.0 * weights / 8
    assert len({own.label for own in inside}) > 1


def test_the_greedy_assignment_is_near_the_best_one() -> None:
    chance = np.random.default_rng(4)
    parts = [Component(str(place), ()) for place in range(5)]
    sizes: dict[Component, dict[str, float]] = {
        part: dict(zip(FORMATS, (85.0, 55.0, 45.0, 35.0), strict=True)) for part in parts
    }
    costs: dict[Component, dict[str, float]] = {
        part: dict(zip(FORMATS, sorted(chance.random(4).tolist()), strict=True)) for part in parts
    }
    limit = 270.0
    found = assign(sizes, costs, FORMATS, limit)
    assert sum(sizes[part][form] for part, form in found.items()) <= limit
    best = min(
        sum(costs[part][form] for part, form in zip(parts, choice, strict=True))
        for choice in itertools.product(FORMATS, repeat=5)
        if sum(sizes[part][form] for part, form in zip(parts, choice, strict=True)) <= limit
    )
    assert sum(costs[part][form] for part, form in found.items()) <= 1.5 * best
    with pytest.raises(RecipeError, match="use a higher target"):
        assign(sizes, costs, FORMATS, 100.0)


def test_nan_and_odd_widths_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny()
    name = "layers.0.mlp.up"
    broken = model.linears[name].dequantize().copy()
    broken[0, 0] = np.nan
    model.linears[name] = DenseLinear.from_weight(broken, packed=False)
    with pytest.raises(RecipeError, match=rf"'{name}' has 1 NaN"):
        compressed(model, steps=1)
    odd = tiny()
    rows = odd.linears[name].out_features
    odd.linears[name] = DenseLinear.from_weight(np.ones((rows, 126), np.float32), packed=False)
    with pytest.raises(RecipeError, match="not whole groups of 4"):
        registry.build("weights", {"technique": "nxmiformer"}).check(odd)
