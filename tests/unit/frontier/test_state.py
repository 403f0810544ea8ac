"""The state of a search: nothing is lost, nothing of another search is used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import killing

from thrifty.errors import StorageError
from thrifty.frontier.state import State, default_path

QUESTION = {"model": "abc", "context": 2048}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "state.jsonl"


def fill(path: Path, count: int, start: int = 0) -> None:
    with State(path, QUESTION) as state:
        for index in range(start, count):
            state.add("run", str(index), {"value": index, "text": "ünï"})


def held(path: Path) -> int:
    with State(path, QUESTION) as state:
        count = len(state)
        for index in range(count):
            assert state.find("run", str(index)) == {"value": index, "text": "ünï"}
        return count


def test_what_was_added_is_there_again(path: Path) -> None:
    fill(path, 3)
    assert held(path) == 3
    fill(path, 5, start=3)
    assert held(path) == 5
    with State(path, QUESTION) as state:
        assert state.find("run", "7") is None and state.find("task", "1") is None


def test_without_a_path_it_lives_in_memory() -> None:
    state = State(None, QUESTION)
    state.add("run", "a", 1)
    assert state.find("run", "a") == 1


@pytest.mark.parametrize("rest", ['{"kind": "run", "ke', '{"kind": "run", "key": "9", "value": 1}', "\0\0\0"])
def test_an_unfinished_last_line_is_cut_off(path: Path, rest: str) -> None:
    fill(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + rest.encode())
    assert held(path) == 2
    assert path.read_bytes() == whole
    fill(path, 3, start=2)
    assert held(path) == 3


def test_a_state_whose_first_line_is_unfinished_starts_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"thrif')
    fill(path, 1)
    assert held(path) == 1


@pytest.mark.parametrize("damage", ["nonsense\n", '{"kind": 1}\n', "3\n"])
def test_damage_inside_is_named(path: Path, damage: str) -> None:
    fill(path, 2)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + damage + lines[2])
    with pytest.raises(
        StorageError, match=r"line 2 of the state of a search .*state.jsonl. is damaged.* Start it anew with --fresh"
    ):
        State(path, QUESTION)
    with State(path, QUESTION, fresh=True) as state:
        assert len(state) == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "xyz", "context": 2048}, 'belongs to a run with model = "abc"; this run has "xyz"'),
        ({"model": "abc", "context": 64}, "belongs to a run with context = 2048; this run has 64"),
        ({"model": "abc"}, "belongs to a run with context = 2048; this run has null"),
    ],
)
def test_a_state_of_another_question_is_refused_with_what_differs(
    path: Path, other: dict[str, object], message: str
) -> None:
    fill(path, 2)
    with pytest.raises(StorageError, match=message):
        State(path, other)
    assert held(path) == 2
    assert default_path(QUESTION) != default_path(other)


def test_a_file_of_something_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(StorageError, match="holds no state of a search of Thrifty.s"):
        State(path, QUESTION)
    assert json.loads(path.read_text()) == {"a": 1}


def test_two_searches_do_not_share_a_state(path: Path) -> None:
    with State(path, QUESTION), pytest.raises(StorageError, match="another run is using the state of a search"):
        State(path, QUESTION)
    assert held(path) == 0


def test_a_full_disk_is_named_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(path, QUESTION)
    state.add("run", "0", {"value": 0, "text": "ünï"})
    write = os.pwrite

    def half(file: int, data: bytes, place: int) -> int:
        if len(data) > 5:
            return write(file, data[:5], place)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(StorageError, match="No space left on device"):
        state.add("run", "1", {"value": 1, "text": "ünï"})
    assert state.find("run", "1") is not None, "still known to this search"
    monkeypatch.undo()
    state.close()
    assert held(path) == 1


def test_a_kill_loses_at_most_the_line_in_work(path: Path) -> None:
    def prepare() -> None:
        path.unlink(missing_ok=True)

    run: Callable[[], None] = lambda: fill(path, 60)  # noqa: E731
    for _ in killing.random_kills(run, prepare, seed=0, kills=5):
        assert 0 <= held(path) <= 60
