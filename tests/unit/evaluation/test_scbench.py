"""SCBench's tasks: several questions over one context, as turns or requests, each with a checkable answer."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from tests.tiny import ByteTokenizer, tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.asking import ask
from thrifty.evaluation.tasks._library import functions
from thrifty.evaluation.tasks._sessions import SharedContext
from thrifty.evaluation.tasks.scbench._code import repeats
from thrifty.evaluation.tasks.task import Item

NAMES = tasks.groups()["scbench"]
KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def made(name: str, count: int = 3, length: int = 2600, **options: Any) -> tuple[SharedContext, list[Item]]:
    task = tasks.load(name, length=length, **options)
    assert isinstance(task, SharedContext)
    return task, task.items(ByteTokenizer(), count, 0)


def test_eleven_of_the_twelve_tasks_are_there() -> None:
    assert len(NAMES) == 11 and set(NAMES) == {name for name in tasks.names() if name.startswith("scbench-")}


@pytest.mark.parametrize("name", [*NAMES, "long-documents"])
def test_right_answers_score_1_and_answers_of_another_item_less(name: str) -> None:
    task, items = made(name, 4)
    alien = []
    for item, other in zip(items, items[1:] + items[:1], strict=True):
        for turn, theirs in zip(item.turns, other.turns, strict=True):
            assert task.grade(item, turn, text(turn.right)) == 1.0
            assert task.grade(item, turn, "") == 0.0
            alien.append(task.grade(item, turn, text(theirs.right)))
    assert statistics.fmean(alien) < 0.5


@pytest.mark.parametrize("name", [*NAMES, "long-documents"])
@pytest.mark.parametrize("sharing", ["turns", "requests"])
def test_only_the_first_question_may_be_compressed(name: str, sharing: str) -> None:
    for mode in ("agnostic", "aware"):
        task, (item,) = made(name, 1, mode=mode, sharing=sharing, questions=2)
        first, second = (text(turn.tokens) for turn in item.turns)
        assert len(item.prompt) <= 2600 and first.strip() and "assistant: " in first
        assert first.startswith("\nassistant: ") is (mode == "aware") and not second.startswith("\nassistant: ")
        fed = task.fed(item)
        assert fed is not None and fed[0] == item.turns[0].tokens
        after = item.turns[0].tokens + item.turns[0].right if sharing == "turns" else ()
        assert fed[1] == after + item.turns[1].tokens
        assert bool(item.turns[0].right) is (sharing == "turns")


def test_turns_without_right_answers_go_on_from_the_models_own(engine: Engine) -> None:
    for golden in (True, False):
        task, (item,) = made("scbench-kv", 1, length=900, golden=golden, questions=2)
        record = task.run(engine, item, KIVI)
        said: tuple[int, ...] = ()
        answers = []
        for turn in item.turns:
            reply = ask(engine, item.prompt, said + turn.tokens, task.limit, KIVI, stop=task.stop)
            answers.append(reply.text.strip())
            said += turn.tokens + (turn.right if golden else reply.tokens)
        assert record.output == "\n".join(answers) and len(record.details["turns"]) == 2


def test_values_belong_to_their_keys() -> None:
    for item in made("scbench-kv")[1]:
        told = text(item.prompt).split("{\n")[1].removesuffix("\n}").removesuffix(",")
        pairs = json.loads("{" + told + "}")
        for turn in item.turns:
            (key,) = re.findall(r'key "([^"]+)"', text(turn.tokens))
            assert (pairs[key],) == turn.expected


def test_one_string_begins_and_ends_as_told() -> None:
    for item in made("scbench-prefix-suffix")[1]:
        strings = text(item.prompt).splitlines()[2:]
        for turn in item.turns:
            head, tail = re.findall(r'with "(\w+)"', text(turn.tokens))
            assert [one for one in strings if one.startswith(head)] == [turn.expected[0]]
            assert turn.expected[0].endswith(tail)


def test_every_chain_has_its_own_value() -> None:
    for item in made("scbench-vt")[1]:
        assert len({turn.expected for turn in item.turns}) == 3 and all(len(turn.expected) == 3 for turn in item.turns)
        for turn in item.turns:
            value = re.findall(r"the value (\d+)", text(turn.tokens))[0]
            assert f"VAR {turn.expected[0]} = {value}" in text(item.prompt)
            assert f"VAR {turn.expected[2]} = VAR {turn.expected[1]}" in text(item.prompt)


def test_naming_all_that_there_is_does_not_pay() -> None:
    """All variables, those of other chains first; all values of the object, the asked one last."""
    task, (item,) = made("scbench-vt", 1, questions=1)
    (turn,) = item.turns
    variables = re.findall(r"VAR (\w+) =", text(item.prompt))
    others = [name for name in variables if name not in turn.expected]
    assert len(others) >= 3 and task.grade(item, turn, " ".join([*others, *turn.expected])) == 0.0
    assert task.grade(item, turn, " ".join([*turn.expected, *others])) == 1.0
    mixed, (item,) = made("scbench-repoqa-and-kv", 1)
    turn, value = item.turns[0], item.turns[0].expected[0]
    assert mixed.grade(item, turn, f'{value}", "and-so-on": "') == 1.0
    assert mixed.grade(item, turn, f'00000000-0000", "another-key": "{value}"') == 0.0


def test_figures_of_a_list_are_those_of_its_numbers() -> None:
    for item in made("scbench-mf", questions=5)[1]:
        numbers = sorted(map(int, text(item.prompt).split("\n\n")[1].split(", ")))
        by_rank = {"largest": -1, "second largest": -2, "smallest": 0, "second smallest": 1}
        distinct = sorted(set(numbers))
        for turn in item.turns:
            (which,) = re.findall(r"What is the ([a-z ]+) number", text(turn.tokens))
            right = numbers[(len(numbers) - 1) // 2] if which == "median" else distinct[by_rank[which]]
            assert turn.expected == (str(right),)


def test_the_first_number_of_an_answer_counts() -> None:
    task, (item,) = made("scbench-mf", 1)
    (right, wrong) = (item.turns[0].expected[0], str(int(item.turns[0].expected[0]) + 1))
    assert task.grade(item, item.turns[0], f" {right}, not {wrong}") == 1.0
    assert task.grade(item, item.turns[0], f" {wrong}, not {right}") == 0.0


def test_examples_show_other_words_of_the_same_kinds() -> None:
    for item in made("scbench-many-shot")[1]:
        shown = dict(re.findall(r"Word: (\w+)\nLabel: (\w+)", text(item.prompt)))
        assert len(set(shown.values())) == 4
        for turn in item.turns:
            word = re.findall(r"Word: (\w+)", text(turn.tokens))[-1]
            assert word not in shown and turn.expected[0] in shown.values()


def test_functions_are_told_apart_by_their_code() -> None:
    short = [function.code for function in functions() if function.short]
    assert len(short) > 60 and len(set(short)) == len(short)
    first, second = short[:2]
    assert repeats(first, first, short) and not repeats(second, first, short) and not repeats("", first, short)
    nearly = "\n".join(first.splitlines()[:-1])
    assert repeats(nearly, first, short) is (2 * len(nearly) / (len(nearly) + len(first)) >= 0.8)


def test_documentation_stands_in_no_code_that_is_asked_for() -> None:
    for name in ("scbench-repoqa", "scbench-summary"):
        for item in made(name)[1]:
            assert '"""' not in text(item.prompt)
            for turn in item.turns:
                told = {function.summary: function.code for function in functions()}
                summary = next(one for one in told if one in text(turn.tokens) or (one,) == turn.expected)
                assert told[summary] in text(item.prompt) and summary not in text(item.prompt)


def test_mixed_tasks_ask_in_turn_for_either_kind() -> None:
    for item in made("scbench-summary-with-needles", questions=4)[1]:
        assert [turn.expected[0].isdigit() for turn in item.turns] == [True, False, True, False]
    for item in made("scbench-repoqa-and-kv", questions=4)[1]:
        assert ["def " in turn.expected[0] for turn in item.turns] == [False, True, False, True]


def test_the_first_letter_of_a_choice_counts() -> None:
    task, items = made("scbench-choice-eng", 6)
    letters = [turn.expected[0] for item in items for turn in item.turns]
    assert len(set(letters)) > 1 and set(letters) <= set("ABCD")
    turn = items[0].turns[0]
    wrong = next(letter for letter in "ABCD" if letter != turn.expected[0])
    assert task.grade(items[0], turn, f" {turn.expected[0]}. {wrong}") == 1.0
    assert task.grade(items[0], turn, f" {wrong}. {turn.expected[0]}") == 0.0


@pytest.mark.parametrize("document", ["essays", "reference", "manual"])
def test_documents_answer_their_questions_once(document: str) -> None:
    _, items = made("long-documents", document=document)
    for item in items:
        told = text(item.prompt).lower()
        for turn in item.turns:
            assert turn.expected[0].lower() in told and turn.expected[0] not in text(turn.tokens).split()


@pytest.mark.parametrize("name", [*NAMES, "long-documents"])
def test_a_context_that_is_too_short_is_refused(name: str) -> None:
    with pytest.raises(PromptError, match="use a larger --length"):
        made(name, 1, 100)
