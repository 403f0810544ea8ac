"""`thrifty eval`: its table and JSON line, records that go on, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty.evaluation.records import RecordFile

RUN = ("--items", 2, "--length", 400, "--threads", 1)
KIVI = '[[cache]]\ntechnique = "kivi"\nbits = 2\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(KIVI)
    return path


def test_a_table_and_then_the_json_line(thrifty: Callable[..., Any], checkpoint: Path, recipe: Path) -> None:
    found = thrifty("eval", checkpoint, "-r", recipe, "--tasks", "choice,kl:scored=8,recall", *RUN)
    assert found.code == 0, found.message
    assert "95 % interval" in found.out and "kivi(bits=2), 400 tokens, seed 0" in found.out
    report = found.json()
    assert (report["items"], report["length"], report["weights"], report["interrupted"]) == (
        2,
        400,
        "as shipped",
        False,
    )
    rows = {row["task"]: row for row in report["tasks"]}
    assert list(rows) == ["choice", "kl:scored=8", "recall"]
    assert all(row["items"] == 2 and 0 <= row["baseline"]["value"] <= 1 and row["score"] for row in rows.values())
    assert rows["kl:scored=8"]["beside"]["kl"] > 0 == rows["kl:scored=8"]["beside_baseline"]["kl"]


def test_a_task_that_the_model_cannot_do_is_undefined(
    thrifty: Callable[..., Any], checkpoint: Path, recipe: Path
) -> None:
    found = thrifty("eval", checkpoint, "-r", recipe, "--tasks", "recall", *RUN)
    (row,) = found.json()["tasks"]
    assert row["baseline"]["value"] == 0 and row["recovery"] is None, "random weights recall nothing"
    assert "undefined: the baseline scores 0" in found.out


def test_without_a_recipe_only_the_model_is_scored(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    found = thrifty("eval", checkpoint, "--tasks", "choice", "--json", *RUN)
    assert found.out.count("\n") == 1
    (row,) = found.json()["tasks"]
    assert row["score"] is None and row["recovery"] is None and row["undefined"] is None


def test_weights_have_a_baseline_of_their_own_and_are_labelled(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.toml"
    path.write_text('[[weights]]\ntechnique = "rtn"\nbits = 4\n')
    for words, label in (((), "on the grid"), (("--off-grid",), "off the grid")):
        found = thrifty("eval", checkpoint, "-r", path, "--tasks", "kl:scored=8", "--json", *RUN, *words)
        assert found.json()["weights"].startswith(label)
        assert found.json()["tasks"][0]["beside"]["kl"] > 0


def test_ctrl_c_keeps_the_records_and_the_next_run_goes_on(
    thrifty: Callable[..., Any], checkpoint: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, added = tmp_path / "records.jsonl", []
    add = RecordFile.add

    def interrupted(self: RecordFile, side: str, record: Any) -> None:
        if len(added) == 7:
            raise KeyboardInterrupt
        added.append((side, record.task, record.item))
        add(self, side, record)

    monkeypatch.setattr(RecordFile, "add", interrupted)
    words = ("eval", checkpoint, "-r", recipe, "--tasks", "choice,aggregation", "--records", records, *RUN)
    found = thrifty(*words)
    assert found.code == 130 and "what is done is kept" in found.err
    assert [(row["task"], row["items"]) for row in found.json()["tasks"]] == [("choice", 2), ("aggregation", 1)]
    assert found.json()["interrupted"]
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(lines) == 1 + 7 and {line["side"] for line in lines[1:]} == {"baseline", "recipe"}
    first = list(added)
    added.clear()
    again = thrifty(*words)
    assert again.code == 0 and len(added) == 1 and added[0] not in first
    assert [row["items"] for row in again.json()["tasks"]] == [2, 2]
    other = thrifty(*words, "--seed", 1)
    assert other.code == 1 and "belongs to a run with seed = 0; this run has 1" in other.message


def test_the_protocol_is_one_table(thrifty: Callable[..., Any], checkpoint: Path) -> None:
    found = thrifty("eval", checkpoint, "--protocol", "--tasks", "aggregation", *RUN)
    assert found.code == 0, found.message
    rows = found.json()["rows"]
    assert [row["format"].split(",")[0] for row in rows] == [
        "W8A8: rtn 8",
        "W4A8: rtn 4",
        "cache: kivi 4",
        "cache: kivi 2",
    ]
    assert all(0 <= row["rouge_l"] <= row["rouge_1"] <= 1 for row in rows)
    assert found.json()["off_grid"] and "weights off the grid" in found.out and "BERTScore" in found.out


REFUSED = [
    (("--tasks", "recal"), "no task 'recal'. Did you mean 'recall'?"),
    (("--tasks", "recall:kees=3"), "has no option 'kees'. Did you mean 'keys'?"),
    (("--tasks", ""), "names no task"),
    (("--tasks", ","), "names no task"),
    (("--length", 5000), "--length 5000 leaves no room for a question: this model's context holds 4096 tokens"),
    (("--tasks", "perplexity", "--length", 4000), "this model's context holds 4096: use at most --length 3966"),
    (("--protocol", "--tasks", "choice"), "--protocol compares texts, and choice writes none"),
    (("--protocol", "--tasks", "alpaca-pairs"), "--protocol scores every answer alone, and alpaca-pairs compares two"),
    (("--controls", "--tasks", "recall"), "--controls holds every item against others: use --items 2 or more"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[message[:24] for _, message in REFUSED])
def test_what_cannot_be_run_is_refused(
    thrifty: Callable[..., Any], checkpoint: Path, words: tuple[Any, ...], message: str
) -> None:
    found = thrifty("eval", checkpoint, "--items", 1, "--threads", 1, *words)
    assert found.code == 1 and message in found.message


def test_the_protocol_takes_no_recipe(thrifty: Callable[..., Any], checkpoint: Path, recipe: Path) -> None:
    found = thrifty("eval", checkpoint, "--protocol", "-r", recipe)
    assert found.code == 2 and "leave --recipe out" in found.message


def test_the_time_is_told_before_it_starts_and_nothing_is_left_after(
    thrifty: Callable[..., Any], checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    words = ("eval", checkpoint, "-r", recipe, "--tasks", "recall", "--records", tmp_path / "r.jsonl", *RUN)
    first = thrifty(*words)
    assert re.search(r"about \d+ s: 4 runs, [\d,]+ tokens of prompts and at most \d+ after them", first.message)
    again = thrifty(*words)
    assert "nothing is left to run" in again.message and again.json()["tasks"] == first.json()["tasks"]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(checkpoint: Path, recipe: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    program = "from thrifty.cli.main import main; main()"
    words: list[object] = [
        "eval",
        checkpoint,
        "-r",
        recipe,
        "--tasks",
        "recall",
        "--items",
        60,
        "--length",
        400,
        "--threads",
        1,
    ]
    command = [sys.executable, "-c", program, *map(str, words), "--records", str(records)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 60
    while not (records.exists() and records.read_bytes().count(b"\n") > 9):
        assert time.monotonic() < ends and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = records.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    assert 9 < whole.count(b"\n") < 1 + 2 * 60, "it was killed in the middle"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["tasks"][0]["items"] == 60
    assert records.read_bytes().startswith(whole) and records.read_bytes().count(b"\n") == 1 + 2 * 60


def test_controls_tell_that_random_weights_can_do_nothing(
    thrifty: Callable[..., Any], checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    records = tmp_path / "records.jsonl"
    words = ("eval", checkpoint, "--tasks", "recall", *RUN, "--records", records)
    assert thrifty(*words).code == 0
    lines = records.read_text()
    found = thrifty(*words, "--controls")
    assert found.code == 1 and records.read_text() == lines, "the answers are there already"
    (row,) = found.json()["controls"]
    assert (row["task"], row["items"], row["score"], row["passed"]) == ("recall", 2, 0.0, False)
    assert "recall: other items' answers score about as well as the right ones" in found.out
    refused = thrifty("eval", checkpoint, "--controls", "-r", recipe)
    assert refused.code == 2 and "leave --recipe and --protocol out" in refused.message
    foreign = thrifty("eval", checkpoint, "--controls", "--tasks", "lm-eval:arc_easy")
    assert foreign.code == 1 and "leave arc_easy of lm-eval out" in foreign.message


def test_controls_hold_where_the_answers_are_right(
    thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.evaluation.tasks._answering import Answering

    def right(self: Answering, engine: Any, item: Any, cache: Any) -> Any:
        return self.graded(item, [", ".join(turn.expected) for turn in item.turns], 0.1)

    monkeypatch.setattr(Answering, "run", right)
    found = thrifty("eval", checkpoint, "--controls", "--tasks", "recall,aggregation", "--items", 8, "--length", 400)
    assert found.code == 0, found.message
    assert [(row["score"], row["passed"]) for row in found.json()["controls"]] == [(1.0, True), (1.0, True)]


@pytest.mark.parametrize("words", [(), ("--controls",), ("--protocol", "--tasks", "continuation")])
def test_ctrl_c_while_the_time_is_measured_still_gives_the_json_line(
    words: tuple[str, ...], thrifty: Callable[..., Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(engine: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("thrifty.evaluation.forecast.times", interrupted)
    found = thrifty("eval", checkpoint, "--tasks", "recall", *RUN, *words, "--json")
    assert found.code == 130 and found.json()["interrupted"] and "what is done is kept" in found.err
