"""Stored linear layers: exactness, error bounds, files, and the messages of refusals."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.arrays import BFLOAT16, Array, Floats
from thrifty.errors import CheckpointError, KernelError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.kernels.reference.codebooks import CODEBOOKS

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 150))
BITS, GROUPS = st.sampled_from([2, 3, 4, 8]), st.sampled_from([32, 64, 128])


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def weight_of(rows: int, columns: int, seed: int = 0) -> Floats:
    return normal(rows, columns, seed=seed)


def reference(linear: PackedLinear, x: Floats) -> Floats:
    """The product without native code."""
    with patch.object(dispatch, "native", return_value=None):
        return linear.multiply(x)


def every_kind(weight: Floats, bias: Floats | None = None) -> list[PackedLinear]:
    kinds: list[PackedLinear] = [
        GroupLinear.quantize(weight, bits, 32, symmetric, bias) for bits in (2, 3, 4, 8) for symmetric in (True, False)
    ]
    kinds += [DenseLinear.from_weight(weight, dtype, bias=bias) for dtype in (np.float32, np.float16, BFLOAT16)]
    kinds += [five_bits(weight, symmetric, bias) for symmetric in (True, False)]
    kinds.append(of_codebook(weight, bias))
    kinds.append(DenseLinear.from_weight(weight, BFLOAT16, packed=True, bias=bias))
    return kinds


def five_bits(weight: Floats, symmetric: bool, bias: Floats | None = None) -> GroupLinear:
    """The weight as its range in 32 steps a group of 32."""
    columns = weight.shape[1]
    wide = np.pad(weight, ((0, 0), (0, -columns % 32)), mode="edge").reshape(len(weight), -1, 32)
    low = -np.abs(wide).max(-1) if symmetric else wide.min(-1)
    scale = ((-2 * low if symmetric else wide.max(-1) - low) / 31 + 1e-3).astype(np.float16)
    base = (-16 * scale if symmetric else low).astype(np.float16)
    steps = np.rint((wide - base.astype(np.float32)[..., None]) / scale.astype(np.float32)[..., None])
    codes = np.clip(steps, 0, 31).astype(np.uint8).reshape(len(weight), -1)[:, :columns]
    return GroupLinear.from_codes(codes, scale, None if symmetric else base, 5, 32, bias)


def of_codebook(weight: Floats, bias: Floats | None = None) -> GroupLinear:
    """The nearest values of the table of IQ4_NL a group of 32."""
    columns, table = weight.shape[1], CODEBOOKS["iq4"].astype(np.float32)
    wide = np.pad(weight, ((0, 0), (0, -columns % 32))).reshape(len(weight), -1, 32)
    scale = (np.abs(wide).max(-1) / 113).astype(np.float16)
    codes = np.abs(wide[..., None] - scale.astype(np.float32)[..., None, None] * table).argmin(-1)
    plain = codes.reshape(len(weight), -1)[:, :columns]
    return GroupLinear.from_codes(plain, scale, None, 4, 32, bias, codebook="iq4")


def expand(codes: Array, scales: Array, minimums: Array, group: int) -> Floats:
    """The definition, one weight at a time."""
    scales, minimums = scales.astype(np.float32), minimums.astype(np.float32)
    weight = np.empty(codes.shape, np.float32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            place = row, column // group
            weight[row, column] = scales[place] * float(codes[row, column]) + minimums[place]
    return weight


@given(SIZES, BITS, GROUPS, st.booleans())
@settings(max_examples=20, deadline=None)
def test_codes_are_kept_exactly(sizes: tuple[int, int], bits: int, group: int, with_minimum: bool) -> None:
    rows, columns = sizes[0] % 20 + 1, sizes[1]
    groups = -(-columns // group)
    low, high = (-128, 128) if bits == 8 else (0, 1 << bits)
    codes = np.random.default_rng(rows).integers(low, high, (rows, columns))
    scales, minimums = weight_of(rows, groups).astype(np.float16), weight_of(rows, groups, 1).astype(np.float16)
    linear = GroupLinear.from_codes(codes, scales, minimums if with_minimum else None, bits, group)
    if not with_minimum:
        minimums = np.zeros_like(scales) if bits == 8 else -(1 << (bits - 1)) * scales
    expected = expand(codes, scales, minimums, group)
    assert np.allclose(linear.dequantize(), expected, atol=0, rtol=1e-6)
    assert linear.has_minimum == with_minimum


@given(SIZES, BITS, GROUPS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_rounding_errs_by_half_a_step(sizes: tuple[int, int], bits: int, group: int, symmetric: bool) -> None:
    weight = weight_of(*sizes)
    linear = GroupLinear.quantize(weight, bits, group, symmetric)
    restored = linear.dequantize()
    for start in range(0, sizes[1], group):
        part = weight[:, start : start + group]
        if symmetric:  # the positive end of a symmetric grid below 8 bits is one step short
            step = np.abs(part).max(1) / (127 if bits == 8 else 1 << (bits - 1))
            bound = step * (0.5 if bits == 8 else 1)
        else:
            step = (part.max(1) - part.min(1)) / (254 if bits == 8 else (1 << bits) - 1)
            bound = step * 0.5
        error = np.abs(restored[:, start : start + group] - part).max(1)
        assert bool((error <= bound * 1.01 + np.abs(part).max(1) * 2**-9).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_a_second_time_changes_nothing(bits: int, symmetric: bool) -> None:
    once = GroupLinear.quantize(weight_of(48, 96), bits, 32, symmetric)
    twice = GroupLinear.requantize(once, bits, 32, symmetric)
    difference = np.linalg.norm(twice.dequantize() - once.dequantize())
    assert difference / np.linalg.norm(once.dequantize()) < 1e-3


def test_weights_on_a_grid_with_minimum_come_back_exactly() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (32, 128))
    codes[:, ::32], codes[:, 1::32] = 0, 15  # a group that uses both ends, as a rounded one does
    scales = (random.random((32, 4)) * 0.01 + 0.001).astype(np.float16)
    shipped = GroupLinear.from_codes(codes, scales, -8 * scales, 4, 32)
    again = GroupLinear.requantize(shipped, 4, 32)
    assert np.array_equal(again.codes, shipped.codes)
    assert np.array_equal(again.scales, shipped.scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("constant", [0.0, 1.0, -0.3, 1234.567])
def test_constant_groups(bits: int, constant: float) -> None:
    weight = np.full((3, 40), constant, np.float32)
    restored = GroupLinear.quantize(weight, bits, 32).dequantize()
    assert np.allclose(restored, weight, rtol=2**-21, atol=1e-7)
    symmetric = GroupLinear.quantize(weight, bits, 32, symmetric=True).dequantize()
    assert np.allclose(symmetric, weight, rtol=2**-10, atol=0)


def test_a_short_last_group_ignores_the_padding() -> None:
    weight = weight_of(4, 40) * 0.01 + 5.0  # zeros in the padding would stretch the range to 0..5
    restored = GroupLinear.quantize(weight, 8, 32).dequantize()
    assert np.abs(restored - weight).max() < 5e-3


def test_product_rows_and_bias_agree_with_the_expanded_weight() -> None:
    weight, bias = weight_of(37, 75), normal(37, seed=1)
    x = normal(6, 75, seed=2)
    for linear in every_kind(weight, bias):
        full = linear.dequantize()
        assert np.allclose(reference(linear, x), x @ full.T + bias, atol=1e-5), linear.label
        assert linear.multiply(x).dtype == np.float32
        picked = np.array([36, 0, 17, 17])
        assert np.array_equal(linear.rows(picked), full[picked])
        assert linear.rows(picked[:0]).shape == (0, 75)


def test_tiles_cover_a_weight_of_many_rows() -> None:
    weight = weight_of(2100, 33)
    x = normal(3, 33, seed=1)
    for linear in every_kind(weight):
        assert np.allclose(reference(linear, x), x @ linear.dequantize().T, atol=1e-5)
        assert np.allclose(linear.dequantize(), weight, atol=2.5 if linear.label in ("int2-g32", "int3-g32") else 0.6)


def test_bytes_and_labels() -> None:
    weight = weight_of(64, 128)
    expected = {
        "int2-g64": (64 * 128 // 4 + 2 * 2 * 64 * 2, GroupLinear.quantize(weight, 2, 64)),
        "int3-g128": (64 * 128 * 3 // 8 + 2 * 64, GroupLinear.quantize(weight, 3, 128, symmetric=True)),
        "int4-g32": (64 * 128 // 2 + 2 * 2 * 64 * 4, GroupLinear.quantize(weight, 4, 32)),
        "int4-g64": (64 * 128 // 2 + 2 * 64 * 2, GroupLinear.quantize(weight, 4, 64, symmetric=True)),
        "int8-g128": (64 * 128 + 2 * 64, GroupLinear.quantize(weight, 8, 128, symmetric=True)),
        "int5-g32": (64 * 128 * 5 // 8 + 2 * 64 * 4, five_bits(weight, symmetric=True)),
        "iq4-g32": (64 * 128 // 2 + 2 * 64 * 4, of_codebook(weight)),
        "bf16": (64 * 128 * 2, DenseLinear.from_weight(weight, BFLOAT16, packed=True)),
        "f16": (64 * 128 * 2, DenseLinear.from_weight(weight, np.float16)),
        "f32": (64 * 128 * 4 + 4 * 64, DenseLinear.from_weight(weight, bias=np.zeros(64, np.float32))),
    }
    for label, (nbytes, linear) in expected.items():
        assert (linear.label, linear.nbytes) == (label, nbytes)


def test_state_round_trip_without_copies() -> None:
    for linear in every_kind(weight_of(33, 47), normal(33, seed=1)):
        again = PackedLinear.from_state(linear.meta(), linear.state())
        x = normal(2, 47, seed=2)
        assert np.array_equal(again.multiply(x), linear.multiply(x))
        assert again.label == linear.label
        for name, array in linear.state().items():
            assert again.state()[name] is array


def test_hostile_state_names_the_field() -> None:
    linear = GroupLinear.quantize(weight_of(16, 32), 4, 32)
    meta, state = linear.meta(), linear.state()
    for key, value in {
        "kind": "pickle",
        "bits": 6,
        "group": 33,
        "codebook": "iq3",
        "out_features": -1,
        "in_features": 1e9,
    }.items():
        with pytest.raises(CheckpointError, match=key):
            PackedLinear.from_state(meta | {key: value}, state)
    with pytest.raises(CheckpointError, match="kind"):
        PackedLinear.from_state(meta | {"kind": ["group"]}, state)
    with pytest.raises(CheckpointError, match="'codes' is missing"):
        PackedLinear.from_state(meta, {"scales": state["scales"]})
    with pytest.raises(CheckpointError, match="'scales' is"):
        PackedLinear.from_state(meta, state | {"scales": state["scales"].astype(np.float32)})
    with pytest.raises(CheckpointError, match="'codes' is"):
        PackedLinear.from_state(meta | {"out_features": 10**9}, state)
    with pytest.raises(CheckpointError, match="bias"):
        PackedLinear.from_state(meta, state | {"bias": np.zeros(3, np.float32)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    weight = weight_of(5, 40)
    weight[2, 7] = bad
    with pytest.raises(KernelError, match="1 NaN or infinite"):
        GroupLinear.quantize(weight, 4, 32)


def test_scales_beyond_float16_are_refused() -> None:
    with pytest.raises(KernelError, match="beyond float16"):
        GroupLinear.quantize(np.array([[1e6, -1e6]]), 4, 32)
    with pytest.raises(KernelError, match="beyond float16"):
        GroupLinear.quantize(np.array([[1e8, -1e8]]), 8, 32, symmetric=True)


def test_wrong_calls_are_refused_by_name() -> None:
    weight = weight_of(8, 32)
    with pytest.raises(KernelError, match="not rounded to int5-g32, which only files have: use 2, 3, 4 or 8 bits"):
        GroupLinear.quantize(weight, 5, 32)
    with pytest.raises(KernelError, match="int5-g64 does not exist"):
        GroupLinear.from_codes(np.zeros((8, 64), np.int8), np.ones((8, 1)), None, 5, 64)
    with pytest.raises(KernelError, match=r"must be in 0\.\.31"):
        GroupLinear.from_codes(np.full((8, 32), 32), np.ones((8, 1)), None, 5, 32)
    with pytest.raises(KernelError, match="codebook 'iq4' does not go with 8 bits; codes of 4 bits without minimums"):
        GroupLinear.from_codes(np.zeros((8, 32), np.int8), np.ones((8, 1)), None, 8, 32, codebook="iq4")
    with pytest.raises(KernelError, match="int4-g48"):
        GroupLinear.quantize(weight, 4, 48)
    with pytest.raises(KernelError, match=r"must be in 0\.\.15"):
        GroupLinear.from_codes(np.full((8, 32), 16), np.ones((8, 1)), None, 4, 32)
    with pytest.raises(KernelError, match=r"expected \(8, 1\)"):
        GroupLinear.from_codes(np.zeros((8, 32), np.int8), np.ones((8, 2)), None, 8, 32)
    with pytest.raises(KernelError, match="only bfloat16"):
        DenseLinear.from_weight(weight, np.float32, packed=True)
    with pytest.raises(KernelError, match="float32, float16 or bfloat16, not float64"):
        DenseLinear.from_weight(weight, np.float64)
    with pytest.raises(KernelError, match="only bfloat16"):
        DenseLinear.from_weight(weight, np.float16, packed=True)
    linear = GroupLinear.quantize(weight, 4, 32)
    with pytest.raises(KernelError, match=r"\(1, 31\), this linear layer takes \[rows, 32\]"):
        linear.multiply(np.zeros((1, 31), np.float32))
    with pytest.raises(KernelError, match=r"row 8 is outside 0\.\.7"):
        linear.rows(np.array([8]))
    with pytest.raises(KernelError, match="row -1 is outside"):
        linear.rows(np.array([-1]))
