"""Native reading of slabs as fp32 against NumPy, to the bit, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import ISAS, aligned, native, normal, using

from thrifty.arrays import Bytes, Floats
from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.kernels import dispatch


def filled(format: str, capacity: int, dim: int, seed: int) -> Bytes:
    slab = aligned(kv.slab_bytes(format, capacity, dim), fill=0xFF)
    keys, values = normal(2, capacity - 5, dim, seed=seed)
    kv.write(format, slab, capacity, dim, 0, keys, values)
    return slab


def by_numpy(format: str, slab: Bytes, capacity: int, dim: int, start: int, count: int) -> tuple[Floats, Floats]:
    where = kv._arrays(format, slab, capacity, dim)
    return kv._read(where, format, dim, start, start + count)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(
    format=st.sampled_from(kv.FORMATS), pages=st.integers(1, 3), dim=st.sampled_from([2, 16, 64, 80, 128]),
    data=st.data(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_it_equals_numpy(isa: str, format: str, pages: int, dim: int, data: Any, seed: int) -> None:
    capacity = 64 * pages
    start = data.draw(st.integers(0, capacity - 5))
    count = data.draw(st.integers(0, capacity - 5 - start))
    slab = filled(format, capacity, dim, seed)
    with using(isa):
        found = dispatch.read_slab(slab, kv.FORMATS.index(format), capacity, dim, start, count)
    assert found is not None
    for mine, wanted in zip(found, by_numpy(format, slab, capacity, dim, start, count), strict=True):
        assert mine.dtype == np.float32 and mine.shape == (count, dim)
        assert np.array_equal(mine, wanted)


def test_the_door_to_formats_reads_natively_and_without() -> None:
    native()
    slab = filled("int4", 128, 64, seed=1)
    slab.flags.writeable = False
    off = aligned(len(slab) + 1)[1:]  # not aligned: native code leaves it to NumPy
    off[:] = slab
    assert dispatch.read_slab(off, kv.FORMATS.index("int4"), 128, 64, 3, 80) is None
    for mine, other in zip(kv.read("int4", slab, 128, 64, 3, 80), kv.read("int4", off, 128, 64, 3, 80), strict=True):
        assert np.array_equal(mine, other)


def test_wrong_calls_are_refused() -> None:
    native()
    slab = aligned(kv.slab_bytes("bf16", 128, 64))
    for start, count in ((0, 129), (-1, 3), (128, 1)):
        with pytest.raises(KernelError, match=f"tokens {start}..{start + count} are not in a slab of 128"):
            dispatch.read_slab(slab, 1, 128, 64, start, count)
    with pytest.raises(KernelError, match="slab has 32768 bytes; a slab of 128 slots and 64 channels needs 65536"):
        dispatch.read_slab(slab, 0, 128, 64, 0, 1)
    with pytest.raises(KernelError, match="of whole pages and of an even head dimension"):
        dispatch.read_slab(slab, 1, 100, 64, 0, 1)
    with pytest.raises(KernelError, match="KV format id 7 is unknown"):
        dispatch.read_slab(slab, 7, 128, 64, 0, 1)
