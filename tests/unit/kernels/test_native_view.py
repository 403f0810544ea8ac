"""The native view: what append writes, where it stops, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.kernels.native_pages import aligned, native, normal, open_view, pages

from thrifty.arrays import BFLOAT16
from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.kernels import dispatch


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("sizes", [[130], [1] * 70, [60, 8, 62]])
def test_append_writes_what_the_format_writes(format: str, sizes: list[int]) -> None:
    made = open_view(1, 2, 128, 192, format)
    keys, values = normal(2, sum(sizes), 2, 128)
    start = 0
    for size in sizes:
        dispatch.append(made.view, 0, keys[start : start + size], values[start : start + size])
        start += size
    assert [made.view.tokens(0, head) for head in (0, 1)] == [start, start]
    for head in (0, 1):
        for page in range(3):
            stored = slice(page * 64, min((page + 1) * 64, start))
            count = max(0, stored.stop - stored.start)
            found = kv.read(format, made.memory[2 * page + head], 64, 128, 0, count)
            slab = aligned(kv.slab_bytes(format, 64, 128))
            kv.write(format, slab, 64, 128, 0, keys[stored, head][:count], values[stored, head][:count])
            for mine, wanted in zip(found, kv.read(format, slab, 64, 128, 0, count), strict=True):
                assert np.array_equal(mine, wanted)


def test_truncate_then_append_again() -> None:
    made = open_view(2, 1, 64, 128)
    for layer in (0, 1):
        dispatch.append(made.view, layer, normal(100, 1, 64), normal(100, 1, 64))
    made.view.truncate(0, 50)
    assert (made.view.tokens(0), made.view.tokens(1), made.view.room(0), made.view.room(1)) == (50, 100, 78, 28)
    keys = normal(78, 1, 64)
    dispatch.append(made.view, 0, keys, keys)
    assert made.view.room(0) == 0
    found, _ = kv.read("bf16", made.memory[0], 64, 64, 50, 14)
    assert np.array_equal(found, keys[:14, 0].astype(BFLOAT16).astype(np.float32))


def test_sealed_and_quantised_spans_are_not_appended_to() -> None:
    view = native().View(1, 1, 64)
    first, second = aligned(kv.slab_bytes("bf16", 64, 64)), aligned(kv.slab_bytes("bf16", 64, 64))
    view.push(0, 0, first, 10, 64, kv.FORMATS.index("bf16"), sealed=True)
    assert view.room(0) == 0
    view.push(0, 0, second, 0, 64, kv.FORMATS.index("bf16"))
    dispatch.append(view, 0, np.ones((3, 1, 64), np.float32), np.ones((3, 1, 64), np.float32))
    assert (view.tokens(0), int(first.sum()), view.room(0)) == (13, 0, 61)


def test_no_room_is_refused_before_anything_is_written() -> None:
    made = open_view(1, 1, 64, 64)
    with pytest.raises(KernelError, match="has room for 64 more tokens, not 65; push open pages first"):
        dispatch.append(made.view, 0, normal(65, 1, 64), normal(65, 1, 64))
    assert made.view.tokens(0) == 0
    assert int((made.memory[0] != 0xFF).sum()) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer": 1}, "layer 1 is outside 0..0"),
        ({"head": 2}, "KV head 2 is outside 0..1"),
        ({"tokens": 65}, "capacity 64 cannot hold 65 tokens"),
        ({"capacity": 60}, "capacity must be a positive multiple of 64, not 60"),
        ({"format": 7}, "KV format id 7 is unknown; f32=0, bf16=1, int8=2, int4=3, int2=4, int4g16=5, int2g16=6"),
        ({"slab": aligned(16448)[8:]}, "64-byte aligned and not null"),
        ({"slab": aligned(16383)}, "slab has 16383 bytes; a slab of 64 slots and 64 channels needs 16384"),
        ({"slab": normal(16384)}, r"slab is float32 \(16384,\), expected uint8 \(any,\)"),
        ({"slab": aligned(32768)[::2]}, r"slab is uint8 \(16384,\), not contiguous, expected uint8 \(any,\)"),
        ({"slab": 6400}, r"slab is of type int, expected uint8 \(any,\)"),
        ({"tokens": 3, "bias": normal(2)}, "bias has 2 numbers for 3 tokens"),
        ({"bias": normal(64).astype(np.float64)}, r"bias is float64 \(64,\), expected float32 \(any,\)"),
        ({"bias": aligned(272)[1:257].view(np.float32)}, "bias is float32 .*, not aligned, expected"),
    ],
)
def test_bad_spans_are_refused(change: dict[str, Any], message: str) -> None:
    view = native().View(1, 2, 64)
    call = {"layer": 0, "head": 0, "slab": aligned(16384), "tokens": 0, "capacity": 64, "format": 1} | change
    with pytest.raises(ValueError, match=message):
        view.push(**call)
    assert view.tokens(0) == 0


def test_a_span_of_read_only_memory_is_attended_to() -> None:
    """A mapped file is read-only; nothing is appended to a sealed span."""
    made, query = pages(1, 64, [("bf16", 40, 64)], bias=True), normal(2, 2, 64)
    slab, bias = (part.copy() for part in made.memory)
    mapped = aligned(len(slab))
    mapped[:] = slab
    mapped.flags.writeable = bias.flags.writeable = query.flags.writeable = False
    view = native().View(1, 1, 64)
    view.push(0, 0, mapped, 40, 64, kv.FORMATS.index("bf16"), bias, sealed=True)
    wanted = dispatch.attend(made.view, 0, query, scale=0.1)
    assert np.array_equal(dispatch.attend(view, 0, query, scale=0.1), wanted)


@pytest.mark.parametrize("bias", [False, True])
def test_pushing_heads_at_once_equals_one_by_one(bias: bool) -> None:
    made, query = pages(3, 64, [("int4", 100, 128), ("bf16", 64, 64)], bias=bias), normal(4, 6, 64)
    wanted = dispatch.attend(made.view, 0, query, scale=0.1)
    made.view.clear(0)
    kept: list[Any] = []  # a view holds addresses only
    for place, (form, tokens, capacity) in enumerate([("int4", 100, 128), ("bf16", 64, 64)]):
        per_head = made.memory if not bias else made.memory[::2]
        slabs = aligned(4 * 3 * len(per_head[place])).reshape(3, -1)[:, : len(per_head[place])]  # rows lie apart
        slabs[:] = per_head[place::2]
        numbers = np.stack(made.memory[1::2][place::2]) if bias else None
        kept += [slabs, numbers]
        made.view.push_heads(0, [0, 1, 2], slabs, tokens, capacity, kv.FORMATS.index(form), numbers, sealed=True)
    assert np.array_equal(dispatch.attend(made.view, 0, query, scale=0.1), wanted)


def test_bad_heads_are_refused_before_any_is_pushed() -> None:
    view, slabs = native().View(1, 2, 64), aligned(2 * 16384).reshape(2, -1)
    for heads, message in [([0], r"slabs is uint8 \(2, 16384\), expected uint8 \(1, any\)"), ([0, 2], "KV head 2 is")]:
        with pytest.raises(ValueError, match=message):
            view.push_heads(0, heads, slabs, 1, 64, 1)
    with pytest.raises(ValueError, match="bias has 2 numbers a head for 3 tokens"):
        view.push_heads(0, [0, 1], slabs, 3, 64, 1, normal(2, 2))
    assert view.tokens(0) == 0


def test_exchanging_checks_the_new_memory() -> None:
    view = native().View(1, 1, 64)
    view.push(0, 0, aligned(16384), 64, 64, 1)
    with pytest.raises(ValueError, match="slab has 64 bytes; a slab of 64 slots and 64 channels needs 5120"):
        view.exchange(0, 0, 0, aligned(64), 64, 3)
    with pytest.raises(ValueError, match="bias has 63 numbers for 64 tokens"):
        view.exchange(0, 0, 0, aligned(5120), 64, 3, normal(63))
    with pytest.raises(ValueError, match="span 1 of 1 does not exist"):
        view.exchange(0, 0, 1, aligned(5120), 64, 3)


def test_bad_views_and_cuts_are_refused() -> None:
    with pytest.raises(ValueError, match="an even number from 16 to 256, or a multiple of 64 up to 1024, not 81"):
        native().View(1, 1, 81)
    made = open_view(1, 1, 64, 64)
    with pytest.raises(ValueError, match="cannot drop 1 tokens: layer 0 head 0 holds 0"):
        made.view.truncate(0, 1)
    with pytest.raises(ValueError, match="cannot drop 2 spans of 1"):
        made.view.drop_front(0, 0, 2)
    made.view.clear(0)
    assert made.view.room(0) == 0
