"""Bit-plane products against the equations of arXiv 2409.17870, one bit at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thrifty import registry
from thrifty.errors import RecipeError
from thrifty.formats.linear import BitPlaneLinear
from thrifty.kernels.reference import bipolar
from thrifty.models.model import Model
from thrifty.reference.loading import build
from thrifty.weights.technique import prepare

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def any_precision(**options: Any) -> Any:
    return registry.build("weights", {"technique": "any-precision"} | options)


def value_of(code: int, bits: int) -> int:
    """Σ over bits of (2 b_i − 1)·2^i (§3.1): bit 0 means −1."""
    return sum((2 * (code >> bit & 1) - 1) << bit for bit in range(bits))


def plane_product(left: list[int], right: list[int], bits: int, other_bits: int) -> int:
    """Y = Σ_ij 2^(i+j)·D_ij with D_ij = K − 2·popcount(w_i XOR x_j) (§3.2)."""
    total = 0
    for i in range(bits):
        for j in range(other_bits):
            differing = sum((a >> i & 1) ^ (b >> j & 1) for a, b in zip(left, right, strict=True))
            total += (len(left) - 2 * differing) << (i + j)
    return total


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("activation_bits", [1, 2, 4, 8])
def test_planes_give_exactly_the_product_of_the_numbers(bits: int, activation_bits: int) -> None:
    random = np.random.default_rng(bits)
    left = random.integers(0, 1 << bits, (3, 45), np.uint8)
    right = random.integers(0, 1 << activation_bits, (2, 45), np.uint8)
    numbers, others = bipolar.numbers(left, bits), bipolar.numbers(right, activation_bits)
    assert numbers.tolist() == [[value_of(int(code), bits) for code in row] for row in left]
    plain = others @ numbers.T
    for row, codes in enumerate(right):
        for column, weights in enumerate(left):
            planes = plane_product(weights.tolist(), codes.tolist(), bits, activation_bits)
            assert planes == int(plain[row, column])


def test_every_integer_grid_is_one_of_odd_numbers() -> None:
    """§3.1: W = s·x̂ + z with x̂ = −2^(n−1)..2^(n−1) − 1 is (s/2)·(2 x̂ + 1) + (z − s/2), without loss."""
    for bits in (2, 3, 4):
        signed = np.arange(-(1 << (bits - 1)), 1 << (bits - 1))
        codes = np.arange(1 << bits, dtype=np.uint8)
        assert (bipolar.numbers(codes, bits) == 2 * signed + 1).all()


def test_layers_are_stored_in_planes_and_the_rest_is_left(plain: Model) -> None:
    small = prepare(plain, [any_precision(bits=3, activation_bits=6, group=32)])
    assert {linear.label for linear in small.linears.values()} == {"f32", "w3a6-g32"}
    assert small.linears["embedding"] is plain.linears["embedding"]
    assert isinstance(small.linears["layers.0.mlp.up"], BitPlaneLinear)


def test_more_bits_of_either_side_err_less(plain: Model) -> None:
    """Also without native code: the rounding of activations is a part of the product."""
    wanted, errors = build(plain).logits(TOKENS).numpy(), []
    for options in ((8, 8), (8, 4), (8, 2), (2, 2)):
        small = prepare(plain, [any_precision(bits=options[0], activation_bits=options[1], group=32)])
        errors.append(float(np.linalg.norm(build(small).logits(TOKENS).numpy() - wanted)))
    assert errors == sorted(errors) and errors[0] < errors[2] / 4


def test_what_does_not_fit_is_refused(plain: Model) -> None:
    with pytest.raises(RecipeError, match="option 'bits'"):
        any_precision(bits=9)
    with pytest.raises(RecipeError, match="option 'group'"):
        any_precision(group=40)
    with pytest.raises(RecipeError, match=r"layer 7 is outside 0\.\.1"):
        prepare(plain, [any_precision(layers=[7])])
