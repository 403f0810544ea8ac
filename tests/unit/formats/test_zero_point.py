"""Codes with zero points: values, rows, bytes and products."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.kernels.native_pages import EXACT, ISAS, using

from thrifty.errors import KernelError
from thrifty.formats.linear import PackedLinear, ZeroPointLinear
from thrifty.kernels import dispatch

SHAPES = [(16, 32), (37, 100), (70, 384)]


def made(rows: int, columns: int, bits: int, group: int, seed: int = 0) -> tuple[ZeroPointLinear, np.ndarray]:
    """A layer, and its values in fp64."""
    random = np.random.default_rng(seed)
    groups = -(-columns // group)
    codes = random.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    zeros = random.integers(0, 1 << bits, (rows, groups))
    scales = (0.001 + 0.02 * random.random((rows, groups))).astype(np.float16)
    linear = ZeroPointLinear.from_codes(codes, scales, zeros, bits, group)
    place = np.arange(columns) // group
    return linear, scales.astype(np.float64)[:, place] * (codes.astype(np.float64) - zeros[:, place])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_are_exact(bits: int, group: int, shape: tuple[int, int]) -> None:
    linear, exact = made(*shape, bits, group)
    assert np.array_equal(linear.dequantize(), exact)
    indices = np.array([shape[0] - 1, 0, 3])
    assert np.array_equal(linear.rows(indices), exact[indices])
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, ZeroPointLinear)
    assert np.array_equal(again.dequantize(), exact)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_native_products_are_those_of_the_oracle(bits: int, group: int, isa: str) -> None:
    linear, _ = made(70, 384, bits, group)
    x = np.random.default_rng(1).standard_normal((13, 384), np.float32)
    with using(isa):
        y = dispatch.matmul(linear, x)
        for rows in (1, 2, 5):
            assert np.array_equal(dispatch.matmul(linear, x[:rows]), y[:rows])
    wanted = linear.oracle(x)
    if isa in EXACT:
        assert np.array_equal(y, wanted)
    else:
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    exact = x.astype(np.float64) @ linear.dequantize().T
    assert np.abs(y - exact).mean() < 0.02 * np.abs(exact).mean()


def test_what_does_not_fit_is_named() -> None:
    codes, scales, zeros = np.zeros((16, 32), np.uint8), np.ones((16, 1), np.float16), np.zeros((16, 1), np.uint8)
    with pytest.raises(KernelError, match="zero points of 5-bit codes in groups of 32: bits are 2, 3, 4 or 8"):
        ZeroPointLinear.from_codes(codes, scales, zeros, 5, 32)
    with pytest.raises(KernelError, match="a code is 0 to 16; 0 to 15 is allowed"):
        ZeroPointLinear.from_codes(codes + np.eye(16, 32, dtype=np.uint8) * 16, scales, zeros, 4, 32)
    with pytest.raises(KernelError, match="a zero point is 256 to 256; 0 to 255 is allowed"):
        ZeroPointLinear.from_codes(codes, scales, zeros.astype(np.int64) + 256, 8, 32)
    with pytest.raises(KernelError, match=r"tensor 'zeros' is uint8 \(2, 1, 16\), expected uint8 \(1, 1, 16\)"):
        linear = ZeroPointLinear.from_codes(codes, scales, zeros, 4, 32)
        ZeroPointLinear(16, 32, 4, 32, linear.codes, linear.scales, np.zeros((2, 1, 16), np.uint8))
