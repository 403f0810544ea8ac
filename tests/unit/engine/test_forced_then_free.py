"""Forced tokens and what the model says after them: one cache, made from the prompt alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.tiny import EOS, text_tokens, tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.reference import build

PROMPT, QUESTION = text_tokens(200), text_tokens(30, seed=4)


PLAIN = pytest.param(False, id="plain", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=[pytest.param(True, id="packed"), PLAIN])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=request.param), prefix_tree=False, threads=1)
    yield engine
    engine.close()


def ask(engine: Engine, **options: Any) -> list[int]:
    sampling = SamplingParameters.of(ignore_eos=options.pop("ignore_eos", True), **options.pop("sampling", {}))
    return engine.submit(Request(sampling=sampling, **options)).result().token_ids


def test_the_free_part_is_what_the_model_says_after_prompt_and_forced_tokens() -> None:
    model = tiny_model()
    engine = Engine(model, native=False, prefix_tree=False, threads=1)
    expected, reference = list(PROMPT + QUESTION), build(model)
    for _ in range(16):
        expected.append(int(reference.logits(expected)[-1].argmax()))
    assert ask(engine, prompt=PROMPT, forced=QUESTION, free=16) == expected[len(PROMPT) :]
    engine.close()


def test_what_the_model_chose_may_as_well_have_been_forced(engine: Engine) -> None:
    cache = [{"technique": "snapkv", "keep": 0.5}, {"technique": "kivi", "bits": 2, "residual": 0}]
    whole = ask(engine, prompt=PROMPT, forced=QUESTION, free=40, cache=cache)
    assert whole[:30] == QUESTION and len(whole) == 70
    again = ask(engine, prompt=PROMPT, forced=whole[:50], free=20, cache=cache)
    assert again == whole


def test_the_cache_is_compressed_before_the_forced_tokens(engine: Engine) -> None:
    cache = [{"technique": "snapkv", "keep": 0.25}]
    behind = ask(engine, prompt=PROMPT, forced=QUESTION, free=30, cache=cache)[30:]
    inside = ask(engine, prompt=PROMPT + QUESTION, sampling={"max_tokens": 30}, cache=cache)
    uncompressed = ask(engine, prompt=PROMPT, forced=QUESTION, free=30, cache=[])[30:]
    assert behind != uncompressed and behind != inside


def test_sampling_counts_from_the_first_forced_token(engine: Engine) -> None:
    sampling = {"temperature": 1.0, "seed": 3}
    free = ask(engine, prompt=PROMPT, sampling=sampling | {"max_tokens": 20})
    assert ask(engine, prompt=PROMPT, forced=free[:7], free=13, sampling=sampling) == free


def test_a_forced_end_of_text_ends_nothing_and_a_free_one_does(engine: Engine) -> None:
    forced = [EOS, *QUESTION, EOS]
    assert ask(engine, prompt=PROMPT, forced=forced, ignore_eos=False) == forced
    said = ask(engine, prompt=PROMPT, forced=forced, free=8)
    stops = {"stop_token_ids": (said[-1],)}
    handle = engine.submit(Request(prompt=PROMPT, forced=forced, free=8, sampling=SamplingParameters.of(**stops)))
    result = handle.result()
    assert result.finish_reason == "stop"
    assert result.token_ids == said[: len(forced) + said[len(forced) :].index(said[-1]) + 1]


def test_free_needs_forced_tokens_and_counts_against_the_context(engine: Engine) -> None:
    with pytest.raises(PromptError, match="free = 3 counts tokens after forced ones; none are forced"):
        Request(prompt=PROMPT, free=3)
    with pytest.raises(PromptError, match="free = -1 is out of range"):
        Request(prompt=PROMPT, forced=QUESTION, free=-1)
    with pytest.raises(PromptError, match="exceeds the context of 4096; use at most 3896"):
        engine.submit(Request(prompt=PROMPT, forced=QUESTION, free=4000))


def test_a_fork_goes_on_alone(engine: Engine) -> None:
    expected = ask(engine, prompt=PROMPT, forced=QUESTION, free=20)
    handle = engine.submit(
        Request(prompt=PROMPT, forced=QUESTION, free=20, sampling=SamplingParameters(ignore_eos=True))
    )
    while len(handle.samples[0].token_ids) < 35:
        engine.step()
    fork = handle.fork()
    assert handle.result().token_ids == expected
    assert fork.result().token_ids == expected[35:]


def test_a_fork_may_be_forced_elsewhere(engine: Engine) -> None:
    cache = [{"technique": "snapkv", "keep": 0.5}, {"technique": "kivi", "bits": 2, "residual": 0}]
    other = text_tokens(80, seed=9)
    expected = ask(engine, prompt=PROMPT, forced=[*QUESTION[:12], *other], free=20, cache=cache)
    sampling = SamplingParameters(ignore_eos=True, logprobs=1)
    handle = engine.submit(Request(prompt=PROMPT, forced=QUESTION, free=20, cache=cache, sampling=sampling))
    while len(handle.samples[0].token_ids) < 12:
        engine.step()
    fork = handle.fork(sampling, forced=other, free=20)
    handle.cancel()
    result = fork.result()
    assert result.token_ids == expected[12:] and len(result.logprobs) == 100
    whole = engine.submit(Request(prompt=PROMPT, forced=expected, cache=cache, sampling=sampling)).result()
    assert [one.logprob for one in result.logprobs] == [one.logprob for one in whole.logprobs[12:]]
    with pytest.raises(PromptError, match="forced names token 100000"):
        started = engine.submit(Request(prompt=PROMPT, forced=QUESTION, sampling=sampling))
        next(iter(started))
        started.fork(sampling, forced=[100_000])
    started.cancel()
