"""Attention column sums on the native path: those of the reference, and independent of batch, chunks and drafts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens
from tests.unit.engine.test_drafts import Hints

from thrifty.cache.sequence import SequenceCache
from thrifty.cache.watching.sums import Accumulator
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request
from thrifty.errors import KernelError
from thrifty.kernels import dispatch
from thrifty.models.model import Model

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")

STEPS = 150
H2O: list[dict[str, Any]] = [{"technique": "h2o", "capacity": 60}]
FASTGEN: list[dict[str, Any]] = [{"technique": "fastgen", "recovery": 0.8}]


@pytest.fixture(params=["packed", "windowed"])
def model(request: pytest.FixtureRequest) -> Model:
    """The models that run natively."""
    found: Model = request.getfixturevalue(request.param)
    return found


def watched(length: int = 300, cache: list[dict[str, Any]] = H2O, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=STEPS, ignore_eos=True, temperature=0.8, seed=5)
    return Request(prompt=text_tokens(length, 1), sampling=sampling, cache=cache, logits=True, **options)


def run(engine: Engine, handle: Handle, tokens: int = STEPS - 1) -> tuple[list[int], Any]:
    """The answer's tokens, and what its cache holds just before the last one."""
    while len(handle.samples[0].token_ids) < tokens:
        engine.step()
    cache = engine.cache_of(handle)
    assert cache is not None
    layers = cache.policy_layers
    positions = [cache.view(layer).positions(head) for layer in layers for head in range(cache.model.kv_heads)]
    sums = [one for layer in layers for one in cache.stats(layer).column_sums or ()]
    return list(handle.samples[0].token_ids), (positions, [one.copy() for one in sums], cache.native is not None)


def equal(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    for one, other in zip(found[1][:2], expected[1][:2], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert found[1][2] == expected[1][2] is True, "on the native path"


@pytest.mark.long
def test_native_sums_are_those_of_the_reference(model: Model, make_engine: Any) -> None:
    forced = tuple(text_tokens(STEPS, 9))
    (_, ours), (_, theirs) = [
        run(engine, engine.submit(watched(forced=forced)))
        for engine in (make_engine(model), make_engine(model, native=False))
    ]
    assert (ours[2], theirs[2]) == (True, True)
    kept = [len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(ours[0], theirs[0], strict=True)]
    assert min(kept) > 0.9, "ties and roundings aside, the same slots"
    for position, other, sums, wanted in zip(ours[0], theirs[0], ours[1], theirs[1], strict=True):
        if np.array_equal(position, other):
            assert float(np.abs(sums - wanted).sum() / wanted.sum()) < 0.06
            assert np.allclose(sums.sum(axis=1), wanted.sum(axis=1), rtol=0.02)


@pytest.mark.parametrize("cache", [H2O, FASTGEN], ids=["h2o", "fastgen"])
def test_alone_is_the_same_as_in_a_batch_and_in_other_chunks(
    model: Model, make_engine: Any, cache: list[dict[str, Any]]
) -> None:
    engine = make_engine(model, chunk=512)
    alone = run(engine, engine.submit(watched(cache=cache)))
    engine = make_engine(model, chunk=128, prefill_slice_ms=1e-6)
    others = [engine.submit(Request(prompt=text_tokens(n), cache=other)) for n, other in ((50, H2O), (70, None))]
    engine.step()
    equal(run(engine, engine.submit(watched(cache=cache))), alone)
    for other in others:
        other.cancel()


def test_a_fork_and_its_parent_sum_apart(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    alone = run(engine, engine.submit(watched()))
    engine = make_engine(model)
    parent = engine.submit(watched())
    run(engine, parent, tokens=40)
    child = parent.fork(SamplingParameters(temperature=1.0, seed=1, max_tokens=50, ignore_eos=True))
    equal(run(engine, parent), alone)
    child.cancel()


def test_rejected_rows_add_nothing(model: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first eviction: a draft may commit past the token at which plain decoding evicts."""
    answer = tuple(make_engine(model).submit(watched()).result().token_ids)
    engine = make_engine(model)
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: Hints(300, answer))
    drafted = run(engine, engine.submit(watched()), tokens=50)
    engine = make_engine(model)
    equal(drafted, run(engine, engine.submit(watched()), tokens=len(drafted[0])))


def test_a_step_that_failed_adds_nothing(model: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(model)
    alone = run(engine, engine.submit(watched()))
    engine = make_engine(model)
    engine._stepper.ahead = None  # all rows go through Runner.decode
    handle, decode, failures = engine.submit(watched()), engine.runner.decode, [7, 30, 31]

    def flaky(batch: Any) -> Any:
        scores = decode(batch)
        if len(batch) > 1 and failures and len(handle.samples[0].token_ids) == failures[0]:
            failures.pop(0)
            raise RuntimeError("after the rows ran")
        return scores

    monkeypatch.setattr(engine.runner, "decode", flaky)
    neighbour = engine.submit(watched(50))
    equal(run(engine, handle), alone)
    assert not failures
    neighbour.cancel()


def test_the_bytes_of_the_sums_are_promised_and_given_back(model: Model, make_engine: Any) -> None:
    free = make_engine(model, prefix_tree=False)
    ticket = free.intake.check(watched())
    need = free.memory.footprint(ticket.policies, 300, 300 + STEPS).peak_bytes
    budget = model.nbytes + free.memory.workspace + need
    engine = make_engine(model, prefix_tree=False, memory=budget)
    handle = engine.submit(watched())
    while not handle.finished:
        engine.step()
    assert handle.error is None
    assert engine.memory.ledger.peak <= budget
    assert engine.memory.ledger.bytes_of("index") == 0


def test_a_table_that_is_too_small_is_refused(packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.zeros((3, 4, 8), np.float32)
    monkeypatch.setattr(SequenceCache, "accumulate_rows", lambda *_: Accumulator((0, 1, 2), table))
    with pytest.raises(KernelError, match="attention sums of 8 slots are too few for layer 0 of view 0"):
        make_engine(packed).submit(watched()).result()
