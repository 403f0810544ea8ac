"""The file of records: killed, half-written, full, foreign."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.killing import random_kills

from thrifty.errors import StorageError
from thrifty.evaluation.records import RecordFile
from thrifty.evaluation.tasks.task import Record
from thrifty.storage import journal

SETTINGS = {"model": "m", "seed": 0, "length": 512, "recipe": {"cache": [{"technique": "kivi", "bits": 2}]}}


def record(number: int, score: float = 1.0, output: str = "4711 – ja\n") -> Record:
    return Record("recall", f"{number}-abc", score, output, 0.25, "4711", {"turns": [1.0]})


def write(path: Path, count: int, start: int = 0) -> None:
    with RecordFile(path, SETTINGS) as file:
        for number in range(start, start + count):
            file.add("baseline", record(number))


def held(path: Path) -> list[str]:
    with RecordFile(path, SETTINGS) as file:
        return [one.item for one in file.of("baseline", "recall")]


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, 3)
    with RecordFile(path, SETTINGS) as file:
        assert file.get("baseline", "recall", "1-abc") == record(1)
        assert file.get("recipe", "recall", "1-abc") is None
        assert len(file) == 3
        file.add("recipe", record(1, 0.5))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["settings"] == SETTINGS
    assert [(line["side"], line["score"]) for line in lines[1:]] == [("baseline", 1.0)] * 3 + [("recipe", 0.5)]


@settings(deadline=None)
@given(data=st.data())
def test_a_half_written_last_line_is_cut_off_wherever_it_ends(data: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write(path, 2)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = max(0, whole[:cut].count(b"\n") - 1)
    assert held(path) == [f"{number}-abc" for number in range(kept)]
    write(path, 2, kept)
    assert held(path) == [f"{number}-abc" for number in range(kept + 2)]


def test_a_kill_loses_at_most_the_record_that_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for _ in random_kills(lambda: write(path, 60), lambda: path.unlink(missing_ok=True), seed=1, kills=8):
        assert held(path) == [f"{number}-abc" for number in range(len(held(path)))]


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    pwrite = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if place > 600:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data[: 600 - place + 1], place)

    with RecordFile(path, SETTINGS) as file:
        file.add("baseline", record(0))
        monkeypatch.setattr(journal.os, "pwrite", full)
        with pytest.raises(StorageError, match=r"No space left on device. The \d lines so far are kept; make room"):
            for number in range(1, 9):
                file.add("baseline", record(number))
        kept = len(file)
        assert path.read_bytes().endswith(b"\n"), "no half of a record stays"
        monkeypatch.undo()
        file.add("baseline", record(kept))
    assert held(path) == [f"{number}-abc" for number in range(kept + 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "belongs to a run with seed = 0; this run has 1. Repeat that run's options"),
        ({"model": "other"}, 'belongs to a run with model = "m"; this run has "other"'),
        ({"recipe": {}}, "belongs to a run with recipe = "),
        ({"extra": True}, "belongs to a run with extra = null; this run has true"),
    ],
)
def test_a_file_of_other_settings_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "records.jsonl"
    write(path, 1)
    before = path.read_bytes()
    with pytest.raises(StorageError) as found:
        RecordFile(path, SETTINGS | change)
    assert message in str(found.value) and str(path) in str(found.value)
    assert path.read_bytes() == before


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"my notes", b"my notes\n", b'{"format": "other"}\n', b"x"):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="holds no eval records of Thrifty.s and is left alone"):
            RecordFile(path, SETTINGS)
        assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, 3)
    lines = path.read_text(encoding="utf-8").splitlines()
    for damage in ("not json", "{}", "[1]"):
        path.write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n", encoding="utf-8")
        with pytest.raises(StorageError, match="line 3 of the eval records .* is damaged.*delete a damaged line"):
            RecordFile(path, SETTINGS)


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordFile(path, SETTINGS), pytest.raises(StorageError, match="another run is using the eval records"):
        RecordFile(path, SETTINGS)
    write(path, 1)


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open the eval records .*: No such file or directory"):
        RecordFile(tmp_path / "nowhere" / "records.jsonl", SETTINGS)
    with pytest.raises(StorageError, match="cannot open the eval records .*: Is a directory"):
        RecordFile(tmp_path, SETTINGS)
