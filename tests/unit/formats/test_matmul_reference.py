"""The oracle of the native matmuls, against loops over single elements."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference.activations import quantise_activations
from thrifty.kernels.reference.matmul import fused_multiply_add

FINITE = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda value: value == 0 or abs(value) > 1e-18)


def nearest_float32(value: Fraction) -> float:
    """The float32 nearest to an exact fraction, ties to even, found among the neighbours of a first guess."""
    guess = np.float32(float(value))
    options = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return float(min(options, key=lambda o: (abs(Fraction(float(o)) - value), int(o.view(np.uint32)) & 1)))


@given(FINITE, FINITE, FINITE)
@settings(max_examples=300, deadline=None)
def test_fused_multiply_add_rounds_once(left: float, right: float, addend: float) -> None:
    found = fused_multiply_add(torch.tensor(left), torch.tensor(right), torch.tensor(addend))
    assert float(found) == nearest_float32(Fraction(left) * Fraction(right) + Fraction(addend))


def test_fused_multiply_add_where_rounding_twice_goes_wrong() -> None:
    # 2**24 + 1 lies between two floats; the tiny addend decides, and is lost when float64 rounds first.
    left, right = torch.tensor(2.0**24 + 2), torch.tensor(1.0 + 2.0**-23)
    for tiny in (1.0, -1.0):
        addend = torch.tensor(tiny * 2.0**-40)
        exact = Fraction(float(left)) * Fraction(float(right)) + Fraction(float(addend))
        assert float(fused_multiply_add(left, right, addend)) == nearest_float32(exact)


@given(st.integers(1, 3), st.integers(1, 100), st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_activations_err_by_half_a_step(rows: int, columns: int, size: float) -> None:
    x = torch.randn(rows, columns) * size
    codes, scales = quantise_activations(x)
    restored = (codes.float() * scales[..., None]).flatten(1)[:, :columns]
    steps = scales.repeat_interleave(32, dim=1)[:, :columns]
    assert bool(((restored - x).abs() <= steps * 0.5001).all())
    assert int(codes.abs().max()) == 127 or not bool(x.any())


def test_activations_of_zeros_halves_and_padding() -> None:
    x = torch.zeros(1, 40)
    codes, scales = quantise_activations(x)
    assert not bool(codes.any())
    assert not bool(scales.any())
    x[0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])  # scale 1: halves go to the even neighbour
    codes, scales = quantise_activations(x)
    assert codes[0, 0, :4].tolist() == [127, 0, 2, -2]
    assert scales.tolist() == [[1.0, 0.0]]


def slow_group_matmul(linear: GroupLinear, x: torch.Tensor) -> torch.Tensor:
    """The contract of the kernels, element by element, with exact fractions for every rounding."""
    codes = linear.unpacked_codes()
    quantised, scales_x = quantise_activations(x)
    result = torch.empty(len(x), linear.out_features)
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
    torch.manual_seed(bits + group)
    linear = GroupLinear.quantize(torch.randn(5, 200), bits, group, symmetric)
    x = torch.randn(3, 200)
    x[1, 32:64] = 0
    assert torch.equal(linear.oracle(x), slow_group_matmul(linear, x))


@pytest.mark.parametrize("bits", [4, 8])
def test_oracle_is_close_to_the_real_product_and_blind_to_neighbours(bits: int) -> None:
    linear = GroupLinear.quantize(torch.randn(50, 100), bits, 32)
    x = torch.randn(9, 100)
    exact = x @ linear.dequantize().T
    assert (linear.oracle(x) - exact).norm() / exact.norm() < 0.01
    alone = torch.cat([linear.oracle(row[None]) for row in x])
    assert torch.equal(linear.oracle(x), alone)


def test_bf16_oracle_rounds_activations_only() -> None:
    linear = DenseLinear.from_weight(torch.randn(20, 31), torch.bfloat16, packed=True)
    x = torch.randn(4, 31)
    expected = x.bfloat16().double() @ linear.dequantize().double().T
    assert torch.allclose(linear.oracle(x).double(), expected, atol=1e-5)
    assert not math.isclose(float((linear.oracle(x) - x @ linear.dequantize().T).abs().max()), 0.0, abs_tol=1e-4)


def native_layers() -> list[PackedLinear]:
    layers: list[PackedLinear] = []
    for rows, columns in ((1, 1), (33, 100), (192, 576)):
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
        layers += [
            GroupLinear.quantize(weight, bits, group, symmetric)
            for bits in (4, 8)
            for group in (32, 64, 128)
            for symmetric in (True, False)
        ]
        layers.append(DenseLinear.from_weight(weight, torch.bfloat16, packed=True))
    return layers


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_forward_runs_the_native_kernels_with_the_oracle_s_numerics() -> None:
    for linear in native_layers():
        x = torch.randn(7, linear.in_features) * torch.rand(7, 1) * 10
        y = linear(x)
        if isinstance(linear, GroupLinear):
            assert torch.equal(y, linear.oracle(x)), linear
        else:  # the order inside a pair of columns is the hardware's
            assert torch.allclose(y, linear.oracle(x), atol=1e-3), linear
        assert torch.equal(linear(x[3:4]), y[3:4]), linear


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_forward_takes_the_reference_where_a_gradient_is_needed_or_native_is_off() -> None:
    linear = GroupLinear.quantize(torch.randn(32, 64), 4, 32)
    x = torch.randn(2, 64)
    native, expanded = linear(x), x @ linear.dequantize().T
    assert not torch.allclose(native, expanded, atol=1e-5)  # int8 activations
    assert torch.allclose(linear(x.clone().requires_grad_()), expanded, atol=1e-5)
    linear.native = False
    assert torch.allclose(linear(x), expanded, atol=1e-5)
