"""Causal policies: what they hold follows from the tokens alone, so that requests share it as it is compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens
from tests.unit.engine.conversations.ending import close
from tests.unit.engine.conversations.test_shared_prompts import ask

from thrifty.cache.policy import CachePolicy
from thrifty.cache.traits import Traits
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.models.model import Model

RECIPES: dict[str, list[dict[str, Any]]] = {
    "kivi": [{"technique": "kivi", "bits": 2, "residual": 64, "causal": True}],
    "kivi 4": [{"technique": "kivi", "bits": 4, "residual": 128, "causal": True}],
    "streaming": [{"technique": "streaming", "window": 100, "causal": True}],
    "streaming, not renumbered": [{"technique": "streaming", "window": 100, "renumber": False, "causal": True}],
}
SHARED, MORE, ANSWER = 600, 40, 70


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    made = Engine(model)
    yield made
    close(made)


def turn(length: int = SHARED, seed: int = 0) -> list[int]:
    return [*text_tokens(SHARED)[:length], *text_tokens(MORE, 100 + seed)]


def alone(model: Model, request: Any, **options: Any) -> Any:
    apart = Engine(model, prefix_tree=False, **options)
    try:
        return apart.submit(request).result()
    finally:
        close(apart)


@pytest.mark.parametrize("name", RECIPES)
def test_a_hit_is_compressed_and_changes_no_token(model: Model, engine: Engine, name: str) -> None:
    recipe = RECIPES[name]
    engine.submit(ask(turn(), recipe)).result()
    assert engine.memory.cache.tree is not None and engine.memory.cache.tree.nbytes == 0, "no page of the full cache"
    request = ask(turn(520, seed=1), recipe)
    result = engine.submit(request).result()
    assert result.usage.cached_tokens == 512
    assert result.logprobs == alone(model, request).logprobs
    longer = ask([*turn(520, seed=1), *result.token_ids, *text_tokens(MORE, 9)], recipe)
    third = engine.submit(longer).result()
    assert third.usage.cached_tokens == (520 + MORE + ANSWER - 1) // 128 * 128, "answers too"
    assert third.logprobs == alone(model, longer).logprobs


@pytest.mark.parametrize("name", ["kivi", "streaming"])
def test_how_a_prompt_is_cut_changes_nothing(model: Model, engine: Engine, name: str) -> None:
    recipe = RECIPES[name]
    requests = [ask(turn(200 + 90 * seed, seed), recipe) for seed in range(3)]
    handles = [engine.submit(request) for request in requests]
    results = [handle.result().logprobs for handle in handles]
    for request, result in zip(requests, results, strict=True):
        assert result == alone(model, request, chunk=128, prefill_slice_ms=0).logprobs
        assert result == alone(model, request, chunk=512).logprobs


def test_tokens_that_were_said_and_tokens_that_were_read_hold_the_same(model: Model) -> None:
    """An answer forced token by token leaves the bytes that a prompt of the same tokens leaves."""
    recipe, tokens = RECIPES["kivi"], text_tokens(501)
    said, read = Engine(model), Engine(model)
    forced = Request(prompt=tokens[:150], forced=tokens[150:], cache=recipe)
    held = []
    for engine, request in ((said, forced), (read, ask(tokens[:499], recipe))):
        handle = engine.submit(request)
        while not handle.finished:
            cache = engine.cache_of(handle)
            if cache is not None and cache.length == 499:
                view = cache.view(cache.policy_layers[0])
                held.append((view.keys(0), view.values(0), [own.format for own in view.stretches()]))
                break
            engine.step()
        handle.cancel()
        close(engine)
    (keys, values, formats), (other_keys, other_values, other_formats) = held
    assert formats == other_formats and len(set(formats)) == 2
    assert np.array_equal(keys, other_keys) and np.array_equal(values, other_values)


@pytest.mark.parametrize("name", RECIPES)
def test_a_budget_of_the_footprint_is_enough_and_small(model: Model, name: str) -> None:
    recipe, free = RECIPES[name], Engine(model)
    policies = free.intake._policies(recipe)
    need = free.memory.footprint(policies, 1500, 1500 + ANSWER).peak_bytes
    full = free.memory.footprint((), 1500, 1500 + ANSWER).peak_bytes
    close(free)
    assert need < full
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    request = ask(text_tokens(1500), recipe)
    assert engine.submit(request).result().logprobs == alone(model, request).logprobs
    assert engine.submit(request).result().usage.cached_tokens in (0, 1408), "checkpoints give way"
    close(engine)


def test_another_recipe_salt_or_who_shares_nothing_finds_none(engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    assert engine.usage().bytes_of("checkpoints") > 0
    for recipe, options in (("kivi 4", {}), ("kivi", {"salt": "x"}), ("kivi", {"share_prefix": False})):
        assert engine.submit(ask(turn(seed=1), RECIPES[recipe], **options)).result().usage.cached_tokens == 0
    plain = [{**RECIPES["kivi"][0], "causal": False}]
    assert engine.submit(ask(turn(seed=1), plain)).result().usage.cached_tokens == 0
    assert engine.submit(ask(turn(seed=1), [])).result().usage.cached_tokens == 0


def test_checkpoints_are_few_and_move_to_disk(model: Model) -> None:
    engine = Engine(model, memory="12MB")
    recipe = RECIPES["kivi"]
    engine.submit(ask(text_tokens(2000), recipe)).result()
    checkpoints = engine.memory.cache.checkpoints
    assert checkpoints is not None and 4 <= len(checkpoints) <= 10
    held = engine.usage()
    engine.memory.cache.pressure(held.bytes_of("checkpoints"))
    assert engine.usage().disk > 0
    request = ask([*text_tokens(2000), *text_tokens(MORE, 3)], recipe)
    result = engine.submit(request).result()
    assert result.usage.cached_tokens == 1920
    assert result.logprobs == alone(model, request).logprobs
    checkpoints.shrink(checkpoints.nbytes // 2)
    assert checkpoints.nbytes == sum(
        segment.nbytes
        for segment in {id(own): own for node in checkpoints._kept() for own in node.cache.segments()}.values()
    )
    close(engine)


def test_a_causal_policy_goes_with_causal_ones_alone(engine: Engine) -> None:
    with pytest.raises(RecipeError, match="'kivi' is causal and acts while a prompt is read, but 'snapkv'"):
        engine.submit(ask(turn(), [{"technique": "snapkv", "keep": 0.5}, *RECIPES["kivi"]]))
    both = [*RECIPES["streaming"], *RECIPES["kivi"]]
    engine.submit(ask(turn(), both)).result()
    assert engine.submit(ask(turn(520, 1), both)).result().usage.cached_tokens == 512


def test_traits_that_contradict_the_option_are_refused() -> None:
    with pytest.raises(TypeError, match="causal, but there is no option"):

        class NoOption(CachePolicy):
            traits = Traits(causal=True)

            def after_decode(self, layers: Any, stats: Any) -> None: ...

    with pytest.raises(TypeError, match="causal, but there is no option"):

        @dataclass(frozen=True)
        class NoTrait(CachePolicy):
            causal: bool = False

            def after_decode(self, layers: Any, stats: Any) -> None: ...

    with pytest.raises(TypeError, match="never acts while they come"):

        @dataclass(frozen=True)
        class Late(CachePolicy):
            causal: bool = False
            traits = Traits(causal=True)
