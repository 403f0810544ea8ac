"""Binary and ternary weights: the papers' formulas, files, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import PackedLinear, SignLinear
from thrifty.kernels.reference import signs


def normal(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def test_binary_is_the_sign_times_the_mean_magnitude() -> None:
    weight = normal(3, 40)
    weight[1, 5] = 0
    restored = SignLinear.quantize(weight, 2, 32).dequantize()
    for row in range(3):
        for first in (0, 32):
            group = [float(value) for value in weight[row, first : first + 32]]
            scale = float(np.float16(np.float32(sum(abs(value) for value in group) / len(group))))
            expected = [scale if value >= 0 else -scale for value in group]
            assert restored[row, first : first + 32].tolist() == expected


def test_ternary_drops_what_is_below_seven_tenths_of_the_mean_magnitude() -> None:
    weight = normal(3, 40, seed=1)
    restored = SignLinear.quantize(weight, 3, 32).dequantize()
    for row in range(3):
        for first in (0, 32):
            group = [float(value) for value in weight[row, first : first + 32]]
            threshold = 0.7 * sum(abs(value) for value in group) / len(group)
            above = [abs(value) for value in group if abs(value) > threshold]
            scale = float(np.float16(np.float32(sum(above) / len(above))))
            expected = [0.0 if abs(value) <= threshold else scale * np.sign(value) for value in group]
            assert restored[row, first : first + 32].tolist() == expected


@pytest.mark.parametrize("levels", [2, 3])
def test_scales_have_the_least_squared_error_for_their_values(levels: int) -> None:
    group = normal(6, 64, seed=2)
    values, scales = (signs.binary if levels == 2 else signs.ternary)(group)

    def error(factor: float) -> Floats:
        return np.square(group - factor * scales.astype(np.float32)[:, None] * values).sum(axis=1)

    assert (error(1.0) <= error(0.98)).all() and (error(1.0) <= error(1.02)).all()


def test_a_row_of_zeros_stays_one() -> None:
    for levels in (2, 3):
        assert not SignLinear.quantize(np.zeros((2, 70), np.float32), levels, 64).dequantize().any()


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("group", [32, 96, 256])
def test_products_rows_bytes_and_files(levels: int, bits: int, group: int) -> None:
    weight, x = normal(37, 128), normal(4, 128, seed=3)
    linear = SignLinear.quantize(weight, levels, group, bias=np.arange(37, dtype=np.float32))
    full = linear.dequantize()
    assert linear.label == f"{'binary' if levels == 2 else 'ternary'}-g{group}"
    assert linear.nbytes == 48 * 128 * bits // 8 + 2 * 48 * -(-128 // group) + 4 * 37
    picked = np.array([36, 0, 17])
    assert np.array_equal(linear.rows(picked), full[picked])
    assert np.array_equal(linear.tile(16, 37), full[16:])
    np.testing.assert_allclose(linear.oracle(x), x @ full.T, atol=0.3)
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert isinstance(again, SignLinear)
    assert np.array_equal(again.dequantize(), full) and again.codes is linear.codes


def test_a_layer_of_signs_comes_back() -> None:
    once = SignLinear.quantize(normal(20, 70), 3, 32)
    np.testing.assert_allclose(SignLinear.requantize(once, 3, 32).dequantize(), once.dequantize(), rtol=1e-3)


def test_what_is_refused() -> None:
    with pytest.raises(KernelError, match="signs of 4 levels in groups of 32: levels are 2 or 3"):
        SignLinear.quantize(normal(2, 32), 4, 32)
    with pytest.raises(KernelError, match="groups of 48: levels are 2 or 3, groups multiples of 32"):
        SignLinear.quantize(normal(2, 32), 2, 48)
    with pytest.raises(KernelError, match=r"binary weights are \(-1, 1\), found 0"):
        SignLinear.from_signs(np.zeros((2, 32), np.int8), np.ones((2, 1)), 2, 32)
    with pytest.raises(KernelError, match=r"group scales are \(2, 2\), expected \(2, 1\)"):
        SignLinear.from_signs(np.ones((2, 32), np.int8), np.ones((2, 2)), 2, 32)
    with pytest.raises(KernelError, match="1 NaN or infinite"):
        SignLinear.quantize(np.array([[1.0, np.nan]], np.float32), 2, 32)
    linear = SignLinear.quantize(normal(16, 32), 2, 32)
    for name, value in {"levels": 5, "group": -32}.items():
        with pytest.raises(CheckpointError, match=name):
            PackedLinear.from_state(linear.meta() | {name: value}, linear.state())
    with pytest.raises(CheckpointError, match="'codes' is missing"):
        PackedLinear.from_state(linear.meta(), {"scales": linear.scales})
