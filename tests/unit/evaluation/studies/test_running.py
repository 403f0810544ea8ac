"""A study from its first answer to its document, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.small_study import Small, Told, work_of
from tests.tiny import tiny_model

from thrifty.errors import StorageError
from thrifty.evaluation.studies.harness import running
from thrifty.evaluation.studies.harness.document import document
from thrifty.evaluation.studies.harness.figures import Figures
from thrifty.evaluation.studies.harness.grid import grid
from thrifty.evaluation.studies.harness.page import render
from thrifty.evaluation.studies.harness.running import Run
from thrifty.evaluation.studies.harness.serving import ServedRate
from thrifty.evaluation.studies.harness.state import StudyState
from thrifty.models import Model

COST = {"eight": 0.1, "kivi-4": 0.2, "kivi-2": 0.6}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def study_run(
    model: Model, task: Told, count: int = 6, state: StudyState | None = None, length: int = 64, **options: Any
) -> Run:
    state = StudyState(None, {}) if state is None else state
    return Run(model, grid(Small()), work_of(task, count), state, length=length, threads=1, **options)


def documented(run: Run, task: Told, count: int = 6) -> dict[str, Any]:
    return document(Small(), run, Figures(run.grid, work_of(task, count), run.state))


def finished(model: Model, task: Told, count: int = 6, **options: Any) -> tuple[Run, dict[str, Any]]:
    run = study_run(model, task, count, **options)
    run.prepare()
    list(run.steps())
    return run, documented(run, task, count)


def test_every_cell_is_asked_every_item_once(model: Model) -> None:
    task = Told(cost=COST)
    run, result = finished(model, task)
    assert len(task.ran) == run.total == 6 * 6, "four cells and two controls"
    assert {row["label"]: round(row["difference"]["value"], 6) for row in result["cells"]} == {
        "plain × full": 0.0,
        "plain × four": -0.2,
        "eight × full": -0.1,
        "eight × four": -0.3,
    }
    joint = result["cells"][-1]
    assert joint["beyond_the_sum"]["value"] == pytest.approx(0.0)
    assert joint["tasks"]["told"]["excess"]["value"] == pytest.approx(0.3)
    assert joint["tasks"]["told"]["texts"]["identical"] == 0.0 and joint["tasks"]["told"]["clusters"] == 6
    assert result["sound"] and not run.skipped
    losses = next(told for told in result["told"] if told.startswith("Loss a token at told"))
    assert "eight × full +0.1000 (+0.1000 to +0.1000)" in losses and "eight × four" not in losses


def test_losses_that_do_not_add_up_are_told(model: Model) -> None:
    class Joined(Told):
        def run(self, engine: Any, item: Any, cache: Any) -> Any:
            record = super().run(engine, item, cache)
            together = "rtn" in engine.model.version and bool(cache)
            return type(record)(**vars(record) | {"score": record.score - 0.4 * together})

    _, result = finished(model, Joined(cost=COST), 12)
    assert result["cells"][-1]["beyond_the_sum"]["high"] < 0
    assert "lose more than both alone in eight × four, of 1 cells" in " ".join(result["told"])


@pytest.mark.parametrize(
    ("task", "name", "outcome"),
    [
        (Told(cost=COST), "two bits", "as it must"),
        (Told(cost={"kivi-2": 0.0}), "two bits", "too few items to tell"),
        (Told(cost={"kivi-2": -0.9}), "two bits", "otherwise"),
        (Told(cost=COST), "the baseline again", "as it must"),
        (Told(cost=COST, forgets=True), "the baseline again", "otherwise"),
        (Told(cost=COST), "a technique that is not there", "not run"),
    ],
)
def test_a_control_that_comes_out_otherwise_voids_the_run(model: Model, task: Told, name: str, outcome: str) -> None:
    _, result = finished(model, task)
    (control,) = (own for own in result["controls"] if own["name"] == name)
    assert control["outcome"] == outcome
    assert result["sound"] == (outcome != "otherwise")
    assert result["told"][0].startswith("Not to be believed") == (outcome == "otherwise")


def test_a_killed_run_goes_on_and_asks_nothing_twice(model: Model, tmp_path: Path) -> None:
    path, task = tmp_path / "states" / "s.jsonl", Told(cost=COST)
    with StudyState(path, {"seed": 0}) as state:
        run = study_run(model, task, state=state)
        run.prepare()
        steps = run.steps()
        for _ in range(9):
            next(steps)
    first = list(task.ran)
    with path.open("ab") as file:
        file.write(b'{"cell": "half a li')
    with StudyState(path, {"seed": 0}) as state:
        run, result = finished(model, task, state=state)
    assert len(task.ran) == run.total and task.ran[: len(first)] == first
    assert result["cells"][0]["difference"]["value"] == 0.0
    assert len(set(task.ran)) == 5 * 6, "the second baseline is asked like the first"
    with pytest.raises(StorageError, match="belongs to a run with seed = 0; this run has 1. Start it anew"):
        StudyState(path, {"seed": 1})
    path.write_text(path.read_text().splitlines()[0] + '\n{"cell": "x"}\n')
    with pytest.raises(StorageError, match="line 2 of the state of a study"):
        StudyState(path, {"seed": 0})


def test_what_cannot_be_measured_is_left_out_and_the_rest_goes_on(model: Model) -> None:
    run, result = finished(model, Told(cost=COST, fails="eight kivi"))
    assert run.skipped == {"eight × four": "eight kivi-4 cannot be measured"}
    assert result["skipped"] == [{"cell": "eight × four", "reason": "eight kivi-4 cannot be measured"}]
    assert result["cells"][-1]["difference"] is None and result["cells"][-2]["difference"] is not None


def test_short_minutes_ask_fewer_items_and_end_in_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MAKING", 0.0)
    task = Told(cost=COST)
    run = study_run(model, task, 400, minutes=0.1)
    expected = run.prepare()
    assert 2 <= run.asked < 400 and expected <= 0.1 * 60
    list(run.steps())
    assert {item for item, _ in task.ran} == {item.identity for item in task.items(None, run.asked, 0)}
    late = study_run(model, Told(cost=COST), 400, minutes=0.0)
    late.prepare()
    assert late.asked == 2 and not list(late.steps())


def test_served_rates_are_measured_by_batch_and_disturbed_ones_decide_nothing(model: Model) -> None:
    run, result = finished(model, Told(cost=COST), 2, batches=(1, 3), length=512)
    rows = {row["label"]: row["served"] for row in result["cells"]}
    assert [rate["batch"] for rate in rows["eight × four"]] == [1, 3]
    for served in rows.values():
        assert all(rate["rate"] > 0 and rate["cache_bytes"] > 0 for rate in served)
    assert rows["plain × full"][1]["cache_bytes"] == 3 * rows["plain × full"][0]["cache_bytes"]
    assert rows["plain × four"][0]["cache_bytes"] < rows["plain × full"][0]["cache_bytes"]
    promised = [row["cache_bytes_of_a_sequence"] for row in result["cells"]]
    assert promised[1] < promised[0] and promised[3] < promised[2]
    assert result["cells"][2]["weights_bytes"] < result["cells"][0]["weights_bytes"]
    for others, said in ((0.0, "at batch 3 the fastest is "), (0.5, "which decide nothing")):
        for cell in run.grid.scored:
            for batch in (1, 3):
                rate = ServedRate(batch, 64, 100.0 if cell.plain else 200.0, 1000, others, 1.0)
                run.state.add_figure("rate", run._rate_key(cell, batch), rate.as_dict())
        assert said in " ".join(documented(run, Told(cost=COST), 2)["told"])


def test_the_page_escapes_names_and_draws_every_cell(model: Model) -> None:
    _, result = finished(model, Told(cost=COST), 4, batches=(1,))
    header = {"study": "small", "model": "<b>tiny</b>", "machine": "m", "threads": 1, "date": "d", "tasks": ["told"]}
    page = render(header | {"length": 64, "seed": 0} | result)
    assert "<b>tiny" not in page and "&lt;b&gt;tiny" in page and "it is &lt;small&gt;" in page
    assert page.count("<circle") == 4 and "eight × four: -30.0 points" in page
    empty = document(
        Small(), study_run(model, Told()), Figures(grid(Small()), work_of(Told(), 4), StudyState(None, {}))
    )
    assert "<circle" not in render(header | {"length": 64, "seed": 0} | empty)
