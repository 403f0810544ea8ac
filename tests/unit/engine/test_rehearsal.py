"""Prompts that are rehearsed before they are compressed: the same slots however the work was cut, and nothing left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.model_info import model_info
from thrifty.engine.request import Event, Handle, Request
from thrifty.errors import PromptError, RecipeError
from thrifty.models.model import Model

STEPS = 80
KVZIP = {"technique": "kvzip", "keep": 0.3, "chunk": 100}
KIVI = {"technique": "kivi", "bits": 4, "residual": 64}
CACHES: dict[str, list[dict[str, Any]]] = {
    "pairs": [KVZIP],
    "heads": [KVZIP | {"level": "prompt-head", "keep": 0.5}],
    "then kivi": [KVZIP, KIVI],
}


def make(length: int, cache: str = "pairs", steps: int = STEPS, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=steps, ignore_eos=True)
    return Request(
        prompt=text_tokens(length, length), sampling=sampling, cache=CACHES[cache], logits=True, share_prefix=False
    )


def run(engine: Engine, request: Request) -> list[Event]:
    return list(engine.submit(request))


def same(found: list[Event], expected: list[Event]) -> None:
    """Equal tokens, equal bits."""
    assert [event.token for event in found] == [event.token for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logits is not None and other.logits is not None
        assert np.array_equal(one.logits, other.logits)


def positions(engine: Engine, handle: Handle) -> list[list[int]]:
    """Of the sealed slots of every global layer and head."""
    cache = engine.cache_of(handle)
    assert cache is not None
    return [cache.view(layer).positions(head).tolist() for layer in cache.policy_layers for head in range(2)]


def first_token(engine: Engine, handle: Handle) -> None:
    while handle.usage.generated_tokens == 0:
        engine.step()


# The reference, an order slower, rehearses once; levels and what follows are policies' own, the same there.
REFERENCE = pytest.param("plain", "pairs", marks=pytest.mark.long)
CASES = [REFERENCE, *((kind, cache) for kind in ("packed", "windowed", "hybrid") for cache in CACHES)]


@pytest.mark.parametrize(("model", "cache"), CASES, indirect=["model"])
def test_alone_is_the_same_as_in_a_batch_and_in_slices(model: Model, make_engine: Any, cache: str) -> None:
    alone = run(make_engine(model), make(300, cache))
    engine = make_engine(model, prefill_slice_ms=0.001)
    others = [engine.submit(Request(prompt=text_tokens(100), sampling=SamplingParameters(max_tokens=900)))]
    engine.step()
    handle = engine.submit(make(300, cache))
    same(list(handle), alone)
    for other in others:
        other.cancel()


@pytest.mark.long
@pytest.mark.parametrize(("model", "cache"), CASES, indirect=["model"])
def test_any_chunk_gives_the_same_slots(model: Model, make_engine: Any, cache: str) -> None:
    whole = run(make_engine(model, chunk=1024), make(700, cache))
    for chunk in (128, 384):
        same(run(make_engine(model, chunk=chunk), make(700, cache)), whole)


def test_a_prefix_hit_is_the_same_as_none(packed: Model, make_engine: Any) -> None:
    without = run(make_engine(packed), make(460))
    engine = make_engine(packed)
    shared = Request(prompt=text_tokens(460, 460), sampling=SamplingParameters(max_tokens=3))
    engine.submit(shared).result()
    handle = engine.submit(
        Request(
            prompt=shared.prompt,
            sampling=SamplingParameters(max_tokens=STEPS, ignore_eos=True),
            cache=CACHES["pairs"],
            logits=True,
        )
    )
    same(list(handle), without)
    assert handle.usage.cached_tokens >= 384


def test_exactly_the_share_is_kept_and_the_sinks(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    handle = engine.submit(make(400))
    first_token(engine, handle)
    found = positions(engine, handle)
    heads = len(found)
    assert sum(len(one) for one in found) == int(0.3 * 396 * heads) + 4 * heads
    assert all(one[:4] == [0, 1, 2, 3] for one in found)
    assert len({len(one) for one in found}) > 1, "heads differ in what they keep"
    handle.cancel()


def test_dropped_heads_keep_their_sinks(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    handle = engine.submit(make(300, "heads"))
    first_token(engine, handle)
    found = positions(engine, handle)
    assert sorted(len(one) for one in found) == [4] * (len(found) // 2) + [300] * (len(found) // 2)
    handle.cancel()


def test_a_second_question_reads_the_slots_of_the_first(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    handle = engine.submit(make(300))
    first_token(engine, handle)
    kept = positions(engine, handle)
    fork = handle.fork()
    cache, other = engine.cache_of(handle), engine.cache_of(fork)
    assert cache is not None and other is not None
    layer = cache.policy_layers[0]
    assert other.spans[layer][0].segment is cache.spans[layer][0].segment, "compressed once, shared by both"
    for _ in range(STEPS - 5):
        engine.step()
    assert [new[: len(old)] for new, old in zip(positions(engine, fork), kept, strict=True)] == kept
    fork.cancel()


def test_the_footprint_holds_the_peak_and_bytes_fall(model: Model, make_engine: Any) -> None:
    engine = make_engine(model, prefix_tree=False)
    handle = engine.submit(make(600))
    policies = engine.intake.check(handle.request).policies
    promised = engine.memory.footprint(policies, 600, 600 + STEPS)
    fixed = engine.memory.ledger.current
    first_token(engine, handle)
    full = engine.memory.cache.footprint((), 600, 600).steady_bytes
    cache = engine.cache_of(handle)
    assert cache is not None
    windowed = any(window is not None for window in cache.model.windows)
    assert cache.nbytes < (0.8 if windowed else 0.6) * full
    list(handle)
    assert engine.memory.ledger.peak - fixed <= promised.peak_bytes
    assert engine.memory.ledger.peak - fixed > full, "the prompt was held in full"


def test_admission_by_footprint_is_enough(packed: Model, make_engine: Any) -> None:
    free = make_engine(packed, prefix_tree=False)
    alone = run(free, make(500, "then kivi"))
    policies = free.intake.check(make(500, "then kivi")).policies
    fixed = packed.nbytes + free.memory.workspace
    budget = fixed + free.memory.footprint(policies, 500, 500 + STEPS).peak_bytes
    engine = make_engine(packed, prefix_tree=False, memory=budget)
    same(run(engine, make(500, "then kivi")), alone)
    assert engine.memory.ledger.peak <= budget


@pytest.mark.parametrize("steps", [2, 3, 6, 9])
def test_cancelled_in_the_middle_it_leaves_nothing(model: Model, make_engine: Any, steps: int) -> None:
    engine = make_engine(model, prefill_slice_ms=0)
    handle = engine.submit(make(300))
    for _ in range(steps):
        engine.step()
    assert handle.usage.generated_tokens == 0, "the prompt is not complete yet"
    handle.cancel()
    assert engine.memory.ledger.bytes_of("index") == engine.memory.ledger.bytes_of("cache") == 0


def test_parked_in_the_middle_of_a_rehearsal_it_goes_on(packed: Model, make_engine: Any) -> None:
    alone = run(make_engine(packed), make(300))
    engine = make_engine(packed, prefix_tree=False, prefill_slice_ms=0)
    older = engine.submit(Request(prompt=text_tokens(64), sampling=SamplingParameters(max_tokens=300)))
    engine.step()
    handle = engine.submit(make(300))
    for _ in range(5):
        engine.step()
    parked = engine._scheduler.park_youngest()
    assert parked is not None and parked.cache is not None and parked.cache.rehearsals is not None
    same(list(handle), alone)
    older.cancel()


def test_a_prompt_that_leaves_no_room_to_repeat_is_refused(make_engine: Any) -> None:
    engine = make_engine(tiny_model(packed=True, context_length=1024))
    with pytest.raises(PromptError, match=r"context of 1024 has no room .* at most (\d+) tokens") as refused:
        engine.submit(make(1000, steps=4))
    most = int(str(refused.value).rpartition("at most ")[2].split()[0])
    assert len(run(engine, make(most, steps=4))) == 4, "64 tokens at a time"


def test_without_a_tokenizer_it_is_refused(make_engine: Any) -> None:
    model = tiny_model()
    model.tokenizer = None
    with pytest.raises(RecipeError, match="no tokenizer"):
        registry.build("cache", KVZIP).check_prompt(model_info(model, 128), 100)
