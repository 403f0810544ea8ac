"""The control: a random choice of the budget's size, the same for a request whatever runs beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model

from thrifty import registry
from thrifty.api import open_engine
from thrifty.cache.policies.random_eviction import RandomEviction
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.frontier.space import space

TABLE: dict[str, Any] = {"technique": "random-eviction", "keep": 0.25}
PROMPT = text_tokens(400)


def kept(table: dict[str, Any]) -> list[tuple[int, ...]]:
    """Positions that each layer and head holds after the prompt."""
    engine = open_engine(tiny_model(packed=True), threads=1)
    try:
        handle = engine.submit(Request(prompt=PROMPT, cache=[table], forced=[65, 66, 67]))
        next(iter(handle))
        cache = engine.cache_of(handle)
        assert cache is not None
        info = cache.model
        return [
            tuple(int(place) for place in np.asarray(cache.view(layer).positions(head)) if place < len(PROMPT))
            for layer in info.policy_layers
            for head in range(info.of(layer).kv_heads)
        ]
    finally:
        engine.close()


def test_it_keeps_the_budget_with_the_first_tokens_and_a_choice_of_each_head_its_own() -> None:
    heads = kept(TABLE)
    assert {len(places) for places in heads} == {100}
    assert all(places[:4] == (0, 1, 2, 3) for places in heads)
    assert len(set(heads)) == len(heads)
    middle = np.mean([np.mean(places[4:]) for places in heads])
    assert 170 < middle < 230, "no end of the prompt is preferred"


def test_a_window_stays_and_is_counted_in_the_budget() -> None:
    heads = kept(TABLE | {"window": 32})
    assert {len(places) for places in heads} == {100}
    assert all(places[-32:] == tuple(range(368, 400)) and places[:4] == (0, 1, 2, 3) for places in heads)
    assert len(set(heads)) == len(heads)
    few = kept({"technique": "random-eviction", "capacity": 20, "window": 32})
    assert {(len(places), places[-10:]) for places in few} == {(20, tuple(range(390, 400)))}
    with pytest.raises(RecipeError, match="window = -1"):
        RandomEviction(window=-1)


def test_a_seed_is_a_choice() -> None:
    assert kept(TABLE) == kept(TABLE) != kept(TABLE | {"seed": 1})


def test_it_says_that_it_is_a_control() -> None:
    assert RandomEviction.traits.control and not _policy("h2o").traits.control
    with pytest.raises(RecipeError, match="sinks = -1"):
        RandomEviction(sinks=-1)


def test_searches_do_not_offer_controls() -> None:
    controls = {name for name in registry.names("cache") if _policy(name).traits.control}
    offered = {table["technique"] for candidate in space(4096, untied=True) for table in candidate.recipe.cache}
    assert controls == {"random-eviction"} and len(offered) > 3 and not controls & offered


def _policy(name: str) -> Any:
    return registry.load("cache", name)
