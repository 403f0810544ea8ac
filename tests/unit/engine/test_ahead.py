"""Several tokens in one native call: the same answers, and Python is woken where it must see something."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.plan.plan import NativePlan
from thrifty.engine.plan.rotary_tables import BLOCK
from thrifty.engine.request import Handle, Request
from thrifty.errors import PromptError
from thrifty.formats import kv
from thrifty.kernels import dispatch
from thrifty.models.model import Model

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")

TOKENS = 150
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.9, "seed": 3},
    "filtered": {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 4},
    "penalised": {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "logit_bias": {65: 2.0},
    },
}
CACHES: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "kivi": [{"technique": "kivi", "bits": 2, "residual": 0}],
    "h2o": [{"technique": "h2o", "capacity": 60}],
    "streaming": [{"technique": "streaming", "window": 100}],
}
Calls = list[tuple[int, int]]


@pytest.fixture(params=["packed", "windowed"])
def model(request: pytest.FixtureRequest) -> Model:
    """The models that run natively."""
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Steps that were asked of native code and steps that it did, call by call."""
    seen: Calls = []
    decode = NativePlan.decode

    def spy(plan: NativePlan, sequences: list[Any], steps: int, *more: Any) -> tuple[list[int], Exception | None]:
        tokens, error = decode(plan, sequences, steps, *more)
        seen.append((steps, len(tokens) // len(sequences)))
        return tokens, error

    monkeypatch.setattr(NativePlan, "decode", spy)
    return seen


def make(length: int = 100, cache: str = "full", tokens: int = TOKENS, **sampling: Any) -> Request:
    options = SamplingParameters(**{"max_tokens": tokens, "ignore_eos": True, **sampling})
    return Request(prompt=text_tokens(length, length), sampling=options, cache=CACHES[cache])


def step_by_step(engine: Engine, request: Request) -> list[int]:
    handle = engine.submit(request)
    while not handle.finished:
        engine.step()
    return handle.samples[0].token_ids


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampling", SAMPLING)
def test_answers_are_those_of_single_steps(
    model: Model, make_engine: Callable[..., Engine], calls: Calls, cache: str, sampling: str
) -> None:
    engine = make_engine(model, prefix_tree=False)
    expected = step_by_step(engine, make(cache=cache, **SAMPLING[sampling]))
    assert {steps for steps, _ in calls} == {1}
    calls.clear()
    others = [engine.submit(make(length, tokens=TOKENS + 60, temperature=1.0, seed=length)) for length in (5, 333)]
    assert engine.submit(make(cache=cache, **SAMPLING[sampling])).result().token_ids == expected
    assert cache == "h2o" or max(steps for _, steps in calls) > 16
    for other in others:
        other.cancel()


def test_the_reference_says_what_single_steps_say(packed: Model, make_engine: Callable[..., Engine]) -> None:
    """The path through `Runner.decode`, which native code does not take, gives the same tokens."""
    engine = make_engine(packed, prefix_tree=False)
    found = engine.submit(make(temperature=0.9, seed=3)).result().token_ids
    asked = engine.submit(make(temperature=0.9, seed=3, logprobs=0))
    assert asked.result().token_ids == found


def test_a_token_that_ends_the_answer_ends_the_call(
    packed: Model, make_engine: Callable[..., Engine], calls: Calls
) -> None:
    engine = make_engine(packed, prefix_tree=False)
    whole = engine.submit(make(temperature=1.0, seed=1)).result().token_ids
    last = whole[40]
    place = whole.index(last)
    calls.clear()
    result = engine.submit(make(temperature=1.0, seed=1, stop_token_ids=(last,))).result()
    assert (result.token_ids, result.finish_reason) == (whole[: place + 1], "stop")
    assert sum(steps for _, steps in calls) == place, "the first token is the prompt's, and none was computed in vain"


def test_stop_strings_and_listeners_see_every_token(
    packed: Model, make_engine: Callable[..., Engine], calls: Calls
) -> None:
    engine = make_engine(packed)
    engine.submit(make(stop="no such words", tokens=20)).result()
    heard: list[Any] = []
    engine.submit(make(tokens=30), heard.append)
    engine.submit(make(tokens=20)).result()
    for _ in engine.submit(make(tokens=20)).text():
        pass
    assert {steps for steps, _ in calls} == {1}


def test_calls_end_with_pages_and_before_policies_are_due(
    packed: Model, make_engine: Callable[..., Engine], calls: Calls
) -> None:
    engine = make_engine(packed, prefix_tree=False)
    handle = engine.submit(make(100, tokens=90))
    handle.result()
    asked = [steps for steps, _ in calls if steps > 1]
    assert asked[0] == 64 - 100 % 64
    assert max(asked) <= 64


def test_the_cache_is_as_after_single_steps(model: Model, make_engine: Callable[..., Engine]) -> None:
    def held(patient: bool) -> list[Any]:
        engine = make_engine(model, prefix_tree=False)
        handle = engine.submit(make(tokens=TOKENS))
        while len(handle.samples[0].token_ids) < 1:
            engine.step()
        while len(handle.samples[0].token_ids) < 100:
            with engine._turn:
                engine._take_step(together=patient)
        while len(handle.samples[0].token_ids) < 140:
            engine.step()
        cache = engine.cache_of(handle)
        assert cache is not None
        arrays = [cache.view(layer).keys(head) for layer in range(3) for head in range(2)]
        return [cache.length, cache.tail.rows, *arrays]

    for one, other in zip(held(True), held(False), strict=True):
        assert np.array_equal(one, other)


def test_an_error_behind_the_first_step_comes_after_the_tokens_before_it(
    packed: Model, make_engine: Callable[..., Engine], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page has no room for the last of these steps: what ran stays, the failed step is undone, and the next goes
    through `Runner.decode`, which finds out whose error it is."""
    engine = make_engine(packed, prefix_tree=False)
    alone = engine.submit(make(temperature=0.9, seed=3)).result().token_ids
    monkeypatch.setattr("thrifty.engine.ahead._most", lambda sequence: ahead_of_room(sequence))
    engine = make_engine(packed, prefix_tree=False)
    errors: list[BaseException] = []
    note, run = engine._turn.note_interrupt, engine.runner.decode
    rows: list[int] = []
    monkeypatch.setattr(engine._turn, "note_interrupt", lambda error: (errors.append(error), note(error)))
    monkeypatch.setattr(engine.runner, "decode", lambda batch: (rows.append(len(batch)), run(batch))[1])
    calls.clear()
    assert engine.submit(make(temperature=0.9, seed=3)).result().token_ids == alone
    short = [done for steps, done in calls if done < steps]
    assert short, "some call met a full page"
    assert len(errors) == len(rows) and {len(errors) - len(short)} <= {0, -1}
    assert all("room for 0 more tokens, not 1; push open pages first" in str(error) for error in errors)


def ahead_of_room(sequence: Any) -> int:
    """As many steps as fit into the page, and one more, within the block of rotations."""
    position = len(sequence.tokens) - 1
    room = kv.PAGE - sequence.cache.tail.rows
    return min(sequence.stopper.maximum_tokens - sequence.stopper.count, room + 1, BLOCK - position % BLOCK)


def test_who_waits_for_the_turn_gets_it_after_one_token(packed: Model, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(packed)
    handle: Handle = engine.submit(make(tokens=2000, length=50))
    reader = threading.Thread(target=handle.result)
    reader.start()
    other = engine.submit(make(tokens=3))
    assert len(other.result().token_ids) == 3
    assert not handle.finished
    handle.cancel()
    reader.join()


def test_no_token_that_can_be_chosen_is_the_error_of_its_request(
    packed: Model, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(packed, prefix_tree=False)
    alone = engine.submit(make()).result().token_ids
    fine = engine.submit(make())
    bad = engine.submit(make(logit_bias=dict.fromkeys(range(packed.config.vocabulary_size), -np.inf)))
    with pytest.raises(PromptError, match="lift a ban in logit_bias"):
        bad.result()
    assert fine.result().token_ids == alone
