"""Function calls as a task: its items are the package's, its halves are apart, and the package's checker judges."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.task_packages import CALLS, bfcl
from tests.tiny import ByteTokenizer

from thrifty.errors import PromptError
from thrifty.evaluation import function_calls, tasks
from thrifty.evaluation.tasks import TaskError
from thrifty.evaluation.tasks._packages import of_half
from thrifty.evaluation.tasks.bfcl import LEAD, Bfcl, calls_of
from thrifty.evaluation.tasks.task import Answered

ENGINE: Any = None  # grading needs none


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bfcl:
    bfcl(tmp_path, monkeypatch)
    return Bfcl()


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def answer(item: Any, times: int = 1, **arguments: Any) -> str:
    name = function_calls.api_name(item.material["functions"][0])
    return json.dumps([{"name": name, "arguments": arguments or {"x": 7}}] * times).removeprefix(LEAD)


def test_the_functions_are_compressed_and_the_request_comes_after_or_with_them(task: Bfcl) -> None:
    (item,) = task.items(ByteTokenizer(), 1, 0)
    assert "math_add_" in text(item.prompt) and "more than 7" not in text(item.prompt)
    assert "more than 7" in text(item.turns[0].tokens) and text(item.turns[0].tokens).endswith(LEAD)
    (aware,) = Bfcl(mode="aware").items(ByteTokenizer(), 1, 0)
    assert "more than 7" in text(aware.prompt)


def test_every_item_belongs_to_one_half(task: Bfcl) -> None:
    names = []
    for half in ("tuning", "judged"):
        own: Any = tasks.load("bfcl", half=half)
        count = len(of_half([item.name for item in own.known()], own.half))
        names += [item.material["name"] for item in own.items(ByteTokenizer(), count, 3)]
    assert sorted(names) == sorted(f"q{number}" for number in range(CALLS))


def test_the_packages_checker_judges(task: Bfcl) -> None:
    for item in task.items(ByteTokenizer(), 3, 0):
        (turn,) = item.turns
        assert task.grade(item, turn, answer(item)) == 1.0
        assert task.grade(item, turn, answer(item, x=8)) == task.grade(item, turn, answer(item, 2)) == 0.0
        assert task.grade(item, turn, "nothing") == task.grade(item, turn, "") == 0.0
    several = Bfcl(category="parallel")
    (item,) = several.items(ByteTokenizer(), 1, 0)
    assert several.grade(item, item.turns[0], answer(item, 2)) == 1.0
    assert several.grade(item, item.turns[0], answer(item)) == 0.0


def test_right_calls_are_wrong_for_others(task: Bfcl) -> None:
    done = [Answered(item, task.graded(item, [answer(item)], 0.1)) for item in task.items(ByteTokenizer(), 3, 0)]
    assert [one.record.score for one in done] == [1.0] * 3
    assert task.scrambled(ENGINE, done[0], done[1:]) == 0.0


def test_calls_are_read_from_json() -> None:
    one = {"f": {"x": [1, {"y": 2}]}}
    assert calls_of('[{"name": "f", "arguments": {"x": [1, {"y": 2}]}}]') == [one]
    assert calls_of('[{"name": "f", "arguments": {"x": [1, {"y": 2}]}}, {"name": "g", "arguments": {}}') == [
        one,
        {"g": {}},
    ]
    assert calls_of('[{"name": "g", "arguments": {}}] {"name"') == [{"g": {}}]
    for wrong in ("", "[]", '[{"name": "f"}]', '[{"name": "f", "arguments": 3}]', '[{"name": "f", "argum'):
        assert calls_of(wrong) is None


def test_what_is_not_there_is_named(task: Bfcl, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match="the data of bfcl-eval cannot be read"):
        Bfcl(category="multiple").items(ByteTokenizer(), 1, 0)
    with pytest.raises(PromptError, match=r"items, and 99 were asked for"):
        task.items(ByteTokenizer(), 99, 0)
    with pytest.raises(PromptError, match="use --length"):
        Bfcl(length=20).items(ByteTokenizer(), 1, 0)
    with pytest.raises(TaskError, match="task 'bfcl', option 'category'"):
        tasks.load("bfcl", category="irrelevance")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="bfcl_eval, which is not installed: pip install --no-deps bfcl-eval"):
        task.items(ByteTokenizer(), 1, 0)


@pytest.mark.slow
def test_the_packages_own_answers_are_right() -> None:
    """The first allowed value of every argument, where there are any, by the package's own checker."""
    if importlib.util.find_spec("bfcl_eval") is None:
        pytest.skip("bfcl-eval is not installed")
    for category in ("simple_python", "multiple", "parallel", "parallel_multiple"):
        task: Any = tasks.load("bfcl", category=category, length=16384)
        items = task.items(ByteTokenizer(), 60, 0)
        right = [task.grade(item, item.turns[0], first(item)) for item in items]
        assert sum(right) > 0.8 * len(right), category


def first(item: Any) -> str:
    calls = []
    for call in item.material["answer"]:
        ((name, allowed),) = call.items()
        arguments = {key: values[0] for key, values in allowed.items() if values and values[0] != ""}
        calls.append({"name": name.replace(".", "_"), "arguments": arguments})
    return json.dumps(calls).removeprefix(LEAD)
