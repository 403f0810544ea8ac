"""The engine tells a cache which tokens it holds: the prompt's, and those that decoding commits, drafts included."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import END_OF_TURN, text_tokens
from tests.unit.engine.test_drafts import Hints

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request
from thrifty.models.model import Model

SAMPLING = SamplingParameters(max_tokens=90, ignore_eos=True, temperature=1.0, seed=4)
PROMPT = text_tokens(100)
KEEPS_ALL = [{"technique": "fastgen", "recovery": 1.0}]


def check(engine: Engine, handle: Handle) -> None:
    """Nothing was evicted, so every head holds the prompt and all tokens but the newest."""
    cache = engine.cache_of(handle)
    assert cache is not None
    expected = [*handle.request.prompt, *handle.samples[0].token_ids][: cache.length]
    for layer in cache.policy_layers:
        assert [ids.tolist() for ids in cache.stats(layer).tokens or ()] == [expected] * cache.model.kv_heads


def test_slots_are_told_their_tokens_where_drafts_are_rejected(
    model: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.config.states:
        pytest.skip("recurrent layers refuse drafts (test_hybrid.py)")
    request = Request(prompt=PROMPT, sampling=SAMPLING, cache=KEEPS_ALL)
    plain = make_engine(model).submit(request).result().token_ids
    engine = make_engine(model, chunk=128)
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: Hints(len(PROMPT), tuple(plain)))
    handle = engine.submit(request)
    steps = 0
    while handle.usage.generated_tokens < 85:
        engine.step()
        steps += 1
        if handle.usage.generated_tokens:
            check(engine, handle)
    assert steps < 70, "drafts were accepted"
    handle.cancel()


def test_a_fork_goes_on_with_its_own_tokens(packed: Model, make_engine: Any) -> None:
    engine = make_engine(packed)
    parent = engine.submit(Request(prompt=PROMPT, sampling=SAMPLING, cache=KEEPS_ALL))
    while parent.usage.generated_tokens < 30:
        engine.step()
    shared = [*PROMPT, *parent.samples[0].token_ids]
    child = parent.fork(SamplingParameters(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True))
    while child.usage.generated_tokens < 40:
        engine.step()
    check(engine, parent)
    cache = engine.cache_of(child)
    assert cache is not None
    expected = [*shared, *child.samples[0].token_ids][: cache.length]
    assert [ids.tolist() for ids in cache.stats(0).tokens or ()] == [expected, expected]
    parent.cancel()
    child.cancel()


def test_the_models_tokenizer_says_what_is_special(packed: Model, make_engine: Any) -> None:
    classes = make_engine(packed).memory.cache.model.classes()
    assert END_OF_TURN in classes.special and ord(".") in classes.punctuation
    assert not classes.special & classes.punctuation and ord("a") not in classes.punctuation
