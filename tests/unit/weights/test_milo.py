"""MiLo: its turns against plain loops, its ranks against the paper's rules, and what it stores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear, LowRankLinear
from thrifty.models.model import Model
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.grid import Grid
from thrifty.weights.low_rank_fit import factors
from thrifty.weights.sizes import Predictor
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.hqq import half_quadratic
from thrifty.weights.techniques.milo import compensated, kurtosis, kurtosis_rank, rounded

TOKENS = CalibrationSet("random", np.random.default_rng(0).integers(0, 50, (4, 16)))


def milo(**options: Any) -> Any:
    return registry.build("weights", {"technique": "milo", "iterations": 2} | options)


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def plain_rounding(weight: Floats) -> GroupLinear:
    return GroupLinear.quantize(weight, 4, 32)


def test_turns_are_those_of_the_paper() -> None:
    """Algorithm 1 with the whole decomposition in 64 bits."""
    weight, rank = random(24, 64), 3
    base, up, down = compensated(weight, rank, 4, plain_rounding)
    product = np.zeros_like(weight)
    for _ in range(5):
        wanted = plain_rounding((weight - product).astype(np.float32)).dequantize()
        left, values, right = np.linalg.svd(weight.astype(np.float64) - wanted)
        product = (left[:, :rank] * values[:rank]) @ right[:rank]
    np.testing.assert_allclose(base.dequantize(), wanted, atol=1e-5)
    np.testing.assert_allclose(up @ down, product, atol=1e-4)
    np.testing.assert_allclose(np.square(up).sum(0), values[:rank], rtol=1e-3)  # U·√S
    np.testing.assert_allclose(np.square(down).sum(1), values[:rank], rtol=1e-3)


def test_more_turns_and_ranks_leave_less() -> None:
    weight = random(48, 96)

    def left(rank: int, iterations: int) -> float:
        base, up, down = compensated(weight, rank, iterations, plain_rounding)
        return float(np.linalg.norm(weight - base.dequantize() - up @ down))

    assert left(8, 8) < left(8, 0) < float(np.linalg.norm(weight - plain_rounding(weight).dequantize()))
    assert left(16, 4) < left(4, 4)


def test_random_projections_find_nearly_the_best_product() -> None:
    """Singular values that fall, as those of what rounding leaves of real matrices; both sides above what is exact."""
    left, _ = np.linalg.qr(random(300, 280))
    right, _ = np.linalg.qr(random(280, 280, seed=1))
    matrix = ((left * (0.9 ** np.arange(280))) @ right.T).astype(np.float32)
    up, down = factors(matrix, 20)
    best = np.sqrt(np.sum(0.9 ** (2 * np.arange(20, 280))))
    assert best <= np.linalg.norm(matrix - up @ down) * 1.0001 < 1.02 * best
    again, _ = factors(matrix, 20)
    assert np.array_equal(up, again)


def test_a_rank_beyond_the_matrix_is_filled_with_zeros() -> None:
    matrix = random(4, 40)
    up, down = factors(matrix, 9)
    assert up.shape == (4, 9) and down.shape == (9, 40)
    np.testing.assert_allclose(up @ down, matrix, atol=1e-5)


def test_factors_are_rounded_as_the_paper_writes() -> None:
    factor = random(5, 100)
    found = rounded(factor, 3).dequantize()
    for row in range(5):
        for group in (slice(0, 64), slice(64, 100)):
            largest = float(np.abs(factor[row, group]).max())
            codes = np.clip(np.round(7 * factor[row, group] / (2 * largest)) + 4, 0, 7)
            wanted = (codes - 4) * 2 * largest / 7
            between = np.abs(factor[row, group]) == largest  # 3.5 steps: the codes on both sides are as near
            np.testing.assert_allclose(found[row, group][~between], wanted[~between], rtol=1e-3, atol=1e-3)
    assert rounded(factor, 3).label == "int3-g64"
    assert not rounded(np.zeros((16, 64), np.float32), 3).dequantize().any()


@pytest.mark.parametrize(("value", "mean", "rank"), [
    (-1.2, 16, 0), (0.4, 16, 0), (1.0, 16, 8), (2.4, 16, 16), (2.6, 32, 64), (9.2, 16, 2048), (9.6, 16, 1024),
    (1.0, 1, 1),
])  # fmt: skip
def test_ranks_by_kurtosis_are_those_of_the_authors(value: float, mean: int, rank: int) -> None:
    assert kurtosis_rank(value, mean) == rank


def test_kurtosis_is_that_of_all_elements() -> None:
    """Of a uniform distribution −1.2, of a normal one 0, of a Laplace one 3."""
    chance = np.random.default_rng(0)
    for sample, wanted in (
        (chance.uniform(size=200_000), -1.2),
        (chance.normal(size=200_000), 0),
        (chance.laplace(size=400_000), 3),
    ):
        assert abs(kurtosis(sample.astype(np.float32)) - wanted) < 0.15
    assert kurtosis(np.ones((3, 3), np.float32)) == 0


def test_attention_and_shared_experts_get_another_rank_than_routed_ones(experts: Model) -> None:
    small = prepare(experts, [milo(dense_rank=8, expert_rank=4)])
    ranks = {name: linear.rank if isinstance(linear, LowRankLinear) else None for name, linear in small.linears.items()}
    assert ranks["layers.1.attention.query"] == ranks["layers.1.mlp.shared.down"] == ranks["layers.0.mlp.up"] == 8
    assert ranks["layers.1.mlp.experts.gate.3"] == ranks["layers.1.mlp.experts.down.0"] == 4
    assert ranks["layers.1.mlp.router"] is ranks["embedding"] is None
    base = small.linears["layers.1.mlp.experts.gate.3"]
    assert isinstance(base, LowRankLinear) and (base.base.label, base.up.label) == ("int3-g64", "int3-g64")


def test_no_rank_is_the_base_alone(experts: Model) -> None:
    """And that is HQQ."""
    name = "layers.1.mlp.experts.up.2"
    small = prepare(experts, [milo(dense_rank=0, expert_rank=0)])
    plain = half_quadratic(experts.linears[name].dequantize(), Grid(3, 64))
    assert isinstance(small.linears[name], GroupLinear)
    assert np.array_equal(small.linears[name].dequantize(), plain.dequantize())


def test_compensators_lessen_the_error(experts: Model) -> None:
    errors = []
    for ranks in ({"dense_rank": 0, "expert_rank": 0}, {"dense_rank": 16, "expert_rank": 8}):
        small = prepare(experts, [milo(compensator_bits=8, **ranks)])
        errors.append({entry.name: entry.error for entry in small.report})
    assert errors[0] and all(errors[1][name] < errors[0][name] for name in errors[0])


def test_ranks_by_use_follow_the_tokens(experts: Model) -> None:
    small = prepare(experts, [milo(dense_rank=0, expert_rank=8, ranks="frequency")], calibration=TOKENS)
    ranks = [
        linear.rank if isinstance(linear := small.linears[f"layers.1.mlp.experts.up.{number}"], LowRankLinear) else 0
        for number in range(4)
    ]
    assert abs(sum(ranks) - 4 * 8) <= 2 and len(set(ranks)) > 1


def test_heavy_tails_get_a_higher_rank(experts: Model) -> None:
    tails, name = np.random.default_rng(1).laplace(size=(48, 96)).astype(np.float32), "layers.1.mlp.experts.gate.1"
    experts.replace(name, DenseLinear.from_weight(tails))
    small = prepare(experts, [milo(dense_rank=0, expert_rank=4, ranks="kurtosis")])
    heavy, normal = small.linears[name], small.linears["layers.1.mlp.experts.gate.0"]
    assert isinstance(heavy, LowRankLinear) and heavy.rank == kurtosis_rank(kurtosis(tails), 4) > 0
    assert isinstance(normal, GroupLinear)


def test_bytes_are_told_before_but_not_of_ranks_by_kurtosis(experts: Model) -> None:
    small = prepare(experts, [milo(dense_rank=24, expert_rank=4)])
    predictor = Predictor([milo(dense_rank=24, expert_rank=4)])
    for info in linears(experts):
        found = predictor.stored(info.name, info.linear.out_features, info.linear.in_features)
        if found is not None:
            packed = small.linears[info.name]
            assert found == (packed.nbytes, packed.label)
    with pytest.raises(RecipeError, match="they follow from the values of the weights"):
        Predictor([milo(ranks="kurtosis")])


def test_what_it_cannot_do_is_said(plain: Model) -> None:
    with pytest.raises(
        RecipeError, match="ranks = 'kurtosis' shares ranks among experts, and this tiny model has none"
    ):
        prepare(plain, [milo(ranks="kurtosis")])
    broken = random(96, 96)
    broken[3, 4] = np.nan
    with pytest.raises(KernelError, match="layers.0.attention.output"):
        milo().compress(LinearInfo("layers.0.attention.output", DenseLinear.from_weight(broken)), None)
    with pytest.raises(RecipeError, match="dense_rank"):
        milo(dense_rank=-1)


def test_an_odd_width_is_stored_whole(plain: Model) -> None:
    config = dataclasses.replace(plain.config, intermediate_size=70)
    from thrifty.models.model import random_model

    small = prepare(random_model(config, scale=0.1), [milo(dense_rank=5)])
    assert small.linears["layers.0.mlp.down"].dequantize().shape == (96, 70)
