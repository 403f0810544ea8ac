"""Weights in bit planes: where bits lie, files, products without native code, and what is refused."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import BitPlaneLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference import bipolar


def normal(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def test_bits_lie_where_the_layout_says() -> None:
    codes = np.random.default_rng(0).integers(0, 8, (32, 64), np.uint8)
    tiles = bipolar.pack_planes(codes, 3)
    assert tiles.shape == (2, 2, 192)
    for row, column, bit in ((0, 0, 0), (31, 63, 2), (17, 40, 1), (5, 7, 0), (20, 8, 2)):
        byte = int(tiles[row // 16, column // 32, 64 * bit + 4 * (row % 16) + column % 32 // 8])
        assert byte >> column % 8 & 1 == int(codes[row, column]) >> bit & 1
    assert np.array_equal(bipolar.unpack_planes(tiles, 3), codes)
    assert np.array_equal(bipolar.unpack_plane_rows(tiles, 3, np.array([31, 0, 17])), codes[[31, 0, 17]])


@pytest.mark.parametrize("bits", range(1, 9))
def test_rounded_weights_are_odd_numbers_of_a_scale(bits: int) -> None:
    weight = normal(5, 96)
    linear = BitPlaneLinear.quantize(weight, bits, 8, 32)
    scales = bipolar.fit_weights(weight[:, :32], bits)[1].astype(np.float32)
    numbers = linear.dequantize()[:, :32] / scales[:, None]
    assert np.allclose(numbers % 2, 1, atol=1e-3) and np.abs(numbers).max() < (1 << bits)


def test_one_bit_is_the_mean_magnitude_and_more_bits_err_less() -> None:
    weight, errors = normal(8, 128), []
    assert np.allclose(bipolar.fit_weights(weight, 1)[1], np.abs(weight).mean(axis=1), rtol=1e-3)
    for bits in range(1, 9):
        linear = BitPlaneLinear.quantize(weight, bits, 8, 64)
        errors.append(float(np.square(linear.dequantize() - weight).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.13 and errors[3] < 0.015, "near those of the best even steps for a normal distribution"


@pytest.mark.parametrize(("bits", "activation_bits", "group"), [(1, 1, 32), (3, 5, 96), (8, 2, 256)])
def test_products_rows_bytes_and_files(bits: int, activation_bits: int, group: int) -> None:
    x, bias = normal(4, 128, seed=3), np.arange(37, dtype=np.float32)
    linear = BitPlaneLinear.quantize(normal(37, 128), bits, activation_bits, group, bias)
    full, picked = linear.dequantize(), np.array([36, 0, 17])
    assert linear.label == f"w{bits}a{activation_bits}-g{group}"
    assert linear.nbytes == 48 * 128 * bits // 8 + 2 * 48 * -(-128 // group) + 4 * 37
    assert np.array_equal(linear.rows(picked), full[picked])
    assert np.array_equal(linear.tile(16, 37), full[16:])
    with patch.object(dispatch, "native", return_value=None):
        plain = linear.multiply(x)
    np.testing.assert_allclose(plain, linear.oracle(x) + bias, rtol=1e-4, atol=1e-4)
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, BitPlaneLinear)
    assert np.array_equal(again.multiply(x), linear.multiply(x)) and again.codes is linear.codes


def test_activations_are_rounded_to_odd_numbers_too() -> None:
    linear, x = BitPlaneLinear.quantize(normal(2, 64), 4, 2, 32), normal(3, 64)
    x[1, 32:] = 0
    rounded = linear.round_input(x)
    assert linear.rounds_input
    for row in range(3):
        for first in (0, 32):
            step = np.abs(x[row, first : first + 32]).max() / 3
            for value, found in zip(x[row, first : first + 32], rounded[row, first : first + 32], strict=True):
                nearest = min((-3, -1, 1, 3), key=lambda number: abs(number * step - value))
                assert found == pytest.approx(nearest * step, rel=1e-6)


def test_what_is_refused() -> None:
    weight = normal(4, 64)
    with pytest.raises(KernelError, match="9-bit weights and 8-bit activations: both are 1 to 8"):
        BitPlaneLinear.quantize(weight, 9, 8, 32)
    with pytest.raises(KernelError, match="group 40 of bit planes must be a multiple of 32"):
        BitPlaneLinear.quantize(weight, 4, 8, 40)
    with pytest.raises(KernelError, match="codes of 2 bits are uint8 0 to 3, found uint8 4"):
        BitPlaneLinear.from_codes(np.full((2, 32), 4, np.uint8), np.ones((2, 1)), 2, 8, 32)
    with pytest.raises(KernelError, match=r"group scales are \(2, 2\), expected \(2, 1\)"):
        BitPlaneLinear.from_codes(np.ones((2, 32), np.uint8), np.ones((2, 2)), 2, 8, 32)
    with pytest.raises(KernelError, match="1 NaN or infinite"):
        BitPlaneLinear.quantize(np.array([[1.0, np.inf]], np.float32), 2, 8, 32)
    linear = BitPlaneLinear.quantize(weight, 2, 8, 32)
    for name, value in {"bits": 0, "activation_bits": 12, "group": None}.items():
        with pytest.raises(CheckpointError, match=name):
            PackedLinear.from_state(linear.meta() | {name: value}, linear.state())
