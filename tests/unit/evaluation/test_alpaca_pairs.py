"""Pairs of answers: a fair judge, and win rates at equal length against simulated judges of a known bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.tiny import ByteTokenizer, tiny_model

from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation.length_control import RIDGE, fitted, length_controlled, loss
from thrifty.evaluation.tasks.alpaca_pairs import AlpacaPairs
from thrifty.evaluation.tasks.task import Answered, Record

KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> AlpacaPairs:
    monkeypatch.setattr(AlpacaPairs, "limit", 24)
    return AlpacaPairs(length=400)


def test_a_judge_is_asked_in_both_orders(task: AlpacaPairs, engine: Engine) -> None:
    (item,) = task.items(ByteTokenizer(), 1, 0)
    there, back = (
        task.preference(engine, item, "short", "a long answer"),
        task.preference(engine, item, "a long answer", "short"),
    )
    assert 0 < there < 1 and there + back == pytest.approx(1)
    assert task.preference(engine, item, "same", "same") == 0.5


def test_the_same_answers_are_as_good_and_others_are_compared(task: AlpacaPairs, engine: Engine) -> None:
    (item,) = task.items(ByteTokenizer(), 1, 0)
    baseline, same = task.compare(engine, engine, item, [])
    assert baseline.score == same.score == 0.5 and baseline.output == same.output
    baseline, own = task.compare(engine, engine, item, KIVI)
    assert own.score == pytest.approx(task.preference(engine, item, own.output, baseline.output))
    assert own.details["characters_baseline"] == len(baseline.output)
    assert set(task.over([own])) == {"length_controlled"} and task.over([baseline]) == {}


def test_answers_to_others_are_judged_against_ones_own(task: AlpacaPairs, engine: Engine) -> None:
    done = [Answered(item, task.run(engine, item, [])) for item in task.items(ByteTokenizer(), 3, 0)]
    assert task.scrambled(engine, done[0], done[:1]) == 0.5
    assert 0 < task.scrambled(engine, done[0], done[1:]) < 1


def test_the_room_and_the_time_hold_for_the_judge_too(
    task: AlpacaPairs, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge reads the text and two answers, which is more than the answers took."""
    prompts: list[int] = []
    submit = Engine.submit

    def submitted(self: Engine, request: Request, *rest: object) -> object:
        prompts.append(len(request.prompt) + len(request.forced) + request.free)
        return submit(self, request, *rest)

    (item,) = task.items(ByteTokenizer(), 1, 0)
    monkeypatch.setattr(Engine, "submit", submitted)
    task.preference(engine, item, "a" * task.limit, "b" * task.limit)
    assert len(prompts) == 2 and len(item.prompt) + task.limit < max(prompts) <= item.room
    assert task.effort(item).prefills == 2, "of an answer, and half of the two judgements"


def test_a_judge_by_name_is_opened_once(task: AlpacaPairs, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_engine(name: str, **_: Any) -> Engine:
        opened.append(name)
        return Engine(tiny_model(seed=3), prefix_tree=False, threads=1)

    monkeypatch.setattr("thrifty.api.open_engine", open_engine)
    judged = AlpacaPairs(length=400, judge="other")
    (item,) = judged.items(ByteTokenizer(), 1, 0)
    found = [judged.preference(engine, item, "a", "b") for _ in range(2)]
    assert opened == ["other"] and found[0] == found[1] != task.preference(engine, item, "a", "b")
    assert judged.label == "alpaca-pairs:judge=other"


def simulated(count: int, quality: float, bias: float, seed: int) -> tuple[list[float], list[int], list[int]]:
    """Preferences of a judge with a known liking for length: logit = quality + bias · tanh(Δ / spread)."""
    chance = np.random.default_rng(seed)
    own, other = chance.integers(50, 900, count), chance.integers(50, 600, count)
    difference = (own - other) / (own - other).std(ddof=1)
    likely = 1 / (1 + np.exp(-(quality + bias * np.tanh(difference))))
    return (chance.random(count) < likely).astype(float).tolist(), own.tolist(), other.tolist()


@pytest.mark.parametrize(("quality", "bias"), [(0.0, 2.0), (0.8, 1.5), (-0.6, -1.0), (0.4, 0.0)])
def test_the_judges_liking_for_length_is_taken_out(quality: float, bias: float) -> None:
    found = [length_controlled(*simulated(800, quality, bias, seed)) for seed in range(6)]
    wanted = 1 / (1 + np.exp(-quality))
    assert abs(np.mean(found) - wanted) < 0.03
    plain = np.mean([np.mean(simulated(800, quality, bias, seed)[0]) for seed in range(6)])
    if bias:
        assert abs(plain - wanted) > 0.05, "the plain win rate is off"


def test_a_judge_of_nothing_but_length_prefers_nobody() -> None:
    chance = np.random.default_rng(0)
    own, other = chance.integers(50, 900, 600), chance.integers(50, 900, 600)
    preferred = (own > other).astype(float)
    assert length_controlled(preferred.tolist(), own.tolist(), other.tolist()) == pytest.approx(0.5, abs=0.06)


def test_equal_lengths_leave_the_mean() -> None:
    assert length_controlled([1.0, 0.0, 1.0], [5, 6, 7], [5, 6, 7]) == pytest.approx(2 / 3)
    assert length_controlled([0.25], [5], [9]) == 0.25


def test_the_fit_is_the_least_loss() -> None:
    """Against steps downhill, many and small."""
    preferred, own, other = simulated(120, 0.5, 1.0, 4)
    difference = np.array(own) - np.array(other)
    features = np.stack([np.ones(120), np.tanh(difference / difference.std(ddof=1))], axis=1)
    wanted = np.array(preferred)
    slow = np.zeros(2)
    for _ in range(20_000):
        likely = 1 / (1 + np.exp(-features @ slow))
        slow -= 0.02 * (features.T @ (likely - wanted) + RIDGE * slow)
    found = fitted(features, wanted)
    assert found == pytest.approx(slow, abs=1e-5)
    assert loss(features, wanted, found) <= loss(features, wanted, slow) + 1e-9


def test_separable_preferences_end() -> None:
    record = Record("alpaca-pairs", "0", 1.0, "", 0.0, details={"characters": 9, "characters_baseline": 5})
    short = Record("alpaca-pairs", "1", 0.0, "", 0.0, details={"characters": 2, "characters_baseline": 5})
    assert 0 < AlpacaPairs().over([record, short, record, short])["length_controlled"] < 1
