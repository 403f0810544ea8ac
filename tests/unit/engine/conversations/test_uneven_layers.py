"""Conversations with a model whose layers differ in heads, KV heads and head size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model, uneven_config
from tests.unit.engine.conversations.test_shared_prompts import BOUND, SHARED, ask, close, turn

from thrifty.engine.engine import Engine
from thrifty.engine.request import Request, Result
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch
from thrifty.models.model import Model

SNAPKV: list[dict[str, Any]] = [{"technique": "snapkv", "keep": 0.4}]


@pytest.fixture(scope="module")
def model() -> Model:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    return tiny_model(packed=True, config=uneven_config())


def alone(model: Model, request: Request) -> Result:
    engine = Engine(model, prefix_tree=False)
    try:
        return engine.submit(request).result()
    finally:
        close(engine)


@pytest.mark.parametrize(
    ("cache", "begun"),
    [
        (SNAPKV, SHARED // PAGE * PAGE),
        ([{"technique": "h2o", "keep": 0.3}], 256),
        ([{"technique": "kvmerger", "first": 0, "last": 0}], 256),
        ([{"technique": "kvzip", "keep": 0.4, "chunk": 100}], SHARED // PAGE * PAGE),
    ],
    ids=lambda value: value[0]["technique"] if isinstance(value, list) else "",
)
def test_prompts_begin_with_pages_and_sums_on_disk(model: Model, cache: list[dict[str, Any]], begun: int) -> None:
    """Column sums are as many as a layer's own heads: the last layer has fewer than the widest."""
    engine = Engine(model, conversation_disk=BOUND)
    engine.submit(ask(turn(), cache)).result()
    request = ask(turn(seed=1), cache)
    result = engine.submit(request).result()
    assert result.usage.cached_tokens == begun
    assert result.logprobs == alone(model, request).logprobs
    close(engine)


@pytest.mark.parametrize(
    "technique", [{"technique": "streaming", "window": 100}, {"technique": "kivi", "residual": 64}]
)
def test_causal_policies_keep_to_their_footprint(model: Model, technique: dict[str, Any]) -> None:
    """First keys of sinks are held twice, layer by layer, while they are turned anew."""
    recipe, free = [{**technique, "causal": True}], Engine(model)
    need = free.memory.footprint(free.intake._policies(recipe), 1500, 1570).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    request = ask(text_tokens(1500), recipe)
    assert engine.submit(request).result().logprobs == alone(model, request).logprobs
    close(engine)


def test_a_session_is_saved_and_goes_on_elsewhere(model: Model, tmp_path: Path) -> None:
    engine, other = Engine(model), Engine(model)
    first = engine.submit(ask(turn(), SNAPKV, session="a")).result()
    engine.sessions.save("a", tmp_path)
    request = ask([*turn(), *first.token_ids, *text_tokens(40, 5)], SNAPKV, session="a")
    expected = engine.submit(request).result()
    other.sessions.restore("a", tmp_path)
    result = other.submit(request).result()
    assert result.logprobs == expected.logprobs and result.usage.cached_tokens > SHARED
    for each in (engine, other):
        close(each)
