"""The file of lines that searches and evaluations go on from: killed, half-written, full, foreign, in use."""

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
from thrifty.storage.journal import Journal

SETTINGS = {"model": "m", "seed": 0, "recipe": {"cache": [{"technique": "kivi", "bits": 2}]}}


def opened(path: Path | None, found: dict[str, Any] = SETTINGS, *, fresh: bool = False) -> Journal:
    return Journal(path, found, what="notes", remedy="Name another file.", fresh=fresh)


def write(path: Path, count: int, start: int = 0) -> None:
    with opened(path) as journal:
        for number in range(start, start + count):
            journal.add({"number": number, "text": "ünï – ja\n"})


def held(path: Path) -> list[int]:
    with opened(path) as journal:
        assert [number for number, _ in journal.lines] == list(range(2, len(journal.lines) + 2))
        return [line["number"] for _, line in journal.lines]


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    write(path, 3)
    assert held(path) == [0, 1, 2]
    write(path, 2, start=3)
    assert held(path) == [0, 1, 2, 3, 4]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["settings"] == SETTINGS
    with opened(path, {"seed": 5}, fresh=True) as journal:
        assert journal.lines == []


def test_without_a_path_nothing_is_kept() -> None:
    with opened(None) as journal:
        journal.add({"number": 1})
        assert journal.lines == []


@settings(deadline=None)
@given(data=st.data())
def test_a_half_written_last_line_is_cut_off_wherever_it_ends(data: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("journal") / "notes.jsonl"
    write(path, 2)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(
        whole[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0"] if whole[:cut].endswith(b"\n") else [b""]))
    )
    kept = max(0, whole[:cut].count(b"\n") - 1)
    assert held(path) == list(range(kept))
    write(path, 2, kept)
    assert held(path) == list(range(kept + 2))


def test_a_kill_loses_at_most_the_line_that_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    for _ in random_kills(lambda: write(path, 60), lambda: path.unlink(missing_ok=True), seed=1, kills=8):
        assert held(path) == list(range(len(held(path))))


@pytest.mark.parametrize("room", [5, 40])
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = tmp_path / "notes.jsonl"
    pwrite = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if len(data) > room:
            return pwrite(file, data[:room], place)
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(path) as journal:
        journal.add({"number": 0})
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=r"No space left on device. The 2 lines so far are kept; make room"):
            journal.add({"number": 1, "text": "x" * 200})
        assert path.read_bytes().endswith(b"\n"), "no half of a line stays"
        monkeypatch.undo()
        journal.add({"number": 1})
    assert held(path) == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "belongs to a run with seed = 0; this run has 1. Name another file."),
        ({"model": "other"}, 'belongs to a run with model = "m"; this run has "other"'),
        ({"recipe": {}}, "belongs to a run with recipe = "),
        ({"extra": True}, "belongs to a run with extra = null; this run has true"),
    ],
)
def test_a_file_of_other_settings_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "notes.jsonl"
    write(path, 1)
    before = path.read_bytes()
    with pytest.raises(StorageError) as found:
        opened(path, SETTINGS | change)
    assert message in str(found.value) and str(path) in str(found.value)
    assert path.read_bytes() == before
    with pytest.raises(StorageError, match="belongs to a run with seed = 0; this run has null"):
        opened(path, {name: value for name, value in SETTINGS.items() if name != "seed"})


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"my notes", b"my notes\n", b'{"format": "other"}\n', b"x"):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="holds no notes of Thrifty.s and is left alone"):
            opened(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["nonsense", "[1]", "3"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "notes.jsonl"
    write(path, 3)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n", encoding="utf-8")
    with pytest.raises(StorageError, match="line 3 of the notes .* is damaged.*Name another file"):
        opened(path)


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    with opened(path), pytest.raises(StorageError, match="another run is using the notes"):
        opened(path)
    write(path, 1)


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open the notes .*: No such file or directory"):
        opened(tmp_path / "nowhere" / "notes.jsonl")
    with pytest.raises(StorageError, match="cannot open the notes .*: Is a directory"):
        opened(tmp_path)
