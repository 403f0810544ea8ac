"""A result does not depend on its batch, on chunking, on a prefix hit or on a pause: to the token and to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Request
from thrifty.formats.kv import PAGE
from thrifty.models.model import Model

pytestmark = pytest.mark.long

STEPS = 100  # page borders and a policy's period; the embedded models do 256
CACHES: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "kivi": [{"technique": "kivi", "bits": 2}],
    "kivi, none exact": [{"technique": "kivi", "bits": 4, "residual": 0}],
    "streaming": [{"technique": "streaming", "window": 64}],
    "snapkv": [{"technique": "snapkv", "keep": 0.5}],
    "snapkv + kivi": [{"technique": "snapkv", "keep": 0.5}, {"technique": "kivi", "bits": 4}],
    "minikv": [{"technique": "minikv", "residual": 64}],
    "h2o": [{"technique": "h2o", "capacity": 80}],
    "h2o + kivi": [{"technique": "h2o", "capacity": 100}, {"technique": "kivi", "bits": 4}],
    "fastgen": [{"technique": "fastgen", "recovery": 0.8, "profile": 64}],
    "kvmerger": [{"technique": "kvmerger", "keep": 0.5, "first": 0, "last": 0}],
    "quest": [{"technique": "quest", "budget": 64, "page": 16, "dense": 0}],
    "kvmerger + kivi": [
        {"technique": "kvmerger", "keep": 0.5, "first": 0, "last": 0},
        {"technique": "kivi", "bits": 4},
    ],
}
SAMPLING = {
    "greedy": SamplingParameters(max_tokens=STEPS, ignore_eos=True),
    "seeded": SamplingParameters(max_tokens=STEPS, ignore_eos=True, temperature=0.9, top_p=0.95, seed=11),
}


def make(length: int, sampling: str, cache: str = "full", **options: Any) -> Request:
    return Request(
        prompt=text_tokens(length, length), sampling=SAMPLING[sampling], cache=CACHES[cache], logits=True, **options
    )


def run(engine: Engine, request: Request) -> list[Event]:
    return list(engine.submit(request))


def same(found: list[Event], expected: list[Event], exact: bool = True) -> None:
    """Equal tokens, and equal bits of every logit; or, where torch may sum in another order (by which a 2-bit code
    may flip), a bound on the maximum and the mean difference.
    """
    assert [event.token for event in found] == [event.token for event in expected]
    assert len(found) >= STEPS
    difference = np.abs(stacked(found) - stacked(expected))
    maximum, mean = float(difference.max()), float(difference.mean())
    assert (maximum, mean) == (0.0, 0.0) or (not exact and maximum < 0.02 and mean < 1e-3), (maximum, mean)


def stacked(events: list[Event]) -> Floats:
    """fp32 [events, vocabulary]."""
    return np.stack([event.logits for event in events if event.logits is not None])


@pytest.mark.parametrize("sampling", SAMPLING)
def test_alone_is_the_same_as_in_a_batch(model: Model, make_engine: Any, sampling: str) -> None:
    alone = run(make_engine(model, prefix_tree=False), make(200, sampling))
    engine = make_engine(model, prefix_tree=False)
    others = [engine.submit(make(length, "seeded")) for length in (5, 333)]
    for _ in range(7):
        engine.step()
    handle = engine.submit(make(200, sampling))
    late = engine.submit(make(64, "greedy", "kivi"))
    same(list(handle), alone)
    for other in [*others, late]:
        other.cancel()


KINDS = ("plain", "packed", "windowed", "hybrid")
COMPRESSING = [name for name in CACHES if name != "full"]
# The reference, an order slower, takes each technique once; chains and other options are policies' own, the same there.
ALONE = [(kind, name) for kind in KINDS for name in COMPRESSING if kind != "plain" or " " not in name]


@pytest.mark.parametrize(("model", "cache"), ALONE, indirect=["model"])
def test_a_compressing_request_is_the_same_in_a_batch(model: Model, make_engine: Any, cache: str) -> None:
    alone = run(make_engine(model), make(300, "greedy", cache))
    engine = make_engine(model)
    others = [engine.submit(make(100, "seeded")), engine.submit(make(150, "seeded", "kivi"))]
    engine.step()
    handle = engine.submit(make(300, "greedy", cache))
    same(list(handle), alone)
    for other in others:
        other.cancel()


CHUNKED = [(kind, cache) for kind in KINDS for cache in ("full", "kivi", "snapkv", "minikv", "quest")]


@pytest.mark.parametrize(
    ("model", "cache"), [case for case in CHUNKED if case[0] != "plain" or case[1] in ("full", "snapkv")],
    indirect=["model"],
)  # fmt: skip
def test_a_whole_prefill_is_the_same_as_a_chunked_one(model: Model, make_engine: Any, cache: str) -> None:
    whole = run(make_engine(model, chunk=1024), make(700, "greedy", cache))
    for chunk in (128, 384):
        same(run(make_engine(model, chunk=chunk), make(700, "greedy", cache)), whole)


@pytest.mark.parametrize("cache", ["full", "kivi", "kivi, none exact", "snapkv", "quest"])
def test_a_prefix_hit_is_the_same_as_none(model: Model, make_engine: Any, cache: str) -> None:
    without = run(make_engine(model, prefix_tree=False), make(460, "seeded", cache))
    engine = make_engine(model, chunk=128)  # windowed layers can be joined where a chunk ended
    longer = Request(prompt=text_tokens(460, 460)[:400] + text_tokens(200), sampling=SamplingParameters(max_tokens=3))
    engine.submit(longer).result()
    handle = engine.submit(make(460, "seeded", cache))
    same(list(handle), without, exact=engine.runner.name == "native")
    assert 128 <= handle.usage.cached_tokens <= 400
    private = engine.submit(make(460, "seeded", cache, salt="another tenant"))
    same(list(private), without, exact=engine.runner.name == "native")
    assert private.usage.cached_tokens == 0


@pytest.mark.parametrize("cache", ["streaming", "snapkv", "snapkv + kivi", "kivi, none exact"])
@pytest.mark.parametrize("length", [400, 440])
def test_a_prefix_hit_that_ends_inside_what_is_kept(packed: Model, make_engine: Any, cache: str, length: int) -> None:
    without = run(make_engine(packed, prefix_tree=False), make(length, "greedy", cache))
    engine = make_engine(packed)
    engine.submit(Request(prompt=text_tokens(length, length), sampling=SamplingParameters(max_tokens=3))).result()
    handle = engine.submit(make(length, "greedy", cache))
    same(list(handle), without)
    assert handle.usage.cached_tokens >= 320, "snapkv computes the rows that its queries come from again"


def test_samples_are_the_same_as_alone(model: Model, make_engine: Any) -> None:
    alone = run(make_engine(model), make(200, "seeded"))
    events = run(make_engine(model), make(200, "seeded", samples=3))
    same([event for event in events if event.sample == 0], alone)


def test_a_parked_request_is_the_same_as_an_undisturbed_one(model: Model, make_engine: Any) -> None:
    steps = 320 if any(layer.window for layer in model.config.layers) else 140  # windows hardly grow
    sampling = dataclasses.replace(SAMPLING["seeded"], max_tokens=steps)

    def requests() -> list[Request]:
        prompts = [text_tokens(length, length) for length in (260, 280, 300)]
        return [Request(prompt=tokens, sampling=sampling, logits=True) for tokens in prompts]

    free = make_engine(model, chunk=128, prefix_tree=False)
    alone = [run(free, request) for request in requests()]
    fixed, sizes = model.nbytes + free.memory.workspace, free.memory.footprint
    started = sizes((), 300, 300 + PAGE)
    budget = fixed + started.peak_bytes + started.steady_bytes + sizes((), 1, 1).steady_bytes
    engine = make_engine(model, memory=budget, chunk=128, prefix_tree=False)
    handles = [engine.submit(request) for request in requests()]
    for handle, expected in zip(handles, alone, strict=True):
        same(list(handle), expected)
    assert sum(handle.usage.preemptions for handle in handles) > 0, "there was no pressure"
    assert engine.memory.ledger.peak <= budget


@pytest.fixture(scope="module")
def full_answer(plain: Model) -> list[Event]:
    """What the reference answers with the full cache."""
    engine = Engine(plain, native=False)
    events = run(engine, make(200, "greedy"))
    engine.close()
    return events


@pytest.mark.parametrize("cache", [name for name in CACHES if name not in ("kivi, none exact", "minikv")])
def test_settings_that_lose_nothing_give_the_full_cache(
    plain: Model, full_answer: list[Event], make_engine: Any, cache: str
) -> None:
    lossless = {
        "full": [{"technique": "full"}],
        "kivi": [{"technique": "kivi", "residual": 2048}],
        "streaming": [{"technique": "streaming", "window": 2048}],
        "snapkv": [{"technique": "snapkv", "keep": 1.0}],
        "snapkv + kivi": [{"technique": "snapkv", "keep": 1.0}, {"technique": "kivi", "residual": 2048}],
        "h2o": [{"technique": "h2o", "capacity": 2048}],
        "h2o + kivi": [{"technique": "h2o", "capacity": 2048}, {"technique": "kivi", "residual": 2048}],
        "fastgen": [{"technique": "fastgen", "recovery": 1.0}],
        "kvmerger": [{"technique": "kvmerger", "keep": 1.0}],
        "kvmerger + kivi": [{"technique": "kvmerger", "keep": 1.0}, {"technique": "kivi", "residual": 2048}],
        "quest": [{"technique": "quest", "budget": 2048}],
    }[cache]
    request = Request(prompt=text_tokens(200, 200), sampling=SAMPLING["greedy"], cache=lossless, logits=True)
    same(run(make_engine(plain), request), full_answer, exact=False)
