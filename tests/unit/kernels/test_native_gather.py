"""Native gathering of chosen slots against indexing, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import aligned, normal

from thrifty.arrays import Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.kernels import dispatch

MODULE = dispatch.native()
pytestmark = pytest.mark.skipif(MODULE is None, reason="the native kernels are not built")


def filled(format: str, capacity: int, dim: int, seed: int) -> tuple[Bytes, Floats, Floats]:
    """A slab, and its keys and values."""
    slab = aligned(kv.slab_bytes(format, capacity, dim))
    keys, values = normal(2, capacity, dim, seed=seed)
    kv.write(format, slab, capacity, dim, 0, keys, values)
    return slab, *kv.read(format, slab, capacity, dim)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_it_equals_indexing(data: Any) -> None:
    format, dim = data.draw(st.sampled_from(["bf16", "f32"])), data.draw(st.sampled_from([2, 6, 64, 80]))
    heads, expected = [], []
    for number in range(data.draw(st.integers(1, 3))):
        parts, keys, values = [], [], []
        for part in range(data.draw(st.integers(1, 4))):
            capacity = 64 * data.draw(st.integers(1, 3))
            slab, all_keys, all_values = filled(format, capacity, dim, seed=10 * number + part)
            slots = np.array(sorted(data.draw(st.sets(st.integers(0, capacity - 1)))), np.int64)
            parts.append((slab, capacity, slots))
            keys.append(all_keys[slots])
            values.append(all_values[slots])
        count = sum(len(slots) for _, _, slots in parts)
        room = 64 * max(1, -(-count // 64))
        heads.append((aligned(kv.slab_bytes(format, room, dim)), room, parts))
        expected.append((np.concatenate(keys), np.concatenate(values)))
    assert dispatch.gather(heads, kv.FORMATS.index(format), dim)
    for (target, room, _), (keys_, values_) in zip(heads, expected, strict=True):
        found_keys, found_values = kv.read(format, target, room, dim, 0, len(keys_))
        assert np.array_equal(found_keys, keys_) and np.array_equal(found_values, values_)


@pytest.mark.parametrize(
    ("slots", "room", "format", "message"),
    [
        ([64], 64, "bf16", "a slot is outside its slab"),
        ([-1], 64, "bf16", "a slot is outside its slab"),
        ([0] * 65, 64, "bf16", "the slots do not fit the slab"),
        ([0], 64, "int4", "gather takes slabs of f32 or bf16"),
        ([0], 60, "bf16", "of whole pages"),
    ],
)
def test_what_would_read_or_write_elsewhere_is_refused(slots: list[int], room: int, format: str, message: str) -> None:
    source, _, _ = filled("bf16", 64, 64, seed=0)
    target = aligned(kv.slab_bytes("bf16", 64, 64))
    with pytest.raises(KernelError, match=message):
        dispatch.gather([(target, room, [(source, 64, np.array(slots))])], kv.FORMATS.index(format), 64)


def test_slabs_that_native_code_does_not_take_are_left_to_the_caller() -> None:
    source, _, _ = filled("bf16", 64, 64, seed=0)
    target = aligned(kv.slab_bytes("bf16", 64, 64) + 1)[1:]
    assert not dispatch.gather([(target, 64, [(source, 64, np.array([3]))])], kv.FORMATS.index("bf16"), 64)
    assert not target.any()
