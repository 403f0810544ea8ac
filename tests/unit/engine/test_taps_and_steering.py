"""Hidden states that a request reads, and vectors that it adds to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import text_tokens
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import answer, logits_of, own_rows, random_adapter, submit

from thrifty.arrays import Floats
from thrifty.engine.request import Handle
from thrifty.errors import PromptError
from thrifty.models.model import Model
from thrifty.reference import build
from thrifty.reference.attention import causal

PROMPT = text_tokens(200, 5)
VECTOR = np.random.default_rng(0).standard_normal(128).astype(np.float32)
RECIPES = [
    [],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "kvzip", "keep": 0.5}],
    [{"technique": "h2o", "capacity": 60}],
]
IDS = ["full", "layer-major", "rehearsed", "sums"]


def taps_of(handle: Handle) -> dict[int, Floats]:
    """Layer → fp32 [tokens, hidden] of a request's events."""
    states = [event.taps for event in handle if event.token is not None]
    assert all(state is not None for state in states)
    return {layer: np.stack([state[layer] for state in states if state is not None]) for layer in states[0] or {}}


def slow_states(model: Model, tokens: list[int], steering: dict[int, Floats]) -> list[Floats]:
    """The state fp32 [tokens, hidden] behind every layer, by one pass over them all."""
    decoder, states = build(model).decoder, []
    with torch.no_grad():
        hidden = decoder.embed(torch.tensor(tokens))
        for layer in range(len(model.config.layers)):
            hidden = decoder.layer(layer, hidden, torch.arange(len(tokens)), causal(model.config))
            if layer in steering:
                hidden = hidden + torch.from_numpy(steering[layer])
            states.append(hidden.numpy().copy())
    return states


@pytest.mark.parametrize("steering", [{}, {1: VECTOR}])
def test_taps_and_steering_agree_with_a_slow_pass(
    make_engine: MakeEngine, plain: Model, steering: dict[int, Floats]
) -> None:
    engine = make_engine(plain)
    handle = submit(engine, PROMPT, tokens=5, taps=[2, 0, 1], steering=steering)
    found = taps_of(handle)
    tokens = [*PROMPT, *handle.samples[0].token_ids[:-1]]
    wanted = slow_states(plain, tokens, steering)
    assert list(found) == [0, 1, 2]
    for layer, states in found.items():
        assert states.shape == (5, 128)
        np.testing.assert_allclose(states, wanted[layer][-5:], rtol=0, atol=1e-3 * float(np.abs(states).max()))


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_taps_are_the_same_however_a_prompt_is_computed(
    make_engine: MakeEngine, model: Model, recipe: list[dict[str, Any]]
) -> None:
    """And reading changes no bit of the answer."""
    engine = make_engine(model, cache=recipe, prefill_slice_ms=0.01)
    first = submit(engine, PROMPT, taps=[0, 2])
    wanted = taps_of(first)
    beside = submit(engine, PROMPT[:60], tokens=60)
    for _ in range(3):
        engine.step()
    again = submit(engine, PROMPT, taps=[0, 2])
    other = submit(engine, PROMPT[:150], taps=[1])
    found = taps_of(again)
    for layer in (0, 2):
        assert np.array_equal(found[layer], wanted[layer])
    assert list(taps_of(other)) == [1]
    beside.cancel()
    assert [event.taps for event in submit(engine, PROMPT, tokens=2)] == [None, None]
    tapped = submit(engine, PROMPT, taps=[0, 2])
    assert np.array_equal(logits_of(tapped), answer(engine, PROMPT))


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_zero_vector_changes_no_bit(make_engine: MakeEngine, model: Model, recipe: list[dict[str, Any]]) -> None:
    engine = make_engine(model, cache=recipe)
    steering = {layer: np.zeros(128, np.float32) for layer in (0, 2)}
    assert np.array_equal(answer(engine, PROMPT, steering=steering), answer(engine, PROMPT))


def test_native_and_reference_steer_alike(make_engine: MakeEngine, packed: Model) -> None:
    steering = {0: 8 * VECTOR, 2: 20 * VECTOR}
    native = answer(make_engine(packed), PROMPT, tokens=1, steering=steering)
    reference = answer(make_engine(packed, native=False), PROMPT, tokens=1, steering=steering)
    plain = answer(make_engine(packed, native=False), PROMPT, tokens=1)
    assert np.abs(native - reference).mean() < 0.2 * np.abs(native - plain).mean()


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_requests_of_one_batch_are_steered_apart(
    make_engine: MakeEngine, model: Model, recipe: list[dict[str, Any]]
) -> None:
    ways: list[dict[str, Any]] = [
        {"steering": {1: VECTOR}},
        {},
        {"steering": {0: VECTOR}, "taps": [1]},
        {"adapter": "a"},
    ]
    adapters = {"a": random_adapter(model, 4, 1)}
    engine = make_engine(model, cache=recipe, adapters=adapters, prefill_slice_ms=0.01)
    prompts = [PROMPT[: 150 + 10 * place] for place in range(4)]
    handles = [submit(engine, prompt, **way) for prompt, way in zip(prompts, ways, strict=True)]
    while engine.busy:
        engine.step()
    alone = make_engine(model, cache=recipe, adapters=adapters, prefix_tree=False)
    for handle, prompt, way in zip(handles, prompts, ways, strict=True):
        assert np.array_equal(logits_of(handle), answer(alone, prompt, **way))


def test_steered_prefixes_are_shared_between_those_that_steer_alike(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed)
    for steering, hits in (({1: VECTOR}, 0), ({1: VECTOR}, 192), ({1: -VECTOR}, 0), ({2: VECTOR}, 0), ({}, 0)):
        handle = submit(engine, PROMPT, steering=steering)
        found = logits_of(handle)
        assert handle.usage.cached_tokens == hits
        assert np.array_equal(found, answer(engine, PROMPT, steering=steering, share_prefix=False))


def test_all_of_it_at_once(make_engine: MakeEngine, model: Model) -> None:
    """Embeddings, positions, an adapter, taps and steering, chunked and in one piece."""
    adapters = {"a": random_adapter(model, 4, 1)}
    found = []
    for chunk in (128, 256):
        engine = make_engine(model, adapters=adapters, chunk=chunk, prefix_tree=False)
        mixed = [*PROMPT[:20], own_rows(engine, PROMPT[20:180], positions=np.arange(160) // 2), *PROMPT[180:]]
        handle = submit(engine, mixed, adapter="a", steering={1: VECTOR}, taps=[2])
        found.append(taps_of(handle)[2])
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": [3]}, "taps names layer 3; this model has layers 0 to 2"),
        ({"taps": [-1]}, "layers are numbered from 0"),
        ({"steering": {3: VECTOR}}, "steering names layer 3"),
        ({"steering": {0: VECTOR[:5]}}, "has 5 numbers; this model's states have 128"),
        ({"steering": {0: np.zeros((2, 128))}}, r"use finite numbers \[hidden size\]"),
        ({"steering": {0: np.full(128, np.inf)}}, "use finite numbers"),
        ({"steering": {"x": VECTOR}}, "steering has the layer 'x'"),
        ({"steering": [VECTOR]}, "is no mapping"),
    ],
)
def test_what_no_layer_takes_is_refused(make_engine: MakeEngine, plain: Model, options: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        submit(make_engine(plain), PROMPT, **options)
