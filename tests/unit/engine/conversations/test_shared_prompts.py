"""Prompts that policies compress begin with what earlier ones left on the disk, and are answered as without it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conversations.ending import close

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.formats.kv import PAGE
from thrifty.models.model import Model

RECIPES: dict[str, list[dict[str, Any]]] = {
    "kivi": [{"technique": "kivi", "bits": 2, "residual": 64}],
    "streaming": [{"technique": "streaming", "window": 64}],
    "snapkv": [{"technique": "snapkv", "keep": 0.4}],
    "pyramidkv": [{"technique": "pyramidkv", "keep": 0.4}],
    "ada-kv": [{"technique": "ada-kv", "keep": 0.4}],
    "knorm": [{"technique": "knorm", "keep": 0.4}],
    "kvzip": [{"technique": "kvzip", "keep": 0.4, "chunk": 100}],
    "snapkv + kivi": [{"technique": "snapkv", "keep": 0.6}, {"technique": "kivi", "bits": 4, "residual": 64}],
}
WATCHING = {
    "h2o": [{"technique": "h2o", "keep": 0.3}],
    "minikv": [{"technique": "minikv"}],
    "fastgen": [{"technique": "fastgen", "recovery": 0.8, "profile": 64}],
    "h2o + kivi": [{"technique": "h2o", "keep": 0.3}, {"technique": "kivi", "bits": 4, "residual": 64}],
    "kvmerger": [{"technique": "kvmerger", "first": 0, "last": 0}],
}
"""These read the attention of every row of the prompt: they begin where its sums were kept, at a multiple of 128."""

SHARED, MORE, ANSWER = 330, 40, 70
BOUND = "64MB"
Tables = list[dict[str, Any]]


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    made = Engine(model, conversation_disk=BOUND)
    yield made
    close(made)


def ask(tokens: list[int], recipe: Tables, **options: Any) -> Request:
    sampling = SamplingParameters.of(max_tokens=ANSWER, ignore_eos=True, logprobs=0)
    return Request(prompt=tokens, sampling=sampling, cache=recipe, **options)


def turn(length: int = SHARED, seed: int = 0) -> list[int]:
    """A prompt that begins like all others, and ends as no other does."""
    return [*text_tokens(SHARED)[:length], *text_tokens(MORE, 100 + seed)]


def alone(model: Model, request: Request) -> Any:
    with_nothing = Engine(model, prefix_tree=False)
    try:
        return with_nothing.submit(request).result()
    finally:
        with_nothing.close()


@pytest.mark.parametrize("name", RECIPES)
def test_a_hit_changes_no_token(model: Model, engine: Engine, name: str) -> None:
    recipe = RECIPES[name]
    first = engine.submit(ask(turn(), recipe)).result()
    assert first.usage.cached_tokens == 0
    assert first.logprobs == alone(model, ask(turn(), recipe)).logprobs, "writing pages changes nothing"
    request = ask(turn(seed=1), recipe)
    second = engine.submit(request).result()
    assert second.usage.cached_tokens == SHARED // PAGE * PAGE
    assert second.logprobs == alone(model, request).logprobs


@pytest.mark.parametrize("length", [PAGE, 127, 128, 200, SHARED])
def test_every_length_is_shared_to_its_last_whole_page(model: Model, engine: Engine, length: int) -> None:
    recipe = RECIPES["snapkv"]
    engine.submit(ask(turn(), recipe)).result()
    request = ask(turn(length, seed=2), recipe)
    result = engine.submit(request).result()
    assert result.usage.cached_tokens == length // PAGE * PAGE
    assert result.logprobs == alone(model, request).logprobs


@pytest.mark.long
def test_pages_know_no_recipe_and_grow_with_the_conversation(model: Model, engine: Engine) -> None:
    tokens = turn(130)
    for place, name in enumerate(RECIPES):
        before, tokens = tokens, [*tokens, *text_tokens(90, 7 + place)]
        request = ask(tokens, RECIPES[name])
        result = engine.submit(request).result()
        assert result.usage.cached_tokens == (len(before) // PAGE * PAGE if place else 0), name
        assert result.logprobs == alone(model, request).logprobs, name


@pytest.mark.long
def test_hits_in_a_batch_answer_as_alone(model: Model, engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    requests = [ask(turn(seed=place), recipe) for place, recipe in enumerate(RECIPES.values())]
    handles = [engine.submit(request) for request in requests]
    for request, handle in zip(requests, handles, strict=True):
        assert handle.result().logprobs == alone(model, request).logprobs
        assert handle.usage.cached_tokens == SHARED // PAGE * PAGE


def test_the_prefix_tree_serves_the_full_cache_alone_and_pages_stay_on_disk(model: Model, engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    usage = engine.usage()
    assert usage.conversations > 0 and usage.tree == 0
    assert usage.bytes_of("tree") == usage.bytes_of("cache") == usage.bytes_of("index") == 0, "nothing in memory"
    assert engine.submit(ask(turn(seed=1), [])).result().usage.cached_tokens == 0
    assert engine.usage().conversations == usage.conversations


@pytest.mark.parametrize("name", WATCHING)
def test_who_watches_every_row_begins_with_what_was_seen(model: Model, engine: Engine, name: str) -> None:
    recipe = WATCHING[name]
    engine.submit(ask(turn(), recipe)).result()
    assert engine.usage().bytes_of("tree") == engine.usage().bytes_of("index") == 0, "nothing in memory"
    tokens = turn(seed=1)
    for seed in range(2):
        request = ask(tokens, recipe)
        result = engine.submit(request).result()
        assert result.usage.cached_tokens == (256 if seed == 0 else 384), "where sums were kept"
        assert result.logprobs == alone(model, request).logprobs
        tokens = [*tokens, *text_tokens(150, 40)]
        engine.submit(ask(tokens[:460], recipe)).result()


def test_pages_without_sums_are_no_hit_for_who_wants_them(model: Model, engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    request = ask(turn(seed=1), WATCHING["h2o"])
    first = engine.submit(request).result()
    assert first.usage.cached_tokens == 0 and first.logprobs == alone(model, request).logprobs
    request = ask(turn(seed=2), WATCHING["minikv"])
    second = engine.submit(request).result()
    assert second.usage.cached_tokens == 256, "the pages were there, the sums came with the first"
    assert second.logprobs == alone(model, request).logprobs


@pytest.mark.parametrize("options", [{"salt": "b"}, {"share_prefix": False}])
def test_neither_another_salt_nor_who_shares_nothing_finds_it(engine: Engine, options: dict[str, Any]) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    held = engine.usage().conversations
    result = engine.submit(ask(turn(seed=1), RECIPES["kivi"], **options)).result()
    assert result.usage.cached_tokens == 0
    assert "salt" in options or engine.usage().conversations == held


def test_without_a_bound_nothing_is_kept(model: Model) -> None:
    engine = Engine(model)
    for seed in range(2):
        assert engine.submit(ask(turn(seed=seed), RECIPES["kivi"])).result().usage.cached_tokens == 0
    close(engine)


def test_the_bound_holds_and_what_was_used_least_goes_first(model: Model) -> None:
    probe = Engine(model, conversation_disk=BOUND)
    probe.submit(ask(turn(), RECIPES["kivi"])).result()
    pages = (SHARED + MORE) // PAGE
    page = probe.usage().conversations // pages
    close(probe)
    engine = Engine(model, conversation_disk=pages * page)
    for seed in range(4):
        tokens = text_tokens(SHARED + MORE, seed)
        engine.submit(ask(tokens, RECIPES["kivi"])).result()
        assert engine.usage().conversations <= pages * page
    last = ask([*tokens, *text_tokens(MORE, 9)], RECIPES["kivi"])
    result = engine.submit(last).result()
    assert result.usage.cached_tokens == pages * PAGE and result.logprobs == alone(model, last).logprobs
    gone = ask([*text_tokens(SHARED + MORE, 0), *text_tokens(MORE, 9)], RECIPES["kivi"])
    result = engine.submit(gone).result()
    assert result.usage.cached_tokens == 0 and result.logprobs == alone(model, gone).logprobs
    close(engine)


def test_a_full_disk_keeps_nothing_and_harms_no_answer(
    model: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def full(handle: int, data: Any, offset: int) -> int:
        written.append(len(data))
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        first = engine.submit(ask(turn(), RECIPES["kivi"])).result()
    assert len(written) > 5, "the disk was asked"
    disk = engine.memory.cache.tiers.disk
    assert disk is not None and disk.used == engine.usage().conversations == 0
    assert first.logprobs == alone(model, ask(turn(), RECIPES["kivi"])).logprobs
    request = ask(turn(seed=1), RECIPES["kivi"])
    result = engine.submit(request).result()
    assert result.usage.cached_tokens == 0 and result.logprobs == alone(model, request).logprobs


def test_who_is_cancelled_in_the_middle_of_a_prompt_leaves_nothing_behind(engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    held = engine.usage()
    handle = engine.submit(ask([*turn(seed=1), *text_tokens(200, 3)], RECIPES["snapkv"]))
    engine.step()
    engine.step()
    assert handle.usage.generated_tokens == 0
    handle.cancel()
    now = engine.usage()
    assert (now.conversations, now.disk, now.current) == (held.conversations, held.disk, held.current)


def test_an_error_in_the_middle_is_counted_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.cache.policies.kivi import Kivi

    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    held = engine.usage()
    with monkeypatch.context() as patch:
        patch.setattr(Kivi, "after_prefill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.submit(ask(turn(seed=1), RECIPES["kivi"])).result()
    engine.step()
    now = engine.usage()
    assert (now.conversations, now.disk, now.current) == (held.conversations, held.disk, held.current)


def test_a_hit_takes_no_more_memory_than_the_same_prompt_without(model: Model, engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["snapkv"])).result()
    engine.reset_peak()
    engine.submit(ask(turn(seed=1), RECIPES["snapkv"])).result()
    other = Engine(model, prefix_tree=False)
    other.submit(ask(turn(seed=1), RECIPES["snapkv"])).result()
    assert engine.usage().peak <= other.usage().peak
    other.close()


def test_an_answer_is_read_again_while_nobody_asks(model: Model, engine: Engine) -> None:
    first = engine.submit(ask(turn(), RECIPES["kivi"])).result()
    assert engine.read_ahead() and engine.busy
    while engine.busy:
        engine.step()
    assert not engine.read_ahead(), "once"
    request = ask([*turn(), *first.token_ids, *text_tokens(MORE, 5)], RECIPES["kivi"])
    second = engine.submit(request).result()
    assert second.usage.cached_tokens == (SHARED + MORE + ANSWER - 1) // PAGE * PAGE > SHARED + MORE
    assert second.logprobs == alone(model, request).logprobs


def test_a_request_stops_what_is_read_again(model: Model, engine: Engine) -> None:
    engine.submit(ask(turn(), RECIPES["kivi"])).result()
    assert engine.read_ahead()
    engine.step()
    result = engine.submit(ask(turn(seed=1), RECIPES["kivi"])).result()
    assert result.usage.queued_seconds < 5 and not engine.busy
    assert result.logprobs == alone(model, ask(turn(seed=1), RECIPES["kivi"])).logprobs


def test_what_was_stopped_is_read_again_later(engine: Engine) -> None:
    first = engine.submit(ask(turn(), RECIPES["snapkv"])).result()
    assert engine.read_ahead()
    with pytest.raises(PromptError):
        engine.submit(ask([1] * 5000, []))
    engine.submit(ask(text_tokens(80, 7), [])).result()
    assert engine.read_ahead()
    while engine.busy:
        engine.step()
    assert not engine.read_ahead()
    following = [*turn(), *first.token_ids, *text_tokens(MORE, 7)]
    cached = engine.submit(ask(following, RECIPES["snapkv"])).result().usage.cached_tokens
    assert cached == (len(turn()) + len(first.token_ids) - 1) // 64 * 64, "the answer too"


@pytest.mark.parametrize("options", [{"share_prefix": False}, {"session": "a"}, {"cache": []}])
def test_what_nothing_begins_with_is_not_read_again(engine: Engine, options: dict[str, Any]) -> None:
    recipe = options.get("cache", RECIPES["kivi"])
    others = {name: value for name, value in options.items() if name != "cache"}
    engine.submit(ask(turn(), recipe, **others)).result()
    assert not engine.read_ahead() and not engine.busy


@pytest.mark.long
@pytest.mark.parametrize("name", ["kivi", "snapkv", "h2o", "kvzip"])
def test_the_reference_path_begins_with_pages_too(name: str) -> None:
    plain = tiny_model()
    recipe = (RECIPES | WATCHING)[name]
    engine, apart = Engine(plain, native=False, conversation_disk=BOUND), Engine(plain, native=False, prefix_tree=False)
    engine.submit(ask(turn(), recipe)).result()
    request = ask(turn(seed=1), recipe)
    result = engine.submit(request).result()
    assert result.usage.cached_tokens == (256 if name == "h2o" else SHARED // PAGE * PAGE)
    assert result.token_ids == apart.submit(request).result().token_ids
    close(engine)
    close(apart)
