"""The file of records: what it keeps of an item, and a line that is none. The file itself: storage/test_journal.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thrifty.errors import StorageError
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.tasks.task import Record

SETTINGS = {"model": "m", "seed": 0, "length": 512, "recipe": {"cache": [{"technique": "kivi", "bits": 2}]}}


def record(number: int, score: float = 1.0, output: str = "4711 – ja\n") -> Record:
    return Record("recall", f"{number}-abc", score, output, 0.25, "4711", {"turns": [1.0]})


def write(path: Path, count: int) -> None:
    with RecordFile(path, SETTINGS) as file:
        for number in range(count):
            file.add("baseline", record(number))


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, 3)
    with RecordFile(path, SETTINGS) as file:
        assert file.get("baseline", "recall", "1-abc") == record(1)
        assert file.get("recipe", "recall", "1-abc") is None
        assert len(file) == 3
        file.add("recipe", record(1, 0.5))
    with RecordFile(path, SETTINGS) as file:
        assert file.of("recipe", "recall") == [record(1, 0.5)]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["settings"] == SETTINGS
    assert [(line["side"], line["score"]) for line in lines[1:]] == [("baseline", 1.0)] * 3 + [("recipe", 0.5)]


@pytest.mark.parametrize("damage", ["{}", '{"side": "baseline", "task": "recall"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "records.jsonl"
    write(path, 3)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n", encoding="utf-8")
    with pytest.raises(StorageError, match="line 3 of the eval records .* is damaged.*delete a damaged line"):
        RecordFile(path, SETTINGS)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with RecordFile(path, SETTINGS) as file:
        assert len(file) == 3, "the refused file was let go"
