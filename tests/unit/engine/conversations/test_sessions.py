"""Sessions: a conversation goes on from its own compressed cache, and nothing is lost or left by it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from tests.tiny import text_tokens
from tests.unit.engine.conversations.ending import close

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request, Result
from thrifty.errors import PromptError, QueueFullError, SessionError
from thrifty.models.model import Model

RECIPES: dict[str, list[dict[str, Any]]] = {
    "full": [],
    "kivi": [{"technique": "kivi", "bits": 2, "residual": 64}],
    "streaming": [{"technique": "streaming", "window": 64}],
    "snapkv": [{"technique": "snapkv", "keep": 0.4}],
    "ada-kv": [{"technique": "ada-kv", "keep": 0.4}],
    "h2o": [{"technique": "h2o", "keep": 0.3}],
    "minikv": [{"technique": "minikv"}],
    "fastgen": [{"technique": "fastgen", "recovery": 0.8}],
    "kvzip": [{"technique": "kvzip", "keep": 0.4, "chunk": 100}],
    "snapkv + kivi": [{"technique": "snapkv", "keep": 0.6}, {"technique": "kivi", "bits": 4, "residual": 64}],
}
PROMPT, MORE, ANSWER = 200, 70, 70
Tables = list[dict[str, Any]]


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    made = Engine(model)
    yield made
    close(made)


def ask(tokens: list[int], recipe: Tables, session: str | None = "a", steps: int = ANSWER, **options: Any) -> Request:
    sampling = SamplingParameters.of(max_tokens=steps, ignore_eos=True, logprobs=0)
    return Request(prompt=tokens, sampling=sampling, cache=recipe, session=session, **options)


def talk(engine: Engine, recipe: Tables, session: str = "a", turns: int = 3, seed: int = 0) -> list[Result]:
    """A conversation of some turns; each prompt is all that was said, and something new."""
    tokens, results = text_tokens(PROMPT, seed), []
    for turn in range(turns):
        results.append(engine.submit(ask(tokens, recipe, session)).result())
        tokens = [*tokens, *results[-1].token_ids, *text_tokens(MORE, 50 + seed + turn)]
    return results


@pytest.mark.parametrize("name", RECIPES)
def test_a_session_goes_on_from_all_rows_that_it_has(engine: Engine, name: str) -> None:
    results = talk(engine, RECIPES[name])
    read = [result.usage.cached_tokens for result in results]
    assert read == [0, PROMPT + ANSWER - 1, PROMPT + 2 * ANSWER + MORE - 1]
    (facts,) = engine.sessions.facts()
    assert (facts.name, facts.turns, facts.busy) == ("a", 3, False)
    assert facts.tokens == PROMPT + 2 * MORE + 3 * ANSWER and facts.memory > 0
    usage = engine.usage()
    assert usage.bytes_of("sessions") > 0 and usage.bytes_of("cache") == 0, "a category of its own"
    assert engine.memory.ledger.committed == engine.memory.ledger.current, "nothing is promised to it"


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_sessions_of_a_batch_say_what_each_says_alone(model: Model, engine: Engine, name: str) -> None:
    recipe, expected = RECIPES[name], []
    for seed in range(3):
        single = Engine(model)
        expected.append([result.token_ids for result in talk(single, recipe, seed=seed)])
        close(single)
    tokens, answers = [text_tokens(PROMPT, seed) for seed in range(3)], [[], [], []]
    for turn in range(3):
        handles = [engine.submit(ask(own, recipe, f"s{seed}")) for seed, own in enumerate(tokens)]
        for seed, handle in enumerate(handles):
            answers[seed].append(handle.result().token_ids)
            tokens[seed] = [*tokens[seed], *answers[seed][-1], *text_tokens(MORE, 50 + seed + turn)]
    assert answers == expected


def test_the_full_cache_says_the_same_with_a_session_and_without(engine: Engine) -> None:
    told = talk(engine, [])
    tokens = text_tokens(PROMPT)
    for turn, result in enumerate(told):
        plain = engine.submit(ask(tokens, [], None)).result()
        assert plain.logprobs == result.logprobs
        tokens = [*tokens, *result.token_ids, *text_tokens(MORE, 50 + turn)]


def test_a_share_is_of_all_that_was_read_and_not_halved_with_every_turn(engine: Engine) -> None:
    recipe = [{"technique": "snapkv", "keep": 0.5}]
    tokens = text_tokens(PROMPT)
    for turn in range(4):
        tokens = [*tokens, *engine.submit(ask(tokens, recipe, steps=4)).result().token_ids, *text_tokens(MORE, turn)]
    handle = engine.submit(ask(tokens, recipe))
    while handle.usage.generated_tokens < 2:
        engine.step()
    cache = engine.cache_of(handle)
    assert cache is not None
    layer = cache.policy_layers[0]
    assert len(tokens) // 2 <= cache.slots(layer) <= len(tokens) // 2 + 4
    handle.cancel()


def test_what_a_turn_held_is_told(engine: Engine) -> None:
    assert all(result.usage.kv_bytes > 0 for result in talk(engine, RECIPES["kivi"]))


def test_capacities_that_are_left_to_the_budget_stay_those_of_the_first_turn(engine: Engine) -> None:
    recipe, tokens = [{"technique": "streaming", "window": "budget"}], text_tokens(PROMPT)
    for turn in range(3):
        result = engine.submit(ask(tokens, recipe, cache_bytes=2_000_000)).result()
        assert (result.usage.cached_tokens > 0) == (turn > 0)
        tokens = [*tokens, *result.token_ids, *text_tokens(MORE, turn)]
    with pytest.raises(SessionError, match="another recipe"):
        engine.submit(ask(tokens, [{"technique": "streaming", "sinks": 3, "window": "budget"}], cache_bytes=2_000_000))


@pytest.mark.parametrize("place", [1, 10, 23])
def test_a_stop_string_is_not_part_of_what_was_said(engine: Engine, place: int) -> None:
    """The text that a client sends back ends before it."""
    recipe = RECIPES["streaming"]
    said = engine.submit(ask(text_tokens(PROMPT), recipe, session=None)).result().text
    stop = said[place : place + 3]
    sampling = SamplingParameters.of(max_tokens=ANSWER, ignore_eos=True, stop=[stop])
    first = engine.submit(Request(prompt=text_tokens(PROMPT), sampling=sampling, cache=recipe, session="a")).result()
    assert first.finish_reason == "stop" and first.text == said[: said.index(stop)]
    kept = engine.memory.sessions.idle("a", "").tokens
    tokenizer = engine.model.require_tokenizer()
    assert kept[:PROMPT] == tuple(text_tokens(PROMPT))
    assert tokenizer.decode(list(kept[PROMPT:]), skip_special=False).rstrip("\ufffd") == first.text.rstrip("\ufffd")
    result = engine.submit(ask([*kept, *text_tokens(MORE, 8)], recipe)).result()
    assert result.usage.cached_tokens == len(kept) - 1


def test_what_a_prompt_must_begin_with_is_said(engine: Engine) -> None:
    recipe = RECIPES["kivi"]
    (first,) = talk(engine, recipe, turns=1)
    good = [*text_tokens(PROMPT), *first.token_ids, *text_tokens(MORE, 5)]
    other = [*good[:50], 1 + good[50] % 200, *good[51:]]
    with pytest.raises(SessionError, match="read 269 tokens, and this prompt of 340 differs from them at token 50"):
        engine.submit(ask(other, recipe))
    with pytest.raises(SessionError, match="another recipe"):
        engine.submit(ask(good, RECIPES["snapkv"]))
    with pytest.raises(SessionError, match="other steering"):
        engine.submit(ask(good, recipe, steering={0: [0.5] * 128}))
    with pytest.raises(SessionError, match="differs from them at token 100"):
        engine.submit(ask(good[:100], recipe))
    assert engine.submit(ask(good, recipe)).result().usage.cached_tokens == PROMPT + ANSWER - 1


def test_the_same_text_in_other_tokens_goes_on(model: Model) -> None:
    class Pairs:
        """A tokenizer that also knows the letters a and b together as 270."""

        @staticmethod
        def decode(ids: list[int], skip_special: bool = True) -> str:
            return "".join("ab" if token == 270 else chr(token) for token in ids)

    from thrifty.engine.sessions.session import aligned

    held = [10, 97, 98, 99]
    assert aligned(held, [10, 270, 99, 11], Pairs()) == (10, 97, 98, 99, 11)
    assert aligned(held, [10, 97, 98, 99, 11, 12], Pairs()) == (10, 97, 98, 99, 11, 12)
    assert aligned(held, [10, 270, 100, 11], Pairs()) is None
    assert aligned(held, [10, 270, 99], Pairs()) is None, "nothing is new"
    assert aligned([10, 97], [10, 270, 99], Pairs()) is None, "a token across the border"


def test_one_request_at_a_time(engine: Engine) -> None:
    handle = engine.submit(ask(text_tokens(PROMPT), []))
    with pytest.raises(SessionError, match="answering another request") as error:
        engine.submit(ask(text_tokens(PROMPT), []))
    assert error.value.code == "session_busy"
    with pytest.raises(SessionError, match="answering"):
        engine.sessions.drop("a")
    handle.result()
    assert engine.sessions.drop("a") and not engine.sessions.drop("a")
    assert engine.usage().bytes_of("sessions") == 0


@pytest.mark.parametrize("name", ["full", "kivi", "snapkv", "h2o"])
def test_a_cancelled_answer_leaves_the_session_as_it_was(engine: Engine, name: str) -> None:
    recipe = RECIPES[name]
    (first,) = talk(engine, recipe, turns=1)
    tokens = [*text_tokens(PROMPT), *first.token_ids, *text_tokens(MORE, 50)]
    handle = engine.submit(ask(tokens, recipe))
    while handle.usage.generated_tokens < 66:
        engine.step()
    handle.cancel()
    (facts,) = engine.sessions.facts()
    assert (facts.tokens, facts.turns, facts.busy) == (PROMPT + ANSWER, 1, False)
    again = engine.submit(ask(tokens, recipe)).result()
    assert again.usage.cached_tokens == PROMPT + ANSWER - 1
    assert again.token_ids[:66] == handle.samples[0].token_ids[:66]


def test_an_error_leaves_the_session_as_it_was(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.cache.policies.kivi import Kivi

    (first,) = talk(engine, RECIPES["kivi"], turns=1)
    tokens = [*text_tokens(PROMPT), *first.token_ids, *text_tokens(MORE, 50)]
    with monkeypatch.context() as patch:
        patch.setattr(Kivi, "after_prefill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.submit(ask(tokens, RECIPES["kivi"])).result()
    engine.step()
    assert engine.sessions.facts()[0].turns == 1
    assert engine.submit(ask(tokens, RECIPES["kivi"])).result().usage.cached_tokens == PROMPT + ANSWER - 1


def test_a_first_answer_that_is_cancelled_leaves_no_session(engine: Engine) -> None:
    handle = engine.submit(ask(text_tokens(PROMPT), RECIPES["kivi"]))
    engine.step()
    handle.cancel()
    assert engine.sessions.facts() == [] and len(engine.sessions) == 0
    assert len(engine.submit(ask(text_tokens(PROMPT, 3), [])).result().token_ids) == ANSWER, "the name is as new"


def test_equal_names_under_other_salts_are_other_sessions(engine: Engine) -> None:
    engine.submit(ask(text_tokens(PROMPT), [], salt="x")).result()
    other = engine.submit(ask(text_tokens(PROMPT, 1), [], salt="y")).result()
    assert other.usage.cached_tokens == 0
    assert [len(engine.sessions.facts(salt)) for salt in ("x", "y", "")] == [1, 1, 0]
    assert not engine.sessions.drop("a") and engine.sessions.drop("a", "x")


def test_the_bound_drops_the_least_used_and_says_so_once(model: Model) -> None:
    probe = Engine(model)
    probe.submit(ask(text_tokens(PROMPT), RECIPES["kivi"])).result()
    size = probe.sessions.nbytes
    close(probe)
    engine = Engine(model, session_bytes=2 * size + size // 2)
    for place, name in enumerate("abc"):
        engine.submit(ask(text_tokens(PROMPT, place), RECIPES["kivi"], name)).result()
    assert [facts.name for facts in engine.sessions.facts()] == ["b", "c"]
    with pytest.raises(SessionError, match="'a' is gone: sessions may hold .*Send the whole conversation") as error:
        engine.submit(ask(text_tokens(PROMPT), RECIPES["kivi"], "a"))
    assert error.value.code == "session_expired"
    assert engine.submit(ask(text_tokens(PROMPT), RECIPES["kivi"], "a")).result().usage.cached_tokens == 0
    close(engine)


def test_under_pressure_sessions_move_to_disk_and_come_back(model: Model) -> None:
    recipe = RECIPES["kivi"]
    free = Engine(model)
    expected = talk(free, recipe, turns=2)
    need = free.memory.footprint((), 900, 1000).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need, prefix_tree=False)
    (first,) = talk(engine, recipe, turns=1)
    engine.submit(ask(text_tokens(900, 7), [], None, steps=100)).result()
    (facts,) = engine.sessions.facts()
    assert facts.disk > 0, "it made room"
    tokens = [*text_tokens(PROMPT), *first.token_ids, *text_tokens(MORE, 50)]
    second = engine.submit(ask(tokens, recipe)).result()
    assert second.usage.cached_tokens == PROMPT + ANSWER - 1
    assert second.logprobs == expected[1].logprobs
    close(engine)


def test_where_the_disk_takes_nothing_sessions_go_and_say_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Engine(model)
    need = free.memory.footprint((), 900, 1000).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need, prefix_tree=False)
    talk(engine, RECIPES["kivi"], turns=1)
    disk = engine.memory.cache.tiers.disk
    assert disk is not None
    monkeypatch.setattr(disk, "_extents", type(disk._extents)(4096, 4096))
    engine.submit(ask(text_tokens(900, 7), [], None, steps=100)).result()
    assert engine.sessions.facts() == []
    with pytest.raises(SessionError, match="other requests needed its memory"):
        engine.submit(ask(text_tokens(PROMPT), RECIPES["kivi"]))
    close(engine)


def test_a_budget_for_one_request_goes_on_without_room_for_two(model: Model) -> None:
    recipe, free = RECIPES["kivi"], Engine(model)
    expected = talk(free, recipe, turns=3)
    policies = free.intake._policies(recipe)
    total = PROMPT + 3 * ANSWER + 2 * MORE
    need = free.memory.footprint(policies, total - ANSWER, total).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need, prefix_tree=False)
    assert [result.logprobs for result in talk(engine, recipe, turns=3)] == [one.logprobs for one in expected]
    close(engine)


def test_a_session_that_goes_while_its_request_waits_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: the oldest request comes first, and nobody waits for ever."""
    recipe, free = RECIPES["full"], Engine(model)
    need = free.memory.footprint((), 700, 760).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    tokens = {name: text_tokens(150, seed) for seed, name in enumerate("abc")}
    disk = engine.memory.cache.tiers.disk

    def full(view: memoryview, start: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(disk, "_write_all", full)
    expired = 0
    for turn in range(4):
        handles = {}
        for name, own in tokens.items():
            try:
                handles[name] = engine.submit(ask(own, recipe, name, steps=40))
            except SessionError as error:
                assert error.code == "session_expired"
        for name, handle in handles.items():
            try:
                tokens[name] = [*tokens[name], *handle.result().token_ids, *text_tokens(60, turn)]
            except SessionError as error:
                assert error.code == "session_expired"
                expired += 1
    assert expired
    close(engine)


@pytest.mark.parametrize("causal", [False, True])
def test_sessions_that_take_turns_in_a_budget_for_one_lose_no_answer(model: Model, causal: bool) -> None:
    recipe, free = [{"technique": "streaming", "window": 100, "causal": causal}], Engine(model)
    need = free.memory.footprint(free.intake._policies(recipe), 700, 760).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need)
    tokens = {name: text_tokens(150, seed) for seed, name in enumerate("abc")}
    for turn in range(3):
        handles = {}
        for name, own in tokens.items():
            try:
                handles[name] = engine.submit(ask(own, recipe, name, steps=40))
            except SessionError as error:
                assert error.code == "session_expired"
        for name, handle in handles.items():
            tokens[name] = [*tokens[name], *handle.result().token_ids, *text_tokens(60, turn)]
    close(engine)


def test_a_queue_that_is_full_begins_no_session(model: Model) -> None:
    engine = Engine(model, queue=1)
    waiting = engine.submit(ask(text_tokens(PROMPT), [], None))
    with pytest.raises(QueueFullError):
        engine.submit(ask(text_tokens(PROMPT), []))
    assert len(engine.sessions) == 0
    waiting.cancel()
    close(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session": ""}, "session = '' .str. is no name; use 1 to 128"),
        ({"session": "a" * 129}, "is no name"),
        ({"session": "a\n"}, "is no name"),
        ({"session": "a", "samples": 2}, "samples = 2, but a session"),
    ],
)
def test_what_is_no_session_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Request(prompt=[1], **options)


def test_drafts_and_forks_beside_a_session(engine: Engine) -> None:
    decoding = [{"technique": "prompt-lookup"}]
    tokens = [*text_tokens(60), *text_tokens(60), *text_tokens(60)]
    handle = engine.submit(ask(tokens, RECIPES["kivi"], decoding=decoding))
    while handle.usage.generated_tokens < 5:
        engine.step()
    fork = handle.fork(sampling=SamplingParameters.of(max_tokens=5))
    first = handle.result()
    assert len(fork.result().token_ids) <= 5
    tokens = [*tokens, *first.token_ids, *text_tokens(MORE, 3)]
    second = engine.submit(ask(tokens, RECIPES["kivi"], decoding=decoding)).result()
    assert second.usage.cached_tokens == 180 + ANSWER - 1
