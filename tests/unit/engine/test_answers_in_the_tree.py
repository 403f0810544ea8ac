"""The next turn of a chat finds the answer of the one before in the prefix tree, and changes nothing by it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request
from thrifty.formats.kv import PAGE
from thrifty.kernels import dispatch
from thrifty.models.model import Model

PROMPT, ANSWER = 100, 150
LENGTHS: dict[str, Any] = {"global": (), "windowed": (100, None, 100)}


@pytest.fixture(autouse=True)
def without_leftovers() -> Iterator[None]:
    """Engines refer to themselves, and each reserves address space."""
    yield
    gc.collect()


@pytest.fixture(scope="module", params=LENGTHS)
def model(request: pytest.FixtureRequest) -> Model:
    if dispatch.native() is None:
        pytest.skip("the plain path publishes prompts alone")
    return tiny_model(packed=True, windows=LENGTHS[request.param])


def ask(tokens: list[int], steps: int = ANSWER, **options: Any) -> Request:
    outer = {name: options.pop(name) for name in ("samples", "share_prefix", "cache", "salt") if name in options}
    sampling = SamplingParameters.of(max_tokens=steps, ignore_eos=True, logprobs=2, **options)
    return Request(prompt=tokens, sampling=sampling, **outer)


def next_turn(prompt: list[int], answer: list[int]) -> list[int]:
    return [*prompt, *answer, *text_tokens(20, 9)]


def computed(prompt: int, answer: int) -> int:
    """Tokens in whole pages: the last token of an answer has no row."""
    return PAGE * ((prompt + answer - 1) // PAGE)


def alone(model: Model, request: Request) -> Any:
    return Engine(model, prefix_tree=False).submit(request).result()


@pytest.mark.long
@pytest.mark.parametrize("samples", [1, 3])
def test_the_next_turn_shares_the_answer_and_says_what_it_would_say_alone(model: Model, samples: int) -> None:
    engine, prompt = Engine(model), text_tokens(PROMPT)
    first = engine.submit(ask(prompt, samples=samples, temperature=1.0, seed=5)).result()
    for sample in first.samples:
        request = ask(next_turn(prompt, sample.token_ids), 30)
        second = engine.submit(request).result()
        assert second.usage.cached_tokens >= computed(PROMPT, ANSWER)
        assert second.logprobs == alone(model, request).logprobs


@pytest.mark.long
def test_answers_of_a_batch_of_forks_and_of_cancelled_requests_are_shared(model: Model) -> None:
    engine, prompts = Engine(model), [text_tokens(PROMPT), text_tokens(70, 3)]
    handles = [engine.submit(ask(prompt, temperature=1.0, seed=place)) for place, prompt in enumerate(prompts)]
    while len(handles[0].samples[0].token_ids) < 90:
        engine.step()
    prompts.append(prompts[0])
    handles.append(handles[0].fork(sampling=SamplingParameters.of(temperature=1.0, seed=8, max_tokens=60)))
    before = list(handles[0].samples[0].token_ids)
    handles[2].result()
    handles[1].cancel()
    handles[0].result()
    answers = [list(handle.samples[0].token_ids) for handle in handles]
    answers[2] = before + answers[2]
    for prompt, answer in zip(prompts, answers, strict=True):
        request = ask(next_turn(prompt, answer), 10)
        result = engine.submit(request).result()
        assert result.usage.cached_tokens >= computed(len(prompt), len(answer)) > len(prompt)
        assert result.logprobs == alone(model, request).logprobs


def only_the_prompt(model: Model, end: Callable[[Engine, Handle], None], **options: Any) -> None:
    """What is published of a request that ends so is its prompt at most."""
    engine, prompt = Engine(model), text_tokens(PROMPT)
    handle = engine.submit(ask(prompt, **options))
    end(engine, handle)
    request = ask(next_turn(prompt, list(handle.samples[0].token_ids)), 3, salt=options.get("salt", ""))
    result = engine.submit(request).result()
    assert result.usage.cached_tokens <= PROMPT
    assert result.logprobs == alone(model, request).logprobs


@pytest.mark.parametrize(
    "options", [{"share_prefix": False}, {"cache": [{"technique": "kivi", "bits": 4, "residual": 64}]}]
)
def test_who_shares_nothing_or_compresses_publishes_no_answer(model: Model, options: dict[str, Any]) -> None:
    only_the_prompt(model, lambda _, handle: handle.result() and None, **options)


def test_an_answer_that_an_error_ended_is_not_published(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(engine: Engine, handle: Handle) -> None:
        while len(handle.samples[0].token_ids) < 100:
            engine.step()
        (sequence,) = engine._scheduler.sequences()
        monkeypatch.setattr(sequence.sampler, "commit", lambda token: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            handle.result()

    only_the_prompt(model, fails)


def test_another_salt_finds_no_answer(model: Model) -> None:
    engine, prompt = Engine(model), text_tokens(PROMPT)
    answer = engine.submit(ask(prompt, salt="a")).result().token_ids
    assert engine.submit(ask(next_turn(prompt, answer), 2, salt="b")).result().usage.cached_tokens == 0


def test_the_plain_runner_publishes_prompts_alone() -> None:
    engine, prompt = Engine(tiny_model(), native=False), text_tokens(70)
    answer = engine.submit(ask(prompt, 70)).result().token_ids
    assert engine.submit(ask(next_turn(prompt, answer), 2)).result().usage.cached_tokens == PAGE


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_an_error_in_publishing_frees_the_sequence_all_the_same(
    model: Model, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompt = Engine(model), text_tokens(PROMPT)
    handle = engine.submit(ask(prompt, 40))
    while len(handle.samples[0].token_ids) < 39:
        engine.step()

    def fails(memory: EngineMemory, sequence: Any) -> None:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(EngineMemory, "publish_answer", fails)
        if issubclass(kind, Exception):
            engine.step()
        else:
            with pytest.raises(kind):
                engine.step()
    assert handle.finished and handle.error is None and not engine.busy
    assert engine.memory.cache.tree is not None
    engine.memory.cache.tree.clear()
    assert engine.memory.cache.tiers.arena.used == 0 and engine.memory.ledger.committed == engine.memory.ledger.current


@pytest.mark.long
def test_answers_in_the_tree_give_way_where_memory_is_short(model: Model) -> None:
    free = Engine(model)
    need = free.memory.footprint((), PROMPT, PROMPT + ANSWER).peak_bytes
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    for seed in range(4):
        request = ask(text_tokens(PROMPT, seed))
        assert engine.submit(request).result().logprobs == alone(model, request).logprobs


def test_rows_of_logits_are_given_back_with_their_request() -> None:
    """What is accepted at exactly its need ends, whoever ran before it."""
    model = tiny_model(packed=True)
    free = Engine(model)
    need = free.memory.footprint((), 40, 40 + 100).peak_bytes
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    together = [engine.submit(ask(text_tokens(20, seed), 30)) for seed in range(3)]
    assert [len(handle.result().token_ids) for handle in together] == [30] * 3
    assert engine.memory.ledger.bytes_of("workspace") == engine.memory.workspace
    assert len(engine.submit(ask(text_tokens(40), 100)).result().token_ids) == 100
    if engine.runner.name == "native":
        assert engine.runner.plan._logits.nbytes == 0, "the buffers, too"  # type: ignore[attr-defined]
