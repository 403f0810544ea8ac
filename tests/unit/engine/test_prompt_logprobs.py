"""What a model thinks of a prompt's own tokens: as if they had been forced, whatever the chunks and whoever runs."""

from __future__ import annotations

import asyncio

import pytest
from tests.tiny import text_tokens
from tests.unit.engine.conftest import MakeEngine

from thrifty.decoding.sampling import TokenLogprob
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, PromptError, QueueFullError
from thrifty.models.model import Model


def scored(engine: Engine, tokens: list[int], alternatives: int = 0, salt: str | None = None) -> list[TokenLogprob]:
    return [entry for part in engine.prompt_logprobs(tokens, alternatives, salt) for entry in part]


def forced(engine: Engine, tokens: list[int], alternatives: int = 0) -> list[TokenLogprob]:
    """The slow way: each token is a step."""
    sampling = SamplingParameters(logprobs=alternatives)
    return engine.submit(Request(prompt=tokens[:1], forced=tokens[1:], sampling=sampling)).result().logprobs


def test_they_are_those_of_forced_tokens(make_engine: MakeEngine, model: Model) -> None:
    tokens = text_tokens(140)
    told, slow = scored(make_engine(model), tokens, 3), forced(make_engine(model), tokens, 3)
    assert [entry.token for entry in told] == tokens[1:]
    assert all(len(entry.top) == 3 for entry in told)
    assert [entry.logprob for entry in told] == pytest.approx([entry.logprob for entry in slow], abs=2e-2)


def test_native_code_gives_the_bits_of_forced_tokens(make_engine: MakeEngine, packed: Model) -> None:
    tokens = text_tokens(150)
    assert scored(make_engine(packed), tokens, 2) == forced(make_engine(packed), tokens, 2)


def test_chunks_do_not_change_a_bit(make_engine: MakeEngine, packed: Model, windowed: Model) -> None:
    tokens = text_tokens(700)
    for own in (packed, windowed):
        assert scored(make_engine(own, chunk=128), tokens) == scored(make_engine(own, chunk=512), tokens)


def test_others_go_on_between_its_parts_and_nothing_changes(make_engine: MakeEngine, packed: Model) -> None:
    engine, tokens = make_engine(packed, chunk=128), text_tokens(300)
    alone = scored(engine, tokens)
    request = Request(prompt=text_tokens(50, 1), sampling=SamplingParameters(max_tokens=40, ignore_eos=True))
    answer = engine.submit(request).result().token_ids
    handle, told = engine.submit(request), []
    for part in engine.prompt_logprobs(tokens):
        told += part
        engine.step()
    assert told == alone and handle.result().token_ids == answer


def test_a_request_begins_with_what_was_read_under_its_salt_alone(make_engine: MakeEngine, packed: Model) -> None:
    engine, tokens = make_engine(packed), text_tokens(300)

    def cached(salt: str) -> int:
        request = Request(prompt=tokens, salt=salt, sampling=SamplingParameters(max_tokens=1, ignore_eos=True))
        return engine.submit(request).result().usage.cached_tokens

    expected = scored(engine, tokens)
    assert engine.usage().tree == 0, "without a salt nobody begins with it"
    assert scored(engine, tokens, salt="a") == expected and engine.usage().tree > 0
    assert [cached("a"), cached("b")] == [256, 0]


def test_a_hit_of_what_was_read_changes_no_answer(make_engine: MakeEngine, packed: Model, windowed: Model) -> None:
    tokens = text_tokens(300)
    request = Request(prompt=tokens, sampling=SamplingParameters(max_tokens=20, ignore_eos=True, logprobs=0))
    for own in (packed, windowed):
        expected = make_engine(own, prefix_tree=False).submit(request).result().logprobs
        engine = make_engine(own)
        scored(engine, tokens, salt="")
        result = engine.submit(request).result()
        assert result.logprobs == expected and result.usage.cached_tokens >= 128


def test_what_it_holds_goes_at_the_end_and_when_it_is_left(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, memory="16MB", chunk=128)
    before = engine.usage().current
    scored(engine, text_tokens(300))
    assert engine.usage().current == before
    parts = engine.prompt_logprobs(text_tokens(300))
    next(parts)
    assert engine.usage().bytes_of("cache") > 0
    parts.close()  # type: ignore[attr-defined]
    assert engine.usage().current == before


def test_what_cannot_be_scored_is_refused(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, memory="6MB", chunk=128)
    with pytest.raises(BudgetError, match="a prompt to score does not fit"):
        engine.prompt_logprobs(text_tokens(4000))
    held = engine.prompt_logprobs(text_tokens(engine.memory.longest((), 4096, 4096) - 100))
    next(held)
    with pytest.raises(QueueFullError, match="other requests hold"):
        next(engine.prompt_logprobs(text_tokens(1000)))
    held.close()  # type: ignore[attr-defined]
    for tokens in ([], [5000], text_tokens(5000)):
        with pytest.raises(PromptError):
            engine.prompt_logprobs(tokens)


def test_one_token_has_nothing_behind_it(make_engine: MakeEngine, packed: Model) -> None:
    assert scored(make_engine(packed), [5]) == []


def test_an_event_loop_gets_all_of_them(make_engine: MakeEngine, packed: Model) -> None:
    tokens = text_tokens(200)
    expected = scored(make_engine(packed), tokens, 1)

    async def ask() -> list[TokenLogprob]:
        async with AsyncEngine(make_engine(packed)) as running:
            return await running.prompt_logprobs(tokens, 1)

    assert asyncio.run(ask()) == expected
