"""Models with recurrent layers, through the whole engine: nothing changes an answer, and every byte is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import hybrid_config, text_tokens, tiny_model
from tests.unit.engine.logits import alone, ask, check_batches_and_chunks, logits_of

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.kernels import dispatch
from thrifty.models.model import Model

MODELS: dict[str, Any] = {
    "head": {"pattern": "rrar"},
    "channel": {"pattern": "ra", "decay": "channel"},
    "windowed": {"pattern": "arw"},
}
FORCED = SamplingParameters(max_tokens=30, ignore_eos=True)
POLICIES: list[list[dict[str, Any]]] = [
    [{"technique": "snapkv", "capacity": 96}],
    [{"technique": "kivi", "bits": 4}],
    [{"technique": "streaming", "window": 64}],
    [{"technique": "h2o", "capacity": 80}],
    [{"technique": "snapkv", "capacity": 128}, {"technique": "kivi", "bits": 4}],
    [{"technique": "kvzip", "keep": 0.5}],
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    """Packed, so that native code runs it."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    return tiny_model(packed=True, config=hybrid_config(**MODELS[request.param]))


def test_a_request_is_the_same_alone_in_a_batch_and_in_any_chunks(model: Model, make_engine: Any) -> None:
    check_batches_and_chunks(model, make_engine)


def test_plain_answers_without_logits_are_the_same(model: Model, make_engine: Any) -> None:
    sampling = SamplingParameters(max_tokens=70, ignore_eos=True)
    wanted = alone(model, ask(200, 70)).argmax(1)
    plain = make_engine(model).submit(Request(prompt=text_tokens(200), sampling=sampling)).result()
    assert plain.token_ids == wanted.tolist()


def test_native_code_and_the_reference_agree() -> None:
    model = tiny_model(config=hybrid_config("rar", "channel"))
    native, reference = alone(model, ask(150, 12)), alone(model, ask(150, 12), native=False)
    assert np.abs(native - reference).max() < 2e-3 * np.abs(reference).max()


@pytest.mark.parametrize("native", [True, False])
def test_the_next_prompt_goes_on_from_a_snapshot(native: bool, make_engine: Any) -> None:
    model = tiny_model(packed=native, config=hybrid_config("rra"))
    engine = make_engine(model, native=None if native else False)
    first = engine.submit(ask(330))
    logits_of(first)
    again = engine.submit(ask(330))
    wanted = alone(model, ask(330), native=None if native else False)
    assert np.array_equal(logits_of(again), wanted)
    assert again.result().usage.cached_tokens == 320, "its chunks end at the last whole page"


def test_the_answer_is_part_of_the_next_turn(make_engine: Any) -> None:
    model = tiny_model(packed=True, config=hybrid_config())
    engine = make_engine(model)
    answer = engine.submit(ask(100, 150)).result().token_ids
    prompt = [*text_tokens(100), *answer, *text_tokens(20, 9)]
    sampling = SamplingParameters(max_tokens=20, ignore_eos=True)
    turn = Request(prompt=prompt, sampling=sampling, logits=True)
    handle = engine.submit(turn)
    assert np.array_equal(logits_of(handle), alone(model, turn))
    assert handle.result().usage.cached_tokens == 192


@pytest.mark.parametrize("cache", POLICIES, ids=lambda cache: "+".join(one["technique"] for one in cache))
@pytest.mark.parametrize("pattern", ["rrar", "ra", "ara"])
def test_policies_act_on_the_attention_layers(pattern: str, cache: list[dict[str, Any]], make_engine: Any) -> None:
    model = tiny_model(packed=True, config=hybrid_config(pattern))
    engine = make_engine(model)
    request = ask(280, 70, cache=cache)
    expected = alone(model, request)
    assert not np.array_equal(expected, alone(model, ask(280, 70)))
    handles = [engine.submit(request), engine.submit(ask(90, 30, seed=3)), engine.submit(ask(280, 70, cache=cache))]
    for handle in (handles[0], handles[2]):
        assert np.array_equal(logits_of(handle), expected)


def test_samples_share_the_prompt_and_go_apart(model: Model, make_engine: Any) -> None:
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True, temperature=1.0, seed=5)
    request = Request(prompt=text_tokens(100), sampling=sampling, samples=3)
    answers = [sample.token_ids for sample in make_engine(model).submit(request).result().samples]
    assert len({tuple(answer) for answer in answers}) == 3
    engine = make_engine(model)
    again = [sample.token_ids for sample in engine.submit(request).result().samples]
    assert answers == again
    for sample in answers:  # each went on as a sequence of its own does
        handle = engine.submit(Request(prompt=text_tokens(100), sampling=FORCED, forced=sample, logits=True))
        forced = logits_of(handle)
        whole = [*text_tokens(100), *sample[:-1]]
        turn = Request(prompt=whole, sampling=SamplingParameters(max_tokens=1, ignore_eos=True), logits=True)
        assert np.array_equal(forced[-1], alone(model, turn)[0])


def test_who_is_parked_goes_on_as_if_nothing_had_been(model: Model, make_engine: Any) -> None:
    expected = alone(model, ask(200, 100))
    for steps in (4, 30):
        engine = make_engine(model, prefix_tree=False)
        other = engine.submit(ask(50, 200, seed=2))
        handle = engine.submit(ask(200, 100))
        for _ in range(steps):
            engine.step()
        assert engine._scheduler.park_youngest() is not None
        engine.memory.cache.pressure(1 << 30)
        assert {segment.tier for segment in engine.cache_of(handle).segments()} == {"disk"}
        assert np.array_equal(logits_of(handle), expected)
        assert handle.usage.preemptions == 1
        other.cancel()


def test_the_ledger_knows_the_states(model: Model, make_engine: Any) -> None:
    engine = make_engine(model, prefix_tree=False)
    before = engine.memory.ledger.bytes_of("cache")
    handle = engine.submit(ask(65, 4))
    engine.step()
    (sequence,) = engine.memory.cache.sequences
    assert sequence.states is not None
    spans = sum(segment.nbytes for segment in sequence.segments())
    assert engine.memory.ledger.bytes_of("cache") - before == spans
    numbers = sum(engine.memory.cache.model.states)
    assert 2 * 4 * numbers <= sequence.states.nbytes < 2 * 4 * numbers + 2 * 4096 * 2
    assert spans <= engine.memory.cache.footprint((), 65, 69).peak_bytes
    logits_of(handle)
    assert engine.memory.ledger.bytes_of("cache") == before


def test_drafts_are_refused_with_a_reason(make_engine: Any) -> None:
    engine = make_engine(tiny_model(packed=True, config=hybrid_config()))
    with pytest.raises(RecipeError, match=r"drafts, but the model's recurrent layers cannot go back"):
        engine.submit(ask(40, decoding=[{"technique": "prompt-lookup"}]))
    plain = make_engine(tiny_model(packed=True), drafts=("recall-hybrid",))
    with pytest.raises(RecipeError, match="'recall-hybrid' has recurrent layers"):
        plain.submit(ask(40, decoding=[{"technique": "speculative", "draft": "recall-hybrid"}]))
