"""The oracle of the native matmuls, against loops over single elements."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.formats.test_linear import five_bits, of_codebook

from thrifty.arrays import BFLOAT16, Floats
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.matmul import fused_multiply_add

FINITE = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda value: value == 0 or abs(value) > 1e-18)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def nearest_float32(value: Fraction) -> float:
    """The float32 nearest to an exact fraction, ties to even, found among the neighbours of a first guess."""
    guess = np.float32(float(value))
    options = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return float(min(options, key=lambda o: (abs(Fraction(float(o)) - value), int(o.view(np.uint32)) & 1)))


@given(FINITE, FINITE, FINITE)
@settings(max_examples=300, deadline=None)
def test_fused_multiply_add_rounds_once(left: float, right: float, addend: float) -> None:
    found = fused_multiply_add(*(np.array(number, np.float32) for number in (left, right, addend)))
    assert float(found) == nearest_float32(Fraction(left) * Fraction(right) + Fraction(addend))


def test_fused_multiply_add_where_rounding_twice_goes_wrong() -> None:
    # 2**24 + 1 lies between two floats; the tiny addend decides, and is lost when float64 rounds first.
    left, right = np.array(2.0**24 + 2, np.float32), np.array(1.0 + 2.0**-23, np.float32)
    for tiny in (1.0, -1.0):
        addend = np.array(tiny * 2.0**-40, np.float32)
        exact = Fraction(float(left)) * Fraction(float(right)) + Fraction(float(addend))
        assert float(fused_multiply_add(left, right, addend)) == nearest_float32(exact)


@given(st.integers(1, 3), st.integers(1, 100), st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_activations_err_by_half_a_step(rows: int, columns: int, size: float) -> None:
    x = normal(rows, columns) * np.float32(size)
    codes, scales = quantise_activations(x)
    restored = (codes * scales[..., None]).reshape(rows, -1)[:, :columns]
    steps = scales.repeat(32, axis=1)[:, :columns]
    assert bool((np.abs(restored - x) <= steps * 0.5001).all())
    assert int(np.abs(codes).max()) == 127 or not bool(x.any())


def test_activations_of_zeros_halves_and_padding() -> None:
    x = np.zeros((1, 40), np.float32)
    codes, scales = quantise_activations(x)
    assert not bool(codes.any())
    assert not bool(scales.any())
    x[0, :4] = [127.0, 0.5, 1.5, -2.5]  # scale 1: halves go to the even neighbour
    codes, scales = quantise_activations(x)
    assert codes[0, 0, :4].tolist() == [127, 0, 2, -2]
    assert scales.tolist() == [[1.0, 0.0]]


def slow_group_matmul(linear: GroupLinear, x: Floats) -> Floats:
    """The contract of the kernels, element by element, with exact fractions for every rounding."""
    codes = linear.unpacked_codes()
    quantised, scales_x = quantise_activations(x)
    result = np.empty((len(x), linear.out_features), np.float32)
    for row in range(len(x)):
        for out in range(linear.out_features):
            total = 0.0
            for block in range(quantised.shape[1]):
                q = quantised[row, block].tolist()
                start = block * 32
                group = start // linear.group
                w = codes[out, start : start + 32].tolist()
                scale = float(linear.scales[out // 16, group, out % 16])
                xs = np.float32(scales_x[row, block])
                dot = sum(a * b for a, b in zip(w, q, strict=True))
                step = float(np.float32(scale) * xs)
                total = nearest_float32(Fraction(dot) * Fraction(step) + Fraction(total))
                if linear.minimums is not None:
                    minimum = float(linear.minimums[out // 16, group, out % 16])
                    shift = float(xs * np.float32(sum(q)))
                    total = nearest_float32(Fraction(minimum) * Fraction(shift) + Fraction(total))
            result[row, out] = total
    return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128])
def test_oracle_equals_the_slow_loop_to_the_bit(bits: int, symmetric: bool, group: int) -> None:
    linear = GroupLinear.quantize(normal(5, 200, seed=bits + group), bits, group, symmetric)
    x = normal(3, 200, seed=1)
    x[1, 32:64] = 0
    assert np.array_equal(linear.oracle(x), slow_group_matmul(linear, x))


@pytest.mark.parametrize(
    "linear",
    [five_bits(normal(5, 200), True), five_bits(normal(5, 200), False), of_codebook(normal(5, 200))],
    ids=["5", "5 with minimums", "iq4"],
)
def test_oracle_of_formats_that_files_have(linear: GroupLinear) -> None:
    x = normal(3, 200, seed=1)
    assert np.array_equal(linear.oracle(x), slow_group_matmul(linear, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_plain_rows_are_added_in_sixteen_sums(dtype: type) -> None:
    linear, x = DenseLinear.from_weight(normal(3, 53), dtype), normal(2, 53, seed=1)
    for row, out in ((0, 0), (1, 2)):
        sums, total = np.zeros(16, np.float32), np.float32(0)
        for column in range(48):
            sums[column % 16] += x[row, column] * np.float32(linear.weight[out, column])
        for column in range(48, 53):
            total += x[row, column] * np.float32(linear.weight[out, column])
        for each in sums:
            total += each
        assert linear.oracle(x)[row, out] == total


@pytest.mark.parametrize("bits", [4, 8])
def test_oracle_is_close_to_the_real_product_and_blind_to_neighbours(bits: int) -> None:
    linear = GroupLinear.quantize(normal(50, 100), bits, 32)
    x = normal(9, 100, seed=1)
    exact = x @ linear.dequantize().T
    assert np.linalg.norm(linear.oracle(x) - exact) / np.linalg.norm(exact) < 0.01
    alone = np.concatenate([linear.oracle(row[None]) for row in x])
    assert np.array_equal(linear.oracle(x), alone)


def test_bf16_oracle_rounds_activations_only() -> None:
    linear = DenseLinear.from_weight(normal(20, 31), BFLOAT16, packed=True)
    x = normal(4, 31, seed=1)
    expected = x.astype(BFLOAT16).astype(np.float64) @ linear.dequantize().astype(np.float64).T
    assert np.allclose(linear.oracle(x), expected, atol=1e-5)
    assert not math.isclose(float(np.abs(linear.oracle(x) - x @ linear.dequantize().T).max()), 0.0, abs_tol=1e-4)


def native_layers() -> list[PackedLinear]:
    layers: list[PackedLinear] = []
    for rows, columns in ((1, 1), (33, 100), (192, 576)):
        weight = normal(rows, columns, seed=rows)
        layers += [
            GroupLinear.quantize(weight, bits, group, symmetric)
            for bits in (4, 8)
            for group in (32, 64, 128)
            for symmetric in (True, False)
        ]
        layers.append(DenseLinear.from_weight(weight, BFLOAT16, packed=True))
    return layers


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_the_product_runs_the_native_kernels_with_the_oracle_s_numerics() -> None:
    for linear in native_layers():
        x = normal(7, linear.in_features) * np.abs(normal(7, 1, seed=1)) * 10
        y = linear.multiply(x)
        if isinstance(linear, GroupLinear):
            assert np.array_equal(y, linear.oracle(x)), linear
        else:  # the order inside a pair of columns is the hardware's
            assert np.allclose(y, linear.oracle(x), atol=1e-3), linear
        assert np.array_equal(linear.multiply(x[3:4]), y[3:4]), linear
