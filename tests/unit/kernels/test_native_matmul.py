"""Packed matmuls in native code against a slow oracle that includes the activation quantisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import EXACT, ISAS, native, normal, using

from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import KernelError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.kernels import dispatch


def made(bits: int, symmetric: bool, group: int, rows: int, columns: int, seed: int = 0) -> GroupLinear:
    return GroupLinear.quantize(normal(rows, columns, seed=seed), bits, group, symmetric)


def close(found: Floats, wanted: Floats, isa: str) -> None:
    if isa in EXACT:
        assert np.array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max() + 1e-9))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    group=st.sampled_from([32, 64, 128]),
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    count=st.integers(1, 27),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    isa: str, bits: int, symmetric: bool, group: int, rows: int, columns: int, count: int, seed: int
) -> None:
    linear = made(bits, symmetric, group, rows, columns, seed)
    x = normal(count, columns, seed=seed + 1)
    with using(isa):
        close(dispatch.matmul(linear, x), linear.oracle(x), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits, symmetric", [(4, True), (4, False), (8, True), (8, False)])
def test_a_row_is_the_same_in_any_batch(isa: str, bits: int, symmetric: bool) -> None:
    linear = made(bits, symmetric, 64, 90, 320)
    x = normal(300, 320)
    with using(isa):
        together = dispatch.matmul(linear, x)
        assert np.array_equal(dispatch.matmul(linear, x[:37]), together[:37])
        assert all(np.array_equal(dispatch.matmul(linear, x[i : i + 1])[0], together[i]) for i in (0, 1, 7, 36, 299))


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_codes_and_activations_do_not_saturate(isa: str) -> None:
    """The worst case of int16 intermediates: every code and every activation at its limit, in all signs."""
    for bits, low, high in ((4, 0, 15), (8, -128, 127)):
        for code in (low, high):
            codes = np.full((16, 64), code)
            minimums = np.zeros((16, 2), np.float32) if bits == 4 else None
            linear = GroupLinear.from_codes(codes, np.ones((16, 2), np.float32), minimums, bits, 32)
            for sign in (1.0, -1.0):
                x = np.full((3, 64), sign * 127.0, np.float32)
                with using(isa):
                    assert np.array_equal(dispatch.matmul(linear, x), np.full((3, 16), sign * 127.0 * 64 * code))


@pytest.mark.parametrize("isa", ISAS)
def test_zeros_tiny_and_huge_blocks(isa: str) -> None:
    linear = made(4, False, 32, 16, 96)
    x = np.zeros((4, 96), np.float32)
    x[1, 40] = 1e30
    x[2, :32] = 1e-40
    x[3] = np.linspace(-1e-45, 1e-45, 96)
    with using(isa):
        y = dispatch.matmul(linear, x)
    assert not y[0].any()
    assert np.isfinite(y).all()
    close(y[1], linear.oracle(x)[1], isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows, columns", [(1, 1), (50, 97), (33, 320), (16, 2)])
def test_bf16(isa: str, rows: int, columns: int) -> None:
    linear = DenseLinear.from_weight(normal(rows, columns), BFLOAT16, packed=True)
    x = normal(37, columns, seed=1)
    with using(isa):
        y = dispatch.matmul(linear, x)
        assert np.array_equal(y, linear.oracle(x))
        assert all(np.array_equal(dispatch.matmul(linear, x[i : i + 1])[0], y[i]) for i in range(37))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows, columns", [(1, 1), (50, 97), (33, 320)])
def test_plain_fp32(isa: str, rows: int, columns: int) -> None:
    weight, x, bias = normal(rows, columns), normal(37, columns, seed=1), normal(rows, seed=2)
    linear = DenseLinear.from_weight(weight)
    with using(isa) as module:
        y = dispatch.matmul(linear, x)
        np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T.astype(np.float64), rtol=1e-5, atol=2e-5)
        assert all(np.array_equal(dispatch.matmul(linear, x[i : i + 1])[0], y[i]) for i in range(37))
        shifted = np.empty_like(y)
        module.matmul(dispatch.packed(linear, bias), x, shifted)
    assert np.array_equal(shifted, y + bias)


def test_a_native_linear_keeps_its_arrays() -> None:
    module = native()
    linear = made(4, False, 32, 50, 96)
    wanted, x = dispatch.matmul(linear, normal(3, 96)), normal(3, 96)
    held, y = dispatch.packed(linear), np.empty((3, 50), np.float32)
    del linear
    assert (held.layout, held.out_features, held.in_features) == ("int4", 50, 96)
    made(4, True, 32, 50, 96, seed=9)  # takes the memory that would be free
    module.matmul(held, x, y)
    assert np.array_equal(y, wanted)


def test_threads_do_not_change_a_bit() -> None:
    module = native()
    if module.available_threads() < 2:
        pytest.skip("one processor only")
    linear, x = made(4, False, 32, 700, 96), normal(65, 96)
    before = module.threads()
    try:
        module.set_threads(1)
        alone = dispatch.matmul(linear, x)
        module.set_threads(2)
        assert np.array_equal(dispatch.matmul(linear, x), alone)
    finally:
        module.set_threads(before)


def test_no_rows_give_no_rows() -> None:
    native()
    assert dispatch.matmul(made(4, True, 32, 5, 32), np.empty((0, 32), np.float32)).shape == (0, 5)


def test_wrong_shapes_are_refused() -> None:
    native()
    linear = made(4, True, 32, 16, 64)
    with pytest.raises(KernelError, match=r"x has shape \(3, 32\), expected \[rows, 64\]"):
        dispatch.matmul(linear, normal(3, 32))
    linear.scales = linear.scales[:, :1]
    with pytest.raises(KernelError, match=r"scales is float16 .* expected float16 \(1, 2, 16\)"):
        dispatch.matmul(linear, normal(3, 64))
    with pytest.raises(KernelError, match="no native kernel for DenseLinear bf16"):
        dispatch.matmul(DenseLinear.from_weight(normal(4, 4), BFLOAT16), normal(1, 4))
