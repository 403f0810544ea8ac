"""The time that an evaluation will take: what is left is counted right, and longer work takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.evaluation import forecast, tasks
from thrifty.evaluation.comparison import BASELINE, RECIPE, Comparison
from thrifty.evaluation.forecast import Run, expected
from thrifty.evaluation.measuring.pace import COMPRESSING, Pace, Times, short_run
from thrifty.evaluation.protocol import Protocol
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.roofline.sizes import of_model
from thrifty.evaluation.tasks.task import Effort

KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def known(engine: Engine) -> Times:
    """A model whose prompts of 100 tokens take a second, and steps a tenth."""
    return Times(Pace(100, 1.0, 0.1), of_model(engine.model), forecast.TYPICAL)


def test_the_time_is_that_of_all_prefills_and_steps(known: Times) -> None:
    plain = expected(known, [Run(Effort(100, 1, 10), False), Run(Effort(100, 2, 0), False)])
    assert plain.seconds == pytest.approx(1 + 2 + 10 * known.step(known.held(100)), rel=1e-6)
    assert (plain.runs, plain.prompts, plain.steps) == (2, 300, 10)
    compressed = expected(known, [Run(Effort(100, 1, 10), True)])
    assert compressed.seconds == pytest.approx(COMPRESSING * (1 + 10 * known.step(known.held(100))))
    assert expected(known, []).seconds == 0


def test_longer_prompts_take_more_than_their_share(known: Times) -> None:
    assert known.prefill(100) == pytest.approx(1.0)
    assert known.prefill(1600) > 16 * known.prefill(100) and known.step(known.held(1600)) > known.step(0)


def test_a_short_run_tells_the_pace(engine: Engine) -> None:
    pace = short_run(engine)
    assert pace.prompt == 192 and pace.prefill > 0 and pace.step > 0


@pytest.mark.parametrize(
    "name", ["recall", "multi-request", "multi-request:mode=aware", "multi-turn", "multi-turn:golden=false", "choice"]
)
def test_the_effort_of_an_item_bounds_what_its_run_does(
    name: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, steps = [], []
    submit, fork = Engine.submit, Engine.fork

    def submitted(self: Engine, request: Request, *rest: object) -> object:
        prompts.append(len(request.prompt))
        steps.append(len(request.forced) + request.free)
        return submit(self, request, *rest)

    def forked(self: Engine, *words: object) -> object:
        handle = fork(self, *words)
        steps.append(len(handle.request.forced) + handle.request.free)
        return handle

    task = tasks.parse(name, length=300)
    (item,) = task.items(engine.model.require_tokenizer(), 1, 0)
    monkeypatch.setattr(Engine, "submit", submitted)
    monkeypatch.setattr(Engine, "fork", forked)
    task.run(engine, item, [])
    effort = task.effort(item)
    assert effort.prompt == len(item.prompt) and effort.prefills == len(prompts)
    assert sum(steps) / 2 <= effort.steps or name == "choice"
    assert effort.steps >= max(steps) - 1


def test_what_records_hold_is_not_left(engine: Engine, tmp_path: Path) -> None:
    task = tasks.load("recall", length=300)
    with RecordFile(tmp_path / "r.jsonl", {}) as records:
        comparison = Comparison([task], 3, 0, engine, engine, KIVI)
        assert [run.compresses for run in comparison.left(records)] == [False, True] * 3
        first = comparison.work[0].items[0]
        records.add(BASELINE, task.run(engine, first, []))
        assert len(list(comparison.left(records))) == 6, "a pair is run together"
        records.add(RECIPE, task.run(engine, first, KIVI))
        assert len(list(comparison.left(records))) == 4
        alone = Comparison([task], 3, 0, engine, None, [])
        assert [run.compresses for run in alone.left(records)] == [False, False]
        protocol = Protocol([task], 3, 0, engine)
        assert [run.compresses for run in protocol.left(records, ["a", "b"])] == [False] * 2 + [True] * 6
