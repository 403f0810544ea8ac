"""`thrifty study`: its table, its JSON line, a state that goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thrifty.cli.shared.studying import StudyOptions
from thrifty.evaluation import studies
from thrifty.evaluation.tasks.task import Task

RUN = ("--items", 2, "--length", 400, "--tasks", "choice,perplexity:scored=8", "--threads", 1)
SMALL = ("--weights", "w8a8", "--cache", "kivi-2", "--batches", "")


@pytest.fixture(autouse=True)
def own_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test goes on from another's study."""
    monkeypatch.setattr("thrifty.evaluation.studies.harness.state.cache_directory", lambda: tmp_path / "states")


def test_a_table_the_findings_and_then_the_json_line(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    report = tmp_path / "study.html"
    result = thrifty("study", "quantization", checkpoint, *RUN, *SMALL, "--report", report)
    assert result.code == 0, result.err
    document = result.json()
    assert [row["label"] for row in document["cells"]] == [
        "bf16 × full",
        "bf16 × kivi-2",
        "w8a8 × full",
        "w8a8 × kivi-2",
    ]
    assert document["tasks"] == ["choice", "perplexity:scored=8"] and document["off_grid"] and document["sound"]
    assert all(set(row["tasks"]) == set(document["tasks"]) for row in document["cells"])
    assert document["cells"][0]["weights_bytes"] > document["cells"][2]["weights_bytes"]
    assert "mean difference" in result.out and "control: the baseline again must be equal: as it must" in result.out
    assert "answers. This will take about" in result.err
    assert "<circle" in report.read_text() and str(checkpoint) in report.read_text()


def test_methods_take_the_place_of_formats_and_models_follow_each_other(
    thrifty: Callable[..., Any], checkpoint: Path
) -> None:
    words = ("study", "quantization", checkpoint, *RUN, "--methods", "rtn,hqq", "--bits", 8, "--cache", "")
    result = thrifty(*words, "--batches", "1")
    assert result.code == 0, result.err
    document = result.json()
    assert [row["weights"] for row in document["cells"]] == ["bf16", "rtn-8", "hqq-8"]
    (rate,) = document["cells"][1]["served"]
    assert rate["bytes"] > document["cells"][1]["weights_bytes"] > 0
    eight = document["findings"][0]
    assert eight["paper"] == "arXiv:2411.02355" and "rtn-8 keeps" in eight["here"] and "hqq-8 keeps" in eight["here"]
    assert "8 bits, tuned: 1 to 3 % of the score lost. Here: rtn-8 keeps" in result.out
    assert document["findings"][3]["verdict"] == "not in this grid"
    twice = thrifty(*words, "--batches", "", "--models", f"{checkpoint.parent / checkpoint.name}/.", "--json")
    assert [own["study"] for own in twice.json()["models"]] == ["quantization"] * 2, twice.err


def test_a_report_that_cannot_be_written_costs_no_result(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    words = (
        "study",
        "quantization",
        checkpoint,
        *RUN,
        *SMALL,
        "--weights",
        "",
        "--report",
        tmp_path / "none" / "s.html",
    )
    result = thrifty(*words, "--json")
    assert result.code == 1 and result.out.count("\n") == 1
    assert result.json()["kind"] == "StorageError" and str(tmp_path / "none") in result.json()["error"]
    assert [row["label"] for row in result.json()["cells"]] == ["bf16 × full", "bf16 × kivi-2"]
    people = thrifty(*words)
    assert people.code == 1 and "mean difference" in people.out and "none" in people.message


def test_json_alone_is_one_line(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    result = thrifty("study", "quantization", checkpoint, *RUN, "--weights", "", "--cache", "", "--json")
    assert result.code == 0 and result.out.count("\n") == 1
    (row,) = result.json()["cells"]
    assert [rate["batch"] for rate in row["served"]] == [1, 4, 8] and row["difference"]["value"] == 0.0


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.evaluation import tasks

    kind, ran = type(tasks.load("choice")), []
    run = kind.run

    def interrupted(self: Task, engine: Any, item: Any, cache: Any) -> Any:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(item.identity)
        return run(self, engine, item, cache)

    words = ("study", "quantization", checkpoint, *RUN, *SMALL, "--tasks", "choice", "--state", tmp_path / "s.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "run", interrupted)
        stopped = thrifty(*words, "--json")
    assert stopped.code == 130 and stopped.json()["interrupted"] and "the same command goes on" in stopped.err
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert sum("cell" in line for line in lines) == 3
    again = thrifty(*words, "--json")
    assert again.code == 0 and "going on with" in again.err and not again.json()["interrupted"]
    other = thrifty(*words, "--seed", 1)
    assert other.code == 1 and "belongs to a run with seed = 0; this run has 1" in other.message


def test_a_control_that_comes_out_otherwise_is_an_error(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.evaluation.studies.harness.figures import Figures

    monkeypatch.setattr(Figures, "equal", lambda self, cell: (4, 3))
    result = thrifty("study", "quantization", checkpoint, *RUN, *SMALL, "--weights", "", "--json")
    assert result.code == 1 and not result.json()["sound"]
    assert "a control came out otherwise than it must" in result.message
    assert result.json()["told"][0] == "Not to be believed: the baseline again came out otherwise than it must."


def test_a_recipe_of_ones_own_is_one_more_cell(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[cache]]\ntechnique = "snapkv"\nkeep = 0.25\n')
    result = thrifty("study", "quantization", checkpoint, *RUN, *SMALL, "--weights", "", "-r", path, "--json")
    assert result.json()["cells"][-1]["label"] == "bf16 × snapkv(keep=0.25)"


def test_without_a_name_the_studies_are_listed(thrifty: Callable[..., Any]) -> None:
    assert "quantization" in thrifty("study").out
    (study,) = (own for own in thrifty("study", "--json").json()["studies"] if own["name"] == "quantization")
    assert "formats of weights" in study["title"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("quantisation", "x"), 1, "no study 'quantisation'. Did you mean 'quantization'?"),
        (("quantization",), 2, "a model is missing: write thrifty study quantization MODEL."),
        (("quantization", "MODEL", "--methods", "gtpq"), 1, "no weight technique 'gtpq'. Did you mean 'gptq'?"),
        (("quantization", "MODEL", "--bits", "4"), 1, "--bits and --repair belong to --methods"),
        (("quantization", "MODEL", "--models", "b", "--state", "s.jsonl"), 2, "--state is one file, and 2 models"),
        (("quantization", "MODEL", "--weights", "w9"), 1, "no weights format 'w9'"),
        (("quantization", "MODEL", "--cache", "kivi4"), 1, "Did you mean 'kivi-4'?"),
        (("quantization", "MODEL", "--tasks", "recal"), 1, "no task 'recal'. Did you mean 'recall'?"),
        (("quantization", "MODEL", "--tasks", ","), 1, "names no task"),
        (("quantization", "MODEL", "--tasks", "recall,alpaca-pairs"), 1, "and alpaca-pairs compares two: leave it out"),
        (("quantization", "MODEL", "--length", 5000, "--items", 2), 1, "this model's context holds 4096"),
        (("quantization", "MODEL", "--batches", "64", "--tasks", "choice", "--items", 2), 1, "at most 32"),
        (("quantization", "MODEL", "--batches", "0"), 2, "'0' is not a positive whole number"),
    ],
)
def test_what_cannot_be_run_is_refused(
    words: tuple[Any, ...], code: int, message: str, thrifty: Callable[..., Any], checkpoint: Path
) -> None:
    told = [checkpoint if word == "MODEL" else word for word in words]
    result = thrifty("study", *told)
    assert result.code == code and message in result.message


def test_answers_of_other_kernels_are_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names no kernels gets those that are there, which the environment may turn off."""
    from thrifty.kernels import dispatch

    asked = StudyOptions(
        name="quantization",
        model="m",
        weights=None,
        caches=None,
        recipe=None,
        tasks=None,
        items=2,
        length=64,
        batches=(),
        seed=0,
        minutes=None,
        state=None,
        fresh=False,
        threads=1,
        native=None,
    )
    model: Any = SimpleNamespace(version="v")
    settings = []
    for module in (None, SimpleNamespace()):
        monkeypatch.setattr(dispatch, "native", lambda module=module: module)
        settings.append(asked.setting(studies.load("quantization"), model))
    assert settings[0] != settings[1]
    assert replace(asked, native=False).setting(studies.load("quantization"), model) == settings[0]
