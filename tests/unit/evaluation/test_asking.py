"""Several questions to one compressed context: forks of one prefill answer as each question does alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model

from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation.asking import ask, ask_each, likelihoods
from thrifty.evaluation.forcing import MeasurementError

PROMPT = text_tokens(300)
QUESTIONS = [[65, *text_tokens(20 + 7 * place, seed=place)] for place in range(3)]
OTHER = [66, *text_tokens(9, seed=8)]
RECIPES = [
    [],
    [{"technique": "kivi", "bits": 2, "residual": 0}],
    [{"technique": "snapkv", "keep": 0.3}, {"technique": "kivi", "bits": 4, "residual": 0}],
    [{"technique": "h2o", "keep": 0.3}],
    [{"technique": "streaming", "window": 64}],
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def prefills(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that is prefilled."""
    found: list[Request] = []
    submit = Engine.submit

    def watched(self: Engine, request: Request, *rest: Any) -> Any:
        found.append(request)
        return submit(self, request, *rest)

    monkeypatch.setattr(Engine, "submit", watched)
    return found


@pytest.mark.parametrize("cache", RECIPES, ids=lambda tables: "+".join(one["technique"] for one in tables) or "full")
def test_answers_are_those_of_each_question_alone(engine: Engine, prefills: list[Request], cache: Any) -> None:
    # 80 free tokens: beyond a period of the policies that go on compressing.
    alone = [ask(engine, PROMPT, one, 80, cache) for one in [*QUESTIONS, OTHER, [65]]]
    prefills.clear()
    assert ask_each(engine, PROMPT, [*QUESTIONS, OTHER, [65]], 80, cache) == alone
    assert len(prefills) == 2, "one for the questions that begin alike, one for the other"
    assert not engine.busy


@pytest.mark.parametrize("cache", RECIPES[:3], ids=["full", "kivi", "both"])
@pytest.mark.parametrize("lead", [QUESTIONS[0], []], ids=["lead", "no-lead"])
def test_likelihoods_are_those_of_each_option_alone(engine: Engine, cache: Any, lead: list[int]) -> None:
    options = [[70, 71, 72], [70, 90], [70], [99, 100]]
    alone = [likelihoods(engine, PROMPT, lead, [one], cache)[0] for one in options]
    together = likelihoods(engine, PROMPT, lead, options, cache)
    assert [(one.total, one.greedy) for one in together] == [(one.total, one.greedy) for one in alone]
    assert len({one.total for one in together}) == 4 and all(one.total < 0 for one in together)
    assert not engine.busy


def test_a_budget_without_room_for_forks_gives_the_same_answers(prefills: list[Request]) -> None:
    model = tiny_model(packed=True)
    free = Engine(model, prefix_tree=False, threads=1)
    expected = ask_each(free, PROMPT, QUESTIONS, 8, [])
    need = free.memory.footprint((), len(PROMPT), len(PROMPT) + 60).peak_bytes
    rows = 4 * 4 * model.config.vocabulary_size  # logits stay charged for the most that ever ran at once
    budget = model.nbytes + free.memory.workspace + need + rows
    free.close()
    small = Engine(model, memory=budget, prefix_tree=False, threads=1)
    prefills.clear()
    assert ask_each(small, PROMPT, QUESTIONS, 8, []) == expected
    assert len(prefills) > 1, "not all of them had room beside one another"
    small.close()


def test_nothing_compressed_is_refused_and_leaves_nothing_running(engine: Engine) -> None:
    idle = [{"technique": "kivi", "residual": 100_000}]
    with pytest.raises(MeasurementError, match="nothing of a prompt of 300 tokens was compressed"):
        ask_each(engine, PROMPT, QUESTIONS, 8, idle)
    assert not engine.busy
    replies = ask_each(engine, PROMPT, QUESTIONS, 8, idle, insist=False)
    assert [one.compressed for one in replies] == [False] * 3


def test_answers_end_at_a_stop_string(engine: Engine) -> None:
    whole = ask_each(engine, PROMPT, QUESTIONS, 40, [])
    for one, question in zip(whole, QUESTIONS, strict=True):
        letter = next((letter for letter in one.text[1:] if letter.isprintable() and letter != "\ufffd"), None)
        if letter is None:
            continue
        (cut, _) = ask_each(engine, PROMPT, [question, QUESTIONS[0]], 40, [], stop=(letter,))
        assert cut.text == one.text[: one.text.index(letter)] and len(cut.tokens) <= len(one.tokens)
