"""Many slabs at once give the bytes that one at a time gives."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import ISAS, using

from thrifty.arrays import BFLOAT16, Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import kv, kv_batch
from thrifty.kernels import dispatch

COUNT, CAPACITY, TOKENS = 3, 256, 200


def slabs(format: str, head_dim: int, capacity: int = CAPACITY) -> Bytes:
    return np.zeros((COUNT, kv.slab_bytes(format, capacity, head_dim)), np.uint8)


def filled(format: str, head_dim: int) -> Bytes:
    made = slabs(format, head_dim)
    for seed, row in enumerate(made):
        kv.write(format, row, CAPACITY, head_dim, 0, *normal(2, CAPACITY, head_dim, seed=seed))
    return made


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


CODES = ["int8", "int4", "int2", "int4g16", "int2g16"]


@pytest.mark.parametrize("target", CODES)
@pytest.mark.parametrize(("source", "head_dim"), [("bf16", 64), ("f32", 48), ("bf16", 128)])
@pytest.mark.parametrize(("first", "tokens"), [(0, 256), (1, 64), (2, 127), (3, 10), (0, 161)])
def test_quantising_equals_writing_slab_by_slab(
    source: str, target: str, head_dim: int, first: int, tokens: int
) -> None:
    old, new = filled(source, head_dim), slabs(target, head_dim)
    kv_batch.quantise(old, source, CAPACITY, new, target, CAPACITY, head_dim, first, tokens)
    for before, after in zip(old, new, strict=True):
        one = np.zeros_like(after)
        numbers = kv.read(source, before, CAPACITY, head_dim, first * 64, tokens)
        kv.write(target, one, CAPACITY, head_dim, 0, *numbers)
        for found, expected in zip(
            kv.read(target, after, CAPACITY, head_dim, 0, tokens),
            kv.read(target, one, CAPACITY, head_dim, 0, tokens),
            strict=True,
        ):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize(("source", "target"), [("bf16", "bf16"), ("f32", "bf16"), ("bf16", "f32")])
@pytest.mark.parametrize(
    ("start", "tokens"), [(0, 256), (4, 64), (100, 1), (37, 190), (63, 2), (63, 1), (64, 128), (5, 59), (5, 60), (3, 0)]
)
def test_copying_tokens(source: str, target: str, start: int, tokens: int) -> None:
    old, new = filled(source, 64), slabs(target, 64)
    kv_batch.copy_tokens(old, source, CAPACITY, new, target, CAPACITY, 64, start, tokens)
    for before, after in zip(old, new, strict=True):
        numbers = kv.read(source, before, CAPACITY, 64, start, tokens)
        for found, expected in zip(kv.read(target, after, CAPACITY, 64, 0, tokens), numbers, strict=True):
            assert np.array_equal(found, expected.astype(BFLOAT16).astype(np.float32) if target == "bf16" else expected)


@pytest.mark.parametrize("format", kv.FORMATS)
def test_copying_pages(format: str) -> None:
    old, new = filled(format, 64), slabs(format, 64, 192)
    kv_batch.copy_pages(old, new, format, CAPACITY, 192, 64, 1)
    page = slabs(format, 64, 64)
    kv_batch.copy_pages(old, page, format, CAPACITY, 64, 64, 0)
    kv_batch.place_page(page, new, format, 192, 64, 1)
    for before, after in zip(old, new, strict=True):
        for number, page_before in ((0, 1), (1, 0), (2, 3)):
            found = kv.read(format, after, 192, 64, number * 64, 64)
            expected = kv.read(format, before, CAPACITY, 64, page_before * 64, 64)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_no_format_holds_is_refused() -> None:
    old, new = filled("f32", 64), slabs("int4", 64)
    keys, _ = kv_batch.plain(old, "f32", CAPACITY, 64)
    keys[1, 2, 3, 4] = np.nan
    with pytest.raises(KernelError, match="keys has 1 NaN or infinite"):
        kv_batch.quantise(old, "f32", CAPACITY, new, "int4", CAPACITY, 64, 0, 256)
    with pytest.raises(KernelError, match="only f32 and bf16"):
        kv_batch.plain(new, "int4", CAPACITY, 64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", CODES)
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["bf16", "f32"]), st.sampled_from([64, 128]), st.integers(1, 256), st.integers(0, 3),
    st.sampled_from(["normal", "constant", "tiny", "large"]),
)  # fmt: skip
def test_native_codes_are_the_references_to_the_bit(
    isa: str, target: str, source: str, head_dim: int, tokens: int, first: int, kind: str
) -> None:
    tokens = min(tokens, CAPACITY - first * 64)
    scale = {"normal": 1.0, "constant": 0.0, "tiny": 1e-6, "large": 3e3}[kind]
    old = aligned_rows(kv.slab_bytes(source, CAPACITY, head_dim))
    for seed, row in enumerate(old):
        numbers = normal(2, CAPACITY, head_dim, seed=seed) * scale + 0.3
        kv.write(source, row, CAPACITY, head_dim, 0, *numbers)
    native, reference = (aligned_rows(kv.slab_bytes(target, CAPACITY, head_dim)) for _ in range(2))
    shapes = (CAPACITY, head_dim, first, tokens)
    with using(isa):
        kv_batch.quantise(old, source, CAPACITY, native, target, *shapes)
    with patch.object(dispatch, "native", return_value=None):
        kv_batch.quantise(old, source, CAPACITY, reference, target, *shapes)
    for ours, theirs in zip(native, reference, strict=True):
        read = [kv.read(target, one, CAPACITY, head_dim, 0, tokens) for one in (ours, theirs)]
        assert all(np.array_equal(a, b) for a, b in zip(*read, strict=True))


def aligned_rows(size: int) -> Bytes:
    whole = np.zeros(COUNT * size + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + COUNT * size].reshape(COUNT, size)


def test_native_codes_refuse_what_float16_does_not_hold() -> None:
    old, new = aligned_rows(kv.slab_bytes("f32", 64, 64)), aligned_rows(kv.slab_bytes("int4", 64, 64))
    for value, message in ((float("nan"), "values has 1 NaN"), (1e6, "beyond float16")):
        kv.write("f32", old[1], 64, 64, 0, *normal(2, 64, 64))
        kv_batch.plain(old, "f32", 64, 64)[1][1, 5, 7] = value
        with pytest.raises(KernelError, match=message):
            kv_batch.quantise(old, "f32", 64, new, "int4", 64, 64, 0, 64)
