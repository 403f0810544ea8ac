"""The native view: what append writes, where it stops, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tests.unit.kernels.native_pages import aligned, native, open_view

from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.kernels import dispatch


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("sizes", [[130], [1] * 70, [60, 8, 62]])
def test_append_writes_what_the_format_writes(format: str, sizes: list[int]) -> None:
    made = open_view(1, 2, 128, 192, format)
    keys, values = torch.randn(2, sum(sizes), 2, 128).unbind()
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
                assert torch.equal(mine, wanted)


def test_truncate_then_append_again() -> None:
    made = open_view(2, 1, 64, 128)
    for layer in (0, 1):
        dispatch.append(made.view, layer, torch.randn(100, 1, 64), torch.randn(100, 1, 64))
    made.view.truncate(0, 50)
    assert (made.view.tokens(0), made.view.tokens(1), made.view.room(0), made.view.room(1)) == (50, 100, 78, 28)
    keys = torch.randn(78, 1, 64)
    dispatch.append(made.view, 0, keys, keys)
    assert made.view.room(0) == 0
    found, _ = kv.read("bf16", made.memory[0], 64, 64, 50, 14)
    assert torch.equal(found, keys[:14, 0].bfloat16().float())


def test_sealed_and_quantised_spans_are_not_appended_to() -> None:
    view = native().View(1, 1, 64)
    first, second = aligned(kv.slab_bytes("bf16", 64, 64)), aligned(kv.slab_bytes("bf16", 64, 64))
    view.push(0, 0, first.data_ptr(), 10, 64, kv.FORMATS.index("bf16"), sealed=True)
    assert view.room(0) == 0
    view.push(0, 0, second.data_ptr(), 0, 64, kv.FORMATS.index("bf16"))
    dispatch.append(view, 0, torch.ones(3, 1, 64), torch.ones(3, 1, 64))
    assert (view.tokens(0), int(first.sum()), view.room(0)) == (13, 0, 61)


def test_no_room_is_refused_before_anything_is_written() -> None:
    made = open_view(1, 1, 64, 64)
    with pytest.raises(KernelError, match="has room for 64 more tokens, not 65; push open pages first"):
        dispatch.append(made.view, 0, torch.randn(65, 1, 64), torch.randn(65, 1, 64))
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
        ({"address": 8}, "64-byte aligned and not null"),
        ({"address": 0}, "64-byte aligned and not null"),
    ],
)
def test_bad_spans_are_refused(change: dict[str, int], message: str) -> None:
    view = native().View(1, 2, 64)
    call = {"layer": 0, "head": 0, "address": 6400, "tokens": 0, "capacity": 64, "format": 1} | change
    with pytest.raises(ValueError, match=message):
        view.push(**call)


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
