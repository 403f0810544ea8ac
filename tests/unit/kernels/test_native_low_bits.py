"""Products of weights of 1, 2 and 3 bits in native code: codes with scales, signs, and bit planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import EXACT, ISAS, native, normal, using

from thrifty.arrays import Array, Floats
from thrifty.errors import KernelError
from thrifty.formats.linear import BitPlaneLinear, GroupLinear, SignLinear, ZeroPointLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference import bipolar

Low = BitPlaneLinear | GroupLinear | SignLinear | ZeroPointLinear
KINDS = ("int2", "int2 symmetric", "int3", "int3 symmetric", "zero 2", "zero 3", "binary", "ternary", "planes")
BATCHES = (1, 2, 3, 4, 5, 8, 9, 31, 33, 64)


def zero_points(bits: int, group: int, rows: int, columns: int, seed: int) -> ZeroPointLinear:
    random, groups = np.random.default_rng(seed), -(-columns // group)
    codes = random.integers(0, 1 << bits, (rows, columns), np.uint8)
    scales, zeros = normal(rows, groups, seed=seed), random.integers(0, 1 << bits, (rows, groups))
    return ZeroPointLinear.from_codes(codes, scales, zeros, bits, group)


def made(kind: str, group: int, rows: int, columns: int, seed: int = 0) -> Low:
    weight = normal(rows, columns, seed=seed)
    if kind in ("binary", "ternary"):
        return SignLinear.quantize(weight, 2 if kind == "binary" else 3, group)
    if kind == "planes":
        return BitPlaneLinear.quantize(weight, seed % 8 + 1, seed // 8 % 8 + 1, group)
    if kind.startswith("zero"):
        return zero_points(int(kind[-1]), group, rows, columns, seed)
    return GroupLinear.quantize(weight, int(kind[3]), group, kind.endswith("symmetric"))


def close(found: Floats, wanted: Floats, isa: str) -> None:
    if isa in EXACT:
        assert np.array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max() + 1e-9))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    group=st.sampled_from([32, 64, 128]),
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    count=st.integers(1, 27),
    seed=st.integers(0, 1000),
)
def test_any_shape(isa: str, kind: str, group: int, rows: int, columns: int, count: int, seed: int) -> None:
    linear, x = made(kind, group, rows, columns, seed), normal(count, columns, seed=seed + 1)
    with using(isa):
        close(dispatch.matmul(linear, x), linear.oracle(x), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_batch(isa: str, kind: str) -> None:
    """Three tiles, the last of them part full, rows of whole blocks and a part of one."""
    linear, x = made(kind, 64, 41, 330, seed=11), normal(64, 330, seed=1)
    with using(isa):
        together = dispatch.matmul(linear, x)
        close(together, linear.oracle(x), isa)
        for count in BATCHES:
            assert np.array_equal(dispatch.matmul(linear, x[-count:]), together[-count:]), count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_codes_and_activations_do_not_saturate(isa: str, bits: int, sign: float) -> None:
    ones, x = np.ones((16, 2), np.float32), np.full((3, 64), sign * 127.0, np.float32)
    for code in (0, (1 << bits) - 1):
        codes = np.full((16, 64), code)
        values = GroupLinear.from_codes(codes, ones, np.zeros_like(ones), bits, 32)
        centred = GroupLinear.from_codes(codes, ones, None, bits, 32)
        with using(isa):
            assert np.array_equal(dispatch.matmul(values, x), np.full((3, 16), sign * 127.0 * 64 * code))
            middle = 1 << (bits - 1)
            assert np.array_equal(dispatch.matmul(centred, x), np.full((3, 16), sign * 127.0 * 64 * (code - middle)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("group", [96, 1024])
def test_signs_take_groups_of_any_multiple_of_a_block(isa: str, levels: int, group: int) -> None:
    """Also one that is longer than the row: one scale a row."""
    linear, x = SignLinear.quantize(normal(33, 200), levels, group), normal(9, 200, seed=1)
    with using(isa):
        close(dispatch.matmul(linear, x), linear.oracle(x), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("activation_bits", [1, 2, 3, 7, 8])
def test_bit_planes_give_the_product_of_whole_numbers(isa: str, bits: int, activation_bits: int) -> None:
    """Scales of 1 leave the sums as they are: equal to a plain product of integers, to the last digit."""
    random, most = np.random.default_rng(bits), (1 << activation_bits) - 1
    codes = random.integers(0, 1 << bits, (17, 70), np.uint8)
    given = bipolar.numbers(random.integers(0, most + 1, (5, 70), np.uint8), activation_bits)
    given[:, 0] = most  # so that the scale of the activations is 1
    linear = BitPlaneLinear.from_codes(codes, np.ones((17, 1)), bits, activation_bits, 96)
    with using(isa):
        found = dispatch.matmul(linear, given.astype(np.float32))
    assert np.array_equal(found.astype(np.int64), given @ bipolar.numbers(codes, bits).T.astype(np.int64))


@pytest.mark.parametrize("isa", ISAS)
def test_bit_planes_at_their_limits(isa: str) -> None:
    """The greatest sums that 32 bits take, all of one sign, and activations of zero."""
    columns = 32992
    codes = np.repeat(np.array([[0], [255]], np.uint8), columns, axis=1)
    linear = BitPlaneLinear.from_codes(codes, np.ones((2, 1)), 8, 8, columns)
    x = np.zeros((3, columns), np.float32)
    x[0], x[1] = 255.0, -255.0
    total = np.float32(columns * 255 * 255)
    with using(isa):
        found = dispatch.matmul(linear, x)
    assert np.array_equal(found, np.array([[-total, total], [total, -total], [0, 0]], np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_for_an_embedding(kind: str) -> None:
    linear = made(kind, 32, 35, 77, seed=10)
    module, found = native(), np.empty((35, 77), np.float32)
    module.linear_rows(dispatch.packed(linear), np.arange(35), found)
    assert np.array_equal(found, linear.dequantize())


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("ternary", {"group": 48}, "group of a linear of layout ternary must be a multiple of 32, not 48"),
        ("ternary", {"minimums": np.zeros((1, 1, 16), np.float16)}, "ternary has no minimums"),
        ("int2", {"activation_bits": 4}, "a linear of layout int2 has no activation_bits"),
        ("planes3", {"activation_bits": 9}, "activation_bits must be 1 to 8, not 9"),
        ("planes8", {"activation_bits": 8, "in_features": 40000, "group": 40000}, "do not fit 32 bits"),
        ("planes8", {"activation_bits": 8, "in_features": 70000}, "at most 65536 columns, not 70000"),
    ],
)
def test_what_native_code_refuses(layout: str, options: dict[str, Array | int], message: str) -> None:
    sizes = {"out_features": 16, "in_features": 32, "group": 32}
    codes, scales = np.zeros((1, 1, 128), np.uint8), np.zeros((1, 1, 16), np.float16)
    with pytest.raises(ValueError, match=message):
        native().Linear(layout=layout, codes=codes, scales=scales, **{**sizes, **options})


def test_rows_that_do_not_fit_are_refused_before_any_work() -> None:
    with pytest.raises(KernelError, match="sums of 40000 products of 8 and 8 bits do not fit 32 bits"):
        BitPlaneLinear.quantize(np.zeros((1, 40000), np.float32), 8, 8, 65536)
