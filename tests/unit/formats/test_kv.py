"""Key-value segments: where bytes lie, what rounding costs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.arrays import BFLOAT16, Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import kv

QUANTISED = {name: kv.codes(name) for name in ("int8", "int4", "int2", "int4g16", "int2g16")}


def random_kv(tokens: int, head_dim: int, seed: int = 0) -> tuple[Floats, Floats]:
    keys, values = np.random.default_rng(seed).standard_normal((2, tokens, head_dim), np.float32)
    return keys, values


def stored(format: str, keys: Floats, values: Floats, capacity: int, start: int = 0) -> Bytes:
    slab = np.zeros(kv.slab_bytes(format, capacity, keys.shape[1]), np.uint8)
    kv.write(format, slab, capacity, keys.shape[1], start, keys, values)
    return slab


@pytest.mark.parametrize(
    ("format", "head_dim", "expected"),
    [
        ("f32", 64, 2 * 128 * 64 * 4),
        ("bf16", 64, 2 * 128 * 64 * 2),
        ("int8", 64, 2 * 128 * 64 + 4 * 4 * 64 + 128 * 8),
        ("int4", 64, 2 * 128 * 32 + 4 * 4 * 64 + 128 * 8),
        ("int2", 64, 2 * 128 * 16 + 4 * 4 * 64 + 128 * 8),
        ("int2", 80, 2 * 128 * 32 + 4 * 4 * 128 + 128 * 16),  # padded to 128
        ("int4g16", 64, 2 * 128 * 32 + 8 * 4 * 64 + 128 * 16),
        ("int2g16", 64, 2 * 128 * 64 * 4 // 8),  # 2 + 32/16 bits a number
        ("int2g16", 80, 2 * 128 * 128 * 4 // 8),  # padded to 128
        ("bf16", 6, 2 * 128 * 6 * 2),
    ],
)
def test_slab_bytes(format: str, head_dim: int, expected: int) -> None:
    assert kv.slab_bytes(format, 128, head_dim) == expected
    at = kv.offsets(format, 128, head_dim)
    assert at.key_codes == 0
    for offset in (at.key_parameters, at.value_codes, at.value_parameters, at.total):
        assert offset % 64 == 0


@given(
    st.sampled_from(["f32", "bf16"]),
    st.sampled_from([2, 6, 64, 80]),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_full_formats_append_anywhere(format: str, head_dim: int, chunks: list[int]) -> None:
    capacity = -(-sum(chunks) // 64) * 64
    keys, values = random_kv(sum(chunks), head_dim)
    slab = np.zeros(kv.slab_bytes(format, capacity, head_dim), np.uint8)
    start = 0
    for chunk in chunks:
        stop = start + chunk
        kv.write(format, slab, capacity, head_dim, start, keys[start:stop], values[start:stop])
        start = stop
    if format == "bf16":
        keys, values = (numbers.astype(BFLOAT16).astype(np.float32) for numbers in (keys, values))
    found = kv.read(format, slab, capacity, head_dim, 0, start)
    assert np.array_equal(found[0], keys)
    assert np.array_equal(found[1], values)
    middle = kv.read(format, slab, capacity, head_dim, start // 3, start // 2)
    assert np.array_equal(middle[0], keys[start // 3 :][: start // 2])
    assert np.array_equal(middle[1], values[start // 3 :][: start // 2])


def test_full_keys_are_channel_major_and_values_are_not() -> None:
    keys, values = random_kv(70, 64)
    slab = stored("f32", keys, values, 128).view(np.float32)
    assert slab[1 * 64 * 64 + 7 * 64 + 5] == keys[64 + 5, 7]
    assert slab[128 * 64 + 69 * 64 + 7] == values[69, 7]


@pytest.mark.parametrize("format", QUANTISED)
def test_quantised_bytes_lie_where_the_layout_says(format: str) -> None:
    bits, width, head_dim, capacity = QUANTISED[format].bits, QUANTISED[format].group, 128, 128
    keys, values = random_kv(128, head_dim)
    slab = stored(format, keys, values, capacity)
    at, size, levels = kv.offsets(format, capacity, head_dim), 64 * head_dim * bits // 8, (1 << bits) - 1
    halves = slab.view(np.float16).astype(np.float32)

    def code(base: int, row: int, lane: int, lanes: int) -> int:
        """`packing.pack_lanes`, bit by bit."""
        group = 32 // bits
        word = base + (row // group * lanes // 16 + lane // 16) * 64 + lane % 16 * 4 + row % 2 * 2
        both = int(slab[word]) | int(slab[word + 1]) << 8
        return both >> (bits * (row % group // 2)) & levels

    in_page, across = 64 // width, head_dim // width
    for token, channel in [(0, 0), (15, 16), (31, 5), (32, 127), (63, 64), (64, 1), (127, 126)]:
        page, inside = divmod(token, 64)
        side, group = inside // width, channel // width
        first = at.key_parameters // 2 + (page * 2 * in_page + side) * head_dim + channel
        scale, minimum = halves[first], halves[first + in_page * head_dim]
        found = scale * code(at.key_codes + page * size, channel, inside, 64) + minimum
        assert abs(found - keys[token, channel]) <= scale * 0.51 + 2e-3
        first = at.value_parameters // 2 + (page * 2 * across + group) * 64 + inside
        scale, minimum = halves[first], halves[first + across * 64]
        found = scale * code(at.value_codes + page * size, inside, channel, head_dim) + minimum
        assert abs(found - values[token, channel]) <= scale * 0.51 + 2e-3
    read_keys, read_values = kv.read(format, slab, capacity, head_dim)
    assert abs(read_keys[32, 127] - keys[32, 127]) <= np.abs(read_keys - keys).max()
    assert read_values.shape == (128, 128)


def bound(groups: Floats, bits: int) -> Floats:
    """Half a step, and what float16 parameters add (below 2**-14 their own step is 2**-24)."""
    span, levels = groups.max(-1) - groups.min(-1), (1 << bits) - 1
    return span / levels * 0.5 + np.abs(groups).max(-1) * 2**-9 + levels * 2**-25


@given(
    st.sampled_from(sorted(QUANTISED)),
    st.sampled_from([2, 34, 64, 80, 128]),
    st.integers(1, 130),
    st.floats(1e-3, 1e3),
)
@settings(max_examples=60, deadline=None)
def test_quantised_error_is_half_a_step_of_the_real_tokens(
    format: str, head_dim: int, tokens: int, size: float
) -> None:
    keys, values = random_kv(tokens, head_dim)
    keys, values = keys * size, values * size + 3 * size  # off zero: padding would widen every group
    capacity = -(-tokens // 64) * 64
    slab = stored(format, keys, values, capacity)
    found_keys, found_values = kv.read(format, slab, capacity, head_dim, 0, tokens)
    bits, group = QUANTISED[format].bits, QUANTISED[format].group
    for start in range(0, tokens, group):
        part = slice(start, start + group)
        error = np.abs(found_keys[part] - keys[part]).max(0)
        assert bool((error <= bound(keys[part].T, bits)).all())
    for start in range(0, head_dim, group):
        channels = slice(start, start + group)
        error = np.abs(found_values[:, channels] - values[:, channels]).max(1)
        assert bool((error <= bound(values[:, channels], bits)).all())


@pytest.mark.parametrize("format", QUANTISED)
def test_group_by_group_equals_at_once(format: str) -> None:
    keys, values = random_kv(101, 64)
    once = stored(format, keys, values, 128)
    parts = np.zeros_like(once)
    size = QUANTISED[format].group
    for start in range(0, 101, size):
        kv.write(format, parts, 128, 64, start, keys[start : start + size], values[start : start + size])
    for found, expected in zip(
        kv.read(format, parts, 128, 64, 0, 101), kv.read(format, once, 128, 64, 0, 101), strict=True
    ):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("constant", [0.0, 2.0, -0.8125, 0.1, -31.7])
def test_a_constant_group_is_kept(format: str, constant: float) -> None:
    keys = np.full((45, 64), constant, np.float32)
    found_keys, found_values = kv.read(format, stored(format, keys, keys, 64), 64, 64, 0, 45)
    exact = float(np.float16(constant)) == constant
    for found in (found_keys, found_values):
        if exact:
            assert np.array_equal(found, keys)
        else:
            assert np.allclose(found, keys, rtol=2**-21, atol=3e-8)


def test_reading_gives_copies() -> None:
    keys, values = random_kv(64, 64)
    for format in kv.FORMATS:
        slab = stored(format, keys, values, 64)
        before = slab.copy()
        for numbers in kv.read(format, slab, 64, 64):
            numbers.fill(0)
        assert np.array_equal(slab, before)


@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(format: str, bad: float) -> None:
    keys, values = random_kv(32, 64)
    values[3, 3] = bad
    slab = np.zeros(kv.slab_bytes(format, 64, 64), np.uint8)
    with pytest.raises(KernelError, match="values has 1 NaN or infinite"):
        kv.write(format, slab, 64, 64, 0, keys, values)
    with pytest.raises(KernelError, match="keys has 1 NaN or infinite"):
        kv.write(format, slab, 64, 64, 0, values, keys)
    assert not bool(slab.any())


def test_refusals_say_what_is_wrong() -> None:
    keys, values = random_kv(32, 64)
    slab = np.zeros(kv.slab_bytes("int4", 64, 64), np.uint8)
    with pytest.raises(KernelError, match="Did you mean 'int"):
        kv.slab_bytes("int5", 64, 64)
    with pytest.raises(KernelError, match="capacity 100 must be a positive multiple of 64"):
        kv.slab_bytes("int4", 100, 64)
    with pytest.raises(KernelError, match="head_dim 7"):
        kv.slab_bytes("f32", 64, 7)
    with pytest.raises(KernelError, match="start 16 is inside one"):
        kv.write("int4", slab, 64, 64, 16, keys, values)
    with pytest.raises(KernelError, match="in groups of 16 tokens: start 8 is inside one"):
        kv.write("int4g16", np.zeros(kv.slab_bytes("int4g16", 64, 64), np.uint8), 64, 64, 8, keys, values)
    with pytest.raises(KernelError, match="'bf16' holds numbers, not codes; formats of codes: int8"):
        kv.codes("bf16")
    with pytest.raises(
        KernelError, match="no key-value format of 8 bits in groups of 16; there are 8 bits in groups of 32"
    ):
        kv.code_format(8, 16)
    with pytest.raises(KernelError, match=r"64\.\.96 do not fit a segment of 64"):
        kv.write("int4", slab, 64, 64, 64, keys, values)
    with pytest.raises(KernelError, match=r"\[tokens, 64\]"):
        kv.write("int4", slab, 64, 64, 0, keys, values[:, :32])
    with pytest.raises(KernelError, match="contiguous bytes"):
        kv.write("int8", slab, 64, 64, 0, keys, values)
    with pytest.raises(KernelError, match=r"60\.\.70 are not in a segment of 64"):
        kv.read("int4", slab, 64, 64, 60, 10)
    with pytest.raises(KernelError, match="beyond float16"):
        kv.write("int4", slab, 64, 64, 0, keys * 1e6, values)
