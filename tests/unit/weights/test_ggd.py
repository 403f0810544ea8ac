"""Generalised Gaussian priors: moments, DeepShape, RF8 and BackSlash against the paper's formulas written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty import registry
from thrifty.arrays import BFLOAT16
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import DenseLinear
from thrifty.training.loop.backslash import BackSlash
from thrifty.weights import exp_golomb, rf8
from thrifty.weights.generalised_gaussian import STEP, deep_shape, first_weights, fitted, levels_of
from thrifty.weights.structure import LinearInfo


def slow_rf8(weight: float, top: int) -> float:
    """a + b as published, with exponents from top − 15 on; the smallest power for what lies below."""
    lowest = top - 15
    size = abs(weight)
    first = max(lowest, min(top, round(math.log2(size)))) if size else lowest
    rest = size - 2.0**first
    value = 2.0**first
    if rest:
        second = round(math.log2(abs(rest)))
        second = min(second, first - (2 if rest < 0 else 1))
        if first - second <= 4:
            value += math.copysign(2.0**second, rest)
    return math.copysign(value, -1 if weight < 0 else 1)


@pytest.mark.parametrize("shape", [0.5, 0.8, 1.0, 2.0, 3.0])
def test_the_shape_of_drawn_weights_is_found_again(shape: float) -> None:
    weight = first_weights(400, 500, shape, seed=3)
    found = fitted(weight)
    assert found.shape == pytest.approx(shape, abs=0.06)
    assert float(weight.var()) == pytest.approx(1 / 500, rel=0.05)
    assert fitted(first_weights(50, 500, shape, 1, "relu")).scale == pytest.approx(math.sqrt(2) * found.scale, rel=0.2)


def test_weights_that_are_alike_have_no_shape() -> None:
    assert fitted(np.zeros((4, 4), np.float32)).scale == 0
    assert not deep_shape(np.zeros((4, 4), np.float32), 2).any()


def test_rf8_is_the_rounding_of_the_paper() -> None:
    weight = np.concatenate([first_weights(24, 70, 0.6, 5).reshape(-1), np.array([0, 1e-9, -1e-9], np.float32)])
    linear = rf8.stored(weight[None])
    _, top = rf8.encode(weight)
    expected = np.array([slow_rf8(float(value), top) for value in weight], np.float32)
    np.testing.assert_array_equal(linear.dequantize()[0], expected)
    assert linear.label.startswith("table8") and linear.native() is not None


def test_what_rf8_can_say_is_its_own_rounding() -> None:
    values = rf8.table()
    assert len(set(values.tolist())) == 256 - 2 * 15, "1.5 · 2^k is 0.75 · 2^(k + 1) too, but for the largest"
    inner = values[(np.arange(256) >> 3 & 15 != 0)]
    codes, top = rf8.encode(np.concatenate([inner, np.ones(1, np.float32)]))
    np.testing.assert_array_equal(rf8.table()[codes][:-1] * np.float32(2.0**top), inner)


def test_nan_is_refused() -> None:
    own = registry.build("weights", {"technique": "ggd"})
    weight = np.full((16, 33), np.nan, np.float32)
    with pytest.raises(KernelError, match="NaN"):
        own.compress(LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight, packed=False)), None)


def test_an_odd_width_and_a_bias_are_kept() -> None:
    weight, bias = first_weights(17, 45, 2.0), np.arange(17, dtype=np.float32)
    own: Any = registry.build("weights", {"technique": "ggd"})
    packed = own.compress(LinearInfo("layers.0.mlp.up", DenseLinear.from_weight(weight, packed=False, bias=bias)), None)
    assert packed.dequantize().shape == (17, 45) and np.array_equal(packed.bias, bias)
    assert np.linalg.norm(packed.dequantize() - weight) < 0.06 * np.linalg.norm(weight)


def test_deep_shape_keeps_the_order_and_has_the_histogram_of_the_paper() -> None:
    weight = first_weights(300, 300, 1.2, 7)
    shaped = deep_shape(weight, 3)
    levels, before = levels_of(shaped).reshape(-1), levels_of(weight).reshape(-1)
    assert np.array_equal(levels * STEP, shaped.reshape(-1).astype(np.float64)), "all on the grid"
    near = lambda level: range(level, level + level // 8 + 1)  # noqa: E731
    cut = next(k for k in range(1, 10**6) if sum((before == n).sum() for n in near(k)) <= 3 * len(near(k)))
    prior = fitted((before * STEP).astype(np.float32))
    grid = np.arange(1 - cut, cut)
    density = np.array(
        [math.exp(-((abs(k * STEP - prior.mean) / (0.6 * prior.scale)) ** (0.8 * prior.shape))) for k in grid]
    )
    inside = np.abs(before) < cut
    wanted = np.floor(inside.sum() * density / density.sum())
    counts = np.array([(levels[inside] == k).sum() for k in grid])
    assert (counts >= wanted).all() and (counts - wanted).sum() == inside.sum() - wanted.sum(), (
        "the rest kept its level"
    )
    np.testing.assert_array_equal(levels[~inside], before[~inside])


def test_deep_shape_sees_through_the_gaps_of_few_digits() -> None:
    """bf16 leaves every second level above 256 empty: that is no tail."""
    weight = first_weights(400, 256, 2.0, 9).astype(BFLOAT16).astype(np.float32)
    shaped = deep_shape(weight, 2)
    assert np.abs(weight).max() > 600 * STEP, "twice beyond the first gaps"
    assert (shaped != weight)[np.abs(weight) > 300 * STEP].mean() > 0.9
    assert float(shaped.std()) < 0.9 * float(weight.std())


@given(st.lists(st.integers(-(2**30), 2**30), max_size=60), st.integers(0, 12))
def test_entropy_codes_come_back_and_take_the_bits_that_are_told(numbers: list[int], order: int) -> None:
    given_numbers = np.array(numbers, np.int64)
    codes = exp_golomb.encode(given_numbers, order)
    np.testing.assert_array_equal(exp_golomb.decode(codes, len(numbers), order), given_numbers)
    assert len(codes) == -(-exp_golomb.bits_of(given_numbers, order) // 8)
    mapped = [2 * n - 1 if n > 0 else -2 * n for n in numbers]
    told = sum(2 * math.floor(math.log2((n >> order) + 1)) + 1 + order for n in mapped)
    assert exp_golomb.bits_of(given_numbers, order) == told
    best = exp_golomb.bits_of(given_numbers, exp_golomb.best_order(given_numbers))
    assert best <= exp_golomb.bits_of(given_numbers, order)


def test_codes_that_end_too_early_are_refused() -> None:
    codes = exp_golomb.encode(np.arange(100))
    with pytest.raises(CheckpointError, match="of 100 numbers"):
        exp_golomb.decode(codes[:20], 100)


def test_backslash_pulls_as_the_formula_says_and_never_past_zero() -> None:
    weight = torch.nn.Parameter(torch.tensor(first_weights(40, 50, 1.5, 2)))
    norm = torch.nn.Parameter(torch.ones(50))
    before = weight.detach().clone()
    pull = BackSlash({"w": weight, "n": norm}, lambda weights: fitted(weights).shape, strength=30.0)
    pull(0)
    shape = fitted(before.numpy()).shape
    assert pull.shape == shape
    step = 30.0 * shape / (40 * 50 + 50) * (before.abs() + 1) ** (shape - 1)
    expected = torch.where(before.abs() > step, before - step * before.sign(), torch.zeros(()))
    torch.testing.assert_close(weight.detach(), expected)
    assert (weight == 0).any() and (norm == 1).all()
