"""The state of a search: what it keeps, and a line that is none. The file itself: storage/test_journal.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from thrifty import registry
from thrifty.errors import StorageError
from thrifty.frontier.candidates import of_recipe
from thrifty.frontier.state import SearchState, default_path
from thrifty.recipe import Recipe

QUESTION = {"model": "abc", "context": 2048}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "state.jsonl"


def fill(path: Path, count: int, start: int = 0) -> None:
    with SearchState(path, QUESTION) as state:
        for index in range(start, count):
            state.add("run", str(index), {"value": index, "text": "ünï"})


def held(path: Path) -> int:
    with SearchState(path, QUESTION) as state:
        count = len(state)
        for index in range(count):
            assert state.find("run", str(index)) == {"value": index, "text": "ünï"}
        return count


def test_what_was_added_is_there_again(path: Path) -> None:
    fill(path, 3)
    assert held(path) == 3
    fill(path, 5, start=3)
    assert held(path) == 5
    with SearchState(path, QUESTION) as state:
        assert state.find("run", "7") is None and state.find("task", "1") is None


def test_without_a_path_it_lives_in_memory() -> None:
    state = SearchState(None, QUESTION)
    state.add("run", "a", 1)
    assert state.find("run", "a") == 1


def test_a_line_that_is_no_measurement_is_named(path: Path) -> None:
    fill(path, 2)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + '{"kind": 1}\n' + lines[2])
    with pytest.raises(
        StorageError, match=r"line 2 of the state of a search .*state.jsonl. is damaged.* Start it anew with --fresh"
    ):
        SearchState(path, QUESTION)
    with SearchState(path, QUESTION, fresh=True) as state:
        assert len(state) == 0


def test_a_state_of_another_question_is_refused_and_lies_elsewhere(path: Path) -> None:
    other = QUESTION | {"model": "xyz"}
    fill(path, 2)
    with pytest.raises(StorageError, match='belongs to a run with model = "abc"; this run has "xyz"'):
        SearchState(path, other)
    assert held(path) == 2
    assert default_path(QUESTION) != default_path(other)


@pytest.mark.parametrize(
    ("module", "option", "stage", "value"),
    [
        ("thrifty.cache.policies.kivi", "bits", "cache", 4),
        ("thrifty.weights.techniques.rtn", "group", "weights", 64),
        ("thrifty.cache.policies.snapkv", "window", "cache", 16),
    ],
)
def test_other_defaults_are_another_candidate(
    module: str, option: str, stage: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module.rpartition(".")[2]
    recipe = Recipe.from_document({stage: [{"technique": name}]})
    spelled = Recipe.from_document({stage: [{"technique": name, option: value}]})
    assert of_recipe(recipe).key != of_recipe(spelled).key
    field = registry.load(stage, name).__dataclass_fields__[option]  # type: ignore[attr-defined]
    same = Recipe.from_document({stage: [{"technique": name, option: field.default}]})
    assert of_recipe(recipe).key == of_recipe(same).key
    before = of_recipe(recipe)
    held, weights = before.key, before.weights_key
    monkeypatch.setattr(field, "default", value)
    after = of_recipe(recipe)
    assert after.key == of_recipe(spelled).key != held
    assert (after.weights_key != weights) == (stage == "weights")


def test_on_a_full_disk_a_value_is_still_known_to_this_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with SearchState(path, QUESTION) as state:
        state.add("run", "0", {"value": 0, "text": "ünï"})
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="No space left on device"):
            state.add("run", "1", {"value": 1, "text": "ünï"})
        assert state.find("run", "1") is not None
        monkeypatch.undo()
    assert held(path) == 1
