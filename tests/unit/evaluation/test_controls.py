"""Scrambled answers: a task that measures passes its control, one that pays for anything does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.tiny import ByteTokenizer, tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.comparison import BASELINE, TaskItems
from thrifty.evaluation.controls import control, scramble
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks.task import Answered, Task

ENGINE: Any = None  # grading words needs none
WORDS = (
    "recall",
    "recall-many",
    "multi-turn",
    "multi-request",
    "tracing",
    "aggregation",
    "frequent-words",
    "arithmetic",
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


def work(name: str, count: int = 10, **options: Any) -> TaskItems:
    if name == "arithmetic":
        pytest.importorskip("reasoning_gym")
    task = tasks.load(name, **{"length": 640, **options})
    return TaskItems(task, tuple(task.items(ByteTokenizer(), count, 0)))


def answered(own: TaskItems, right: bool = True) -> list[Answered]:
    """Every question answered with what is expected, or with nothing of it."""
    task = own.task
    assert isinstance(task, Answering)
    return [
        Answered(item, task.graded(item, [", ".join(turn.expected) if right else "-" for turn in item.turns], 0.1))
        for item in own.items
    ]


@pytest.mark.parametrize("name", WORDS)
def test_right_answers_are_wrong_for_other_items(name: str) -> None:
    own = work(name)
    done = answered(own)
    assert all(each.record.score == 1.0 for each in done)
    held = control(ENGINE, name, own, done)
    assert held.passed and held.scrambled < 0.5 and held.difference.low > 0.3
    assert held.as_dict()["passed"] and held.score == 1.0


@pytest.mark.parametrize("name", ["recall", "multi-turn"])
def test_a_model_that_cannot_do_a_task_fails_its_control(name: str) -> None:
    own = work(name)
    held = control(ENGINE, name, own, answered(own, right=False))
    assert not held.passed and held.score == held.scrambled == 0.0


def test_items_of_one_context_count_together() -> None:
    """Ten items of two contexts are two draws, and two prove nothing."""
    own = work("recall")
    done = answered(own)
    together = [Answered(replace(each.item, cluster=place // 5), each.record) for place, each in enumerate(done)]
    apart, shared = control(ENGINE, "recall", own, done), control(ENGINE, "recall", own, together)
    assert apart.passed and apart.difference.value == shared.difference.value
    assert not shared.passed and shared.difference.low < 0
    with pytest.raises(MeasurementError, match="all items share one context"):
        control(ENGINE, "recall", own, [Answered(replace(each.item, cluster=0), each.record) for each in done])


def test_a_task_that_pays_for_anything_fails_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    own = work("recall")
    monkeypatch.setattr(Answering, "grade", lambda *_: 1.0)
    assert not control(ENGINE, "recall", own, answered(own)).passed


def test_the_place_of_a_choice_is_held_against_those_of_others(engine: Engine) -> None:
    own = work("choice", 12)
    right = [
        Answered(item, replace(own.task.run(engine, item, []), score=1.0, output=item.material["endings"][place]))
        for item in own.items[:1]
        for place in [item.material["right"]]
    ]
    others = [Answered(item, right[0].record) for item in own.items[1:]]
    expected = [other.item.material["right"] == right[0].item.material["right"] for other in others]
    assert own.task.scrambled(engine, right[0], others) == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("name", ["perplexity", "kl"])
def test_predictions_of_a_passage_are_held_against_others(name: str, engine: Engine) -> None:
    own = work(name, 3, scored=24)
    done = [Answered(item, own.task.run(engine, item, [])) for item in own.items]
    assert own.task.scrambled(engine, done[0], done[:1]) == pytest.approx(done[0].record.score), "its own are right"
    assert 0 <= own.task.scrambled(engine, done[0], done[1:]) <= 1


def test_records_of_a_run_are_enough(engine: Engine) -> None:
    own = work("recall", 3)
    with RecordFile(None, {}) as records:
        with pytest.raises(PromptError, match="control of 'recall' takes 2 items or more, 0 are done"):
            list(scramble(engine, [own], records))
        for one in answered(own):
            records.add(BASELINE, one.record)
        (held,) = scramble(engine, [own], records)
    assert (held.task, held.items, held.score, held.scrambled) == ("recall", 3, 1.0, 0.0)


def test_every_task_has_a_control() -> None:
    for name in tasks.names():
        assert type(tasks.load(name)).scrambled is not Task.scrambled
