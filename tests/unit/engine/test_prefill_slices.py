"""A prefill that is cut by layers while others decode: the same bits, whatever happens between two slices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.prefill.pace import Pace
from thrifty.engine.request import Event, Handle, Request
from thrifty.errors import PromptError
from thrifty.models.model import Model

ONE_PIECE = 1e-6  # milliseconds that no piece fits: each slice is one layer of 128 rows
CACHES: dict[str, list[dict[str, Any]]] = {"full": [], "snapkv": [{"technique": "snapkv", "keep": 0.5}]}


def arriving(cache: str = "full") -> Request:
    sampling = SamplingParameters(max_tokens=5, ignore_eos=True)
    return Request(prompt=text_tokens(300, 3), sampling=sampling, cache=CACHES[cache], logits=True)


def chatting() -> Request:
    return Request(prompt=text_tokens(40), sampling=SamplingParameters(max_tokens=40, ignore_eos=True), logits=True)


def same(found: list[Event], expected: list[Event]) -> None:
    assert [event.token for event in found] == [event.token for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logits is not None
        assert np.array_equal(one.logits, other.logits)


def begun(engine: Any, cache: str = "full", steps: int = 3) -> tuple[Handle, Handle]:
    """A chat that decodes and a prompt that arrived, `steps` slices of which are computed."""
    chat = engine.submit(chatting())
    while not chat.samples[0].token_ids:
        engine.step()
    handle = engine.submit(arriving(cache))
    for _ in range(steps):
        engine.step()
    return chat, handle


@pytest.mark.parametrize("cache", CACHES)
def test_slices_change_no_bit_of_anyone(model: Model, make_engine: Any, cache: str) -> None:
    whole = make_engine(model, prefix_tree=False)
    alone = [list(whole.submit(request)) for request in (chatting(), arriving(cache))]
    engine = make_engine(model, prefix_tree=False, prefill_slice_ms=ONE_PIECE)
    chat, handle = begun(engine, cache, steps=0)
    before = len(chat.samples[0].token_ids)
    while not handle.samples[0].token_ids:
        engine.step()
    between = len(chat.samples[0].token_ids) - before
    assert between >= 3 * engine.runner.layers, "three pieces of 128 rows through each layer"
    same(list(chat), alone[0])
    same(list(handle), alone[1])


def test_what_is_left_of_a_cut_chunk_runs_at_once_where_nobody_decodes(model: Model, make_engine: Any) -> None:
    expected = list(make_engine(model).submit(arriving()))
    engine = make_engine(model, prefill_slice_ms=ONE_PIECE, chunk=512)
    chat, handle = begun(engine, steps=2)
    assert engine.cache_of(handle).length == 0
    chat.cancel()
    engine.step()
    assert engine.cache_of(handle).length == 128, "the rest of the first chunk"
    engine.step()
    assert engine.cache_of(handle).length >= 256, "the next one whole"
    same(list(handle), expected)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("cache", CACHES)
def test_cancelling_between_slices_frees_everything(model: Model, make_engine: Any, cache: str, steps: int) -> None:
    alone = list(make_engine(model).submit(chatting()))
    engine = make_engine(model, prefix_tree=False, prefill_slice_ms=ONE_PIECE)
    chat, handle = begun(engine, cache, steps)
    handle.cancel()
    same(list(chat), alone)
    ledger = engine.memory.ledger
    assert [ledger.bytes_of(name) for name in ("cache", "scratch", "index")] == [0, 0, 0]
    assert ledger.committed == ledger.current
    assert not engine.busy


def fail_from(engine: Engine, healthy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of the engine's runner fail from the `healthy`th on."""
    run, calls = engine.runner.run_layers, itertools.count()

    def run_layers(first: int, last: int, hidden: Any, rows: Any) -> Any:
        if next(calls) >= healthy:
            raise RuntimeError("a slice failed")
        return run(first, last, hidden, rows)

    monkeypatch.setattr(engine.runner, "run_layers", run_layers)


@pytest.mark.parametrize("cache", CACHES)
def test_an_error_in_a_slice_ends_its_request_only(
    model: Model, make_engine: Any, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = list(make_engine(model).submit(chatting()))
    engine = make_engine(model, prefix_tree=False, prefill_slice_ms=ONE_PIECE)
    fail_from(engine, 5, monkeypatch)
    chat, handle = begun(engine, cache)
    same(list(chat), alone)
    with pytest.raises(RuntimeError, match="a slice failed"):
        handle.result()
    assert engine.memory.ledger.bytes_of("cache") == 0


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cache", CACHES)
def test_a_pause_between_slices_loses_no_row(model: Model, make_engine: Any, cache: str, steps: int) -> None:
    expected = list(make_engine(model, prefix_tree=False).submit(arriving(cache)))
    engine = make_engine(model, prefix_tree=False, prefill_slice_ms=ONE_PIECE)
    chat, handle = begun(engine, cache, steps)
    assert engine._scheduler.park_youngest() is not None
    engine.memory.cache.pressure(1 << 30)
    assert all(segment.tier == "disk" for segment in engine.cache_of(handle).segments())
    same(list(handle), expected)
    assert handle.usage.preemptions == 1
    chat.cancel()


def test_zero_milliseconds_run_whole_chunks(model: Model, make_engine: Any) -> None:
    engine = make_engine(model, chunk=512, prefill_slice_ms=0)
    chat, handle = begun(engine, steps=2)  # windowed layers end a chunk at a page that they can share
    assert handle.samples[0].token_ids
    chat.cancel()
    with pytest.raises(PromptError, match="prefill_slice_ms = -1 is out of range; use 0"):
        make_engine(model, prefill_slice_ms=-1)


def test_a_pace_begins_small_and_fills_the_slice() -> None:
    pace = Pace(20.0)
    assert (pace.share(256, 30), pace.rows(256)) == (1, 256)
    pace.measured(rows=256, layers=1, seconds=0.005)
    assert pace.share(256, 30) == 4, "in 8 slices, evenly"
    assert pace.share(256, 4) == 4
    assert pace.share(256, 5) == 3, "3 + 2, not 4 + 1"
    assert pace.rows(512) == 512
    pace.measured(rows=256, layers=1, seconds=0.045)
    assert pace.share(256, 30) == 1, "a piece does not fit: one at a time"
    assert pace.rows(512) == 128, "and of fewer rows"
    assert (pace.cuts, Pace(0).cuts) == (True, False)
