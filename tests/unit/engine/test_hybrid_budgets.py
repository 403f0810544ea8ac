"""Snapshots of recurrent states are a convenience: no request fails for them, and none holds more than its bound."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import hybrid_config, text_tokens, tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.kernels import dispatch
from thrifty.models.model import Model

PAGE_AND_STATES = 100_000
"""Bytes, more than a page and a snapshot of the model."""


@pytest.fixture(scope="module", params=["rrar", "rraw"])
def model(request: pytest.FixtureRequest) -> Model:
    """Packed, so that native code runs it."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    return tiny_model(packed=True, config=hybrid_config(request.param))


def ask(length: int, steps: int, seed: int = 0, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=steps, ignore_eos=True)
    return Request(prompt=text_tokens(length, seed), sampling=sampling, **options)


def least_budget(engine: Engine, length: int, steps: int) -> int:
    """What `RequestBounds.check` demands of an engine that runs nothing."""
    held = engine.memory.footprint((), length, length + steps).peak_bytes
    return engine.memory.ledger.current + held


@pytest.mark.parametrize("requests", [1, pytest.param(3, marks=pytest.mark.long)])
def test_what_was_accepted_is_answered(model: Model, requests: int, make_engine: Any) -> None:
    for length, steps in ((64, 200), (100, 150), (128, 70)):
        asked = [ask(length, steps, seed) for seed in range(requests)]
        free = make_engine(model)
        least = least_budget(free, length, steps)
        expected = [free.submit(request).result().token_ids for request in asked]
        for spare in range(0, PAGE_AND_STATES, 12_288):
            engine = make_engine(model, memory=least + spare)
            handles = [engine.submit(request) for request in asked]
            assert [handle.result().token_ids for handle in handles] == expected
            assert engine.memory.ledger.peak <= least + spare


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.long
def test_a_request_holds_no_more_than_its_bound(samples: int, make_engine: Any) -> None:
    model, kept = tiny_model(packed=True, config=hybrid_config("rrrrrrrrrra")), 0  # a snapshot is more than a page
    for length, steps in ((64, 200), (100, 150)):
        need = make_engine(model).memory.request_bytes((), length, length + steps, samples)
        for bound in range(need, need + 3 * PAGE_AND_STATES, 24_576):
            engine = make_engine(model)
            handle = engine.submit(ask(length, steps, cache_bytes=bound, samples=samples))
            while not handle.finished:
                engine.step()
                running = [sequence for sequence in engine.memory.cache.sequences if not sequence.freed]
                segments = {id(segment): segment for sequence in running for segment in sequence.segments()}
                own = [segment.nbytes for segment in segments.values() if segment.category == "cache"]
                shared = [segment.nbytes for segment in segments.values() if segment.category == "tree"]
                assert sum(own) + sum(shared) <= bound
                kept += any(sequence.states is not None and sequence.states.snapshot for sequence in running)
            assert handle.result().finish_reason == "length"
    assert (kept > 0) == (samples == 1), "where the bound has room there is a snapshot; samples share one bound"


@pytest.mark.parametrize("options", [{"share_prefix": False}, {}])
def test_no_snapshot_is_taken_where_nobody_publishes(options: dict[str, Any], make_engine: Any) -> None:
    model = tiny_model(config=hybrid_config("rra"))  # run by the reference, whose answers are not published
    engine = make_engine(model)
    handle = engine.submit(ask(64, 70, **options))
    before = engine.memory.ledger.bytes_of("tree")
    while not handle.finished:
        engine.step()
        for sequence in engine.memory.cache.sequences:
            assert sequence.states is None or sequence.states.snapshot is None
    assert (engine.memory.ledger.bytes_of("tree") > before) == (not options)


def test_a_text_to_embed_takes_no_snapshot(model: Model, make_engine: Any) -> None:
    engine = make_engine(model, chunk=128)
    for _ in engine.hidden_states(text_tokens(300)):
        (sequence,) = engine.memory.cache.sequences
        assert sequence.states is not None and sequence.states.snapshot is None
