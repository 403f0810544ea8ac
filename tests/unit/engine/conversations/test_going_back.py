"""A session whose last turn is asked again, or edited, goes back to where it stood before that turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.tiny import text_tokens
from tests.unit.engine.conversations.ending import close
from tests.unit.engine.conversations.test_sessions import ANSWER, MORE, PROMPT, RECIPES, Tables, ask

from thrifty.engine.engine import Engine
from thrifty.engine.request import Result
from thrifty.engine.sessions.points import MOST
from thrifty.engine.sessions.sessions import Sessions
from thrifty.errors import SessionError
from thrifty.models.model import Model


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    made = Engine(model)
    yield made
    close(made)


def turns(engine: Engine, recipe: Tables, count: int) -> tuple[list[list[int]], list[Result]]:
    """A conversation: the prompts, and what was answered."""
    prompts, results = [text_tokens(PROMPT)], []
    for turn in range(count):
        results.append(engine.submit(ask(prompts[-1], recipe)).result())
        prompts.append([*prompts[-1], *results[-1].token_ids, *text_tokens(MORE, 50 + turn)])
    return prompts[:count], results


@pytest.mark.parametrize("name", RECIPES)
def test_the_last_turn_asked_again_says_the_same_from_the_same_rows(engine: Engine, name: str) -> None:
    prompts, results = turns(engine, RECIPES[name], 3)
    again = engine.submit(ask(prompts[-1], RECIPES[name])).result()
    assert again.token_ids == results[-1].token_ids
    if RECIPES[name]:
        assert again.usage.cached_tokens == results[-1].usage.cached_tokens == PROMPT + 2 * ANSWER + MORE - 1
    (facts,) = engine.sessions.facts()
    assert facts.turns == (3 if RECIPES[name] else 1), "the full cache is read anew, from the prefix tree"


@pytest.mark.parametrize("name", ["full", "kivi", "snapkv", "h2o"])
def test_an_edited_turn_is_as_if_the_old_one_had_never_been(model: Model, engine: Engine, name: str) -> None:
    recipe = RECIPES[name]
    prompts, results = turns(engine, recipe, 2)
    edited = [*prompts[0], *results[0].token_ids, *text_tokens(MORE, 99)]
    told = engine.submit(ask(edited, recipe)).result()
    straight = Engine(model)
    straight.submit(ask(prompts[0], recipe)).result()
    assert straight.submit(ask(edited, recipe)).result().logprobs == told.logprobs
    close(straight)
    further = [*edited, *told.token_ids, *text_tokens(MORE, 7)]
    assert engine.submit(ask(further, recipe)).result().usage.cached_tokens == len(edited) + ANSWER - 1
    (facts,) = engine.sessions.facts()
    assert facts.turns == (3 if recipe else 2) and facts.tokens == len(further) + ANSWER


@pytest.mark.parametrize("name", ["full", "kivi", "snapkv"])
def test_the_first_turn_asked_again_begins_the_session_anew(engine: Engine, name: str) -> None:
    prompts, results = turns(engine, RECIPES[name], 2)
    again = engine.submit(ask(prompts[0], RECIPES[name])).result()
    assert again.token_ids == results[0].token_ids
    (facts,) = engine.sessions.facts()
    assert (facts.turns, facts.tokens) == (1, PROMPT + ANSWER)
    assert engine.submit(ask(prompts[1], RECIPES[name])).result().token_ids == results[1].token_ids


@pytest.mark.long
def test_turn_by_turn_it_goes_back_to_each_that_is_kept_and_no_farther(engine: Engine) -> None:
    recipe = RECIPES["kivi"]
    prompts, results = turns(engine, recipe, MOST + 3)
    for turn in range(MOST + 2, 2, -1):
        again = engine.submit(ask(prompts[turn], recipe)).result()
        assert again.token_ids == results[turn].token_ids
        assert engine.sessions.facts()[0].turns == turn + 1
    engine.sessions.drop("a")
    prompts, _ = turns(engine, recipe, MOST + 3)
    with pytest.raises(SessionError, match=f"before the last {MOST} turns that it can go back") as error:
        engine.submit(ask(prompts[1], recipe))
    assert error.value.code == "session_mismatch" and "drop the session, or use another name" in str(error.value)


def test_another_conversation_is_refused_as_ever(engine: Engine) -> None:
    prompts, _ = turns(engine, RECIPES["kivi"], 2)
    other = [1 + prompts[0][0] % 200, *prompts[0][1:]]
    for tokens in (other, prompts[0][:100], [*prompts[0][:150], *text_tokens(100, 9)]):
        with pytest.raises(SessionError, match="differs from them"):
            engine.submit(ask(tokens, RECIPES["kivi"]))


@pytest.mark.parametrize("name", ["full", "kivi", "snapkv"])
def test_a_cancelled_answer_leaves_the_session_where_it_stood(engine: Engine, name: str) -> None:
    prompts, results = turns(engine, RECIPES[name], 2)
    handle = engine.submit(ask(prompts[-1], RECIPES[name]))
    while handle.usage.generated_tokens < 5:
        engine.step()
    handle.cancel()
    (facts,) = engine.sessions.facts()
    assert (facts.turns, facts.busy) == (2, False)
    further = [*prompts[-1], *results[-1].token_ids, *text_tokens(MORE, 8)]
    assert engine.submit(ask(further, RECIPES[name])).result().usage.cached_tokens == len(further) - MORE - 1


def test_what_it_can_go_back_to_is_held_in_the_ledger_and_goes_first(model: Model) -> None:
    recipe, probe = RECIPES["snapkv"], Engine(model)
    turns(probe, recipe, 1)
    one = probe.sessions.nbytes
    probe.sessions.drop("a")
    turns(probe, recipe, 3)
    (session,) = probe.memory.sessions._sessions.values()
    whole, now = probe.sessions.nbytes, session.now.cache.nbytes  # type: ignore[union-attr]
    assert len(session.points) == 2 and whole > now + one // 2, "older turns' rows are others"
    close(probe)
    engine = Engine(model, session_bytes=now + now // 4)
    prompts, _ = turns(engine, recipe, 3)
    assert engine.sessions.nbytes <= now + now // 4 and len(engine.sessions.facts()) == 1
    with pytest.raises(SessionError, match="differs"):
        engine.submit(ask(prompts[-1], recipe))
    close(engine)


def test_in_a_budget_for_one_it_goes_back_and_forgets_what_came_behind(model: Model) -> None:
    recipe, free = RECIPES["kivi"], Engine(model)
    prompts, results = turns(free, recipe, 3)
    policies = free.intake._policies(recipe)
    total = len(prompts[-1]) + ANSWER
    need = free.memory.footprint(policies, total - ANSWER, total).peak_bytes
    close(free)
    engine = Engine(model, memory=model.nbytes + free.memory.workspace + need, prefix_tree=False)
    told = turns(engine, recipe, 3)[1]
    assert [result.token_ids for result in told] == [result.token_ids for result in results]
    try:
        again = engine.submit(ask(prompts[-1], recipe)).result()
        assert again.token_ids == results[-1].token_ids
    except SessionError as error:
        assert error.code == "session_mismatch", "its points made room"
    close(engine)


def test_what_the_running_one_could_go_back_to_gives_way_where_nothing_else_does(engine: Engine) -> None:
    recipe = RECIPES["snapkv"]
    prompts, results = turns(engine, recipe, 3)
    engine.sessions.drop("a")
    assert turns(engine, recipe, 2)[1][-1].token_ids == results[1].token_ids
    sessions = engine.memory.sessions
    (session,) = sessions._sessions.values()
    handle = engine.submit(ask(prompts[-1], recipe))
    while handle.usage.generated_tokens < 5:
        engine.step()
    assert len(session.points) == 1
    sessions._expire(1 << 40)  # the disk is full
    assert len(session.points) == 0 and session.cache is not None, "a cancelled answer would leave it as it was"
    assert handle.result().token_ids == results[-1].token_ids
    assert engine.sessions.facts()[0].turns == 3


def test_the_bound_is_kept_with_one_count_of_all_sessions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each count looks at every segment of every session."""
    recipe, nbytes = RECIPES["kivi"], vars(Sessions)["nbytes"].fget
    counts: list[Sessions] = []

    def counted(own: Sessions) -> int:
        counts.append(own)
        return int(nbytes(own))

    for name in "abc":
        first = engine.submit(ask(text_tokens(PROMPT), recipe, session=name)).result()
        further = [*text_tokens(PROMPT), *first.token_ids, *text_tokens(MORE, 50)]
        engine.submit(ask(further, recipe, session=name)).result()
    sessions = engine.memory.sessions
    held = sessions.nbytes
    monkeypatch.setattr(Sessions, "nbytes", property(counted))
    sessions._shrink()
    assert len(counts) == 1 and len(sessions) == 3
    sessions.capacity = held - 1
    sessions._shrink()
    assert len(counts) == 2 and [len(own.points) for own in sessions._sessions.values()] == [0, 1, 1]
    assert nbytes(sessions) <= sessions.capacity and len(sessions) == 3
