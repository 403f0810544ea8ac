"""The long-context tasks: items are what they say, a right answer scores 1 and a wrong one 0."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from tests.tiny import ByteTokenizer, tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.asking import ask
from thrifty.evaluation.tasks import TaskError
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._haystack import NAMES
from thrifty.evaluation.tasks._lists import WORDS
from thrifty.evaluation.tasks.task import Item

ANSWERED = [name for name in tasks.groups()["longcontext"] if name != "kl"]
KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def made(name: str, count: int = 4, **options: Any) -> tuple[Answering, list[Item]]:
    task = tasks.parse(name, length=900, **options)
    assert isinstance(task, Answering)
    return task, task.items(ByteTokenizer(), count, 0)


@pytest.mark.parametrize("name", ANSWERED)
def test_a_right_answer_scores_1_and_wrong_ones_0(name: str) -> None:
    task, found = made(name)
    for item in found:
        for turn in item.turns:
            assert task.grade(item, turn, f" {', '.join(turn.expected)}.") == 1.0
            assert task.grade(item, turn, "") == task.grade(item, turn, " I do not know.") == 0.0
            wrong = {one for other in found for one in other.turns[0].expected} - set(turn.expected)
            assert task.grade(item, turn, ", ".join(sorted(wrong))) == 0.0


@pytest.mark.parametrize("name", ["recall", "recall-many", "multi-turn", "multi-request"])
def test_every_number_stands_once_and_beside_its_city(name: str) -> None:
    _, found = made(name)
    for item in found:
        facts = dict(re.findall(r"The secret number of (\w+) is (\d+)\.", text(item.prompt)))
        assert len(set(facts.values())) == len(facts) >= len(item.turns)
        for turn in item.turns:
            city = re.findall(r"What is the secret number of (\w+)\?", text(turn.tokens))[-1]
            assert facts[city] == turn.expected[0]
            assert len(re.findall(rf"\b{turn.expected[0]}\b", text(item.prompt))) == 1


@pytest.mark.parametrize("hops", [1, 2, 4])
@pytest.mark.parametrize("chains", [1, 3])
def test_hops_chain_to_the_asked_number_and_distractors_to_others(hops: int, chains: int) -> None:
    _, found = made("tracing", hops=hops, chains=chains)
    for item in found:
        told = text(item.prompt)
        holds = dict(re.findall(r"The secret number of (\w+) is (\d+)\.", told))
        links = re.findall(r"The secret number of (\w+) is that of (\w+)\.", told)
        assert len(holds) == len(set(holds.values())) == chains and len(links) == hops * chains
        for name, other in links:  # in the text's order: a link stands after what it refers to
            holds[name] = holds[other]
        (turn,) = item.turns
        (number,) = set(re.findall(r"secret number (\d+)", text(turn.tokens)))
        assert set(turn.expected) == {name for name, value in holds.items() if value == number}
        assert len(turn.expected) == hops + 1 and len(holds) == chains * (hops + 1)


def test_of_a_chain_only_so_many_cities_count_as_it_has() -> None:
    task, (item,) = made("tracing", count=1)
    (turn,) = item.turns
    first, second, third = turn.expected
    wrong = next(name for name in NAMES if name not in turn.expected)
    assert task.grade(item, turn, f"{first}, {second}") == pytest.approx(2 / 3)
    assert task.grade(item, turn, f"{wrong}, {first.upper()}, {second}, {third}") == pytest.approx(2 / 3)
    assert task.grade(item, turn, f"{first}, {first}, {second} and {third}") == 1.0
    assert task.grade(item, turn, ", ".join(sorted(NAMES, key=lambda name: name in turn.expected))) == 0.0


@pytest.mark.parametrize("name", ["aggregation", "frequent-words"])
@pytest.mark.parametrize("common", [1, 3])
def test_of_the_words_to_aggregate_the_expected_ones_come_most_often(name: str, common: int) -> None:
    _, found = made(name, common=common)
    for item in found:
        often = Counter(text(item.prompt).removeprefix("user: ").removesuffix(".").split(", "))
        top = often.most_common(common + 1)
        assert {word for word, _ in top[:common]} == set(item.turns[0].expected)
        assert top[common][1] < top[common - 1][1] and set(often) <= set(WORDS)


def test_frequencies_fall_with_the_rank() -> None:
    _, (item,) = made("frequent-words", count=1, alpha=1.5, common=2)
    counts = sorted(Counter(text(item.prompt).removeprefix("user: ").removesuffix(".").split(", ")).values())[::-1]
    total = sum(counts)
    normaliser = sum(rank**-1.5 for rank in range(1, len(WORDS) + 1))
    for rank, count in enumerate(counts[1:4], 2):
        assert count == int(total * rank**-1.5 / normaliser)


def test_a_conversation_goes_on_from_right_answers_or_from_the_models_own(engine: Engine) -> None:
    for golden in (True, False):
        task, (item,) = made("multi-turn", count=1, golden=golden)
        record = task.run(engine, item, KIVI)
        said: tuple[int, ...] = ()
        answers = []
        for turn in item.turns:
            reply = ask(engine, item.prompt, said + turn.tokens, task.limit, KIVI, stop=task.stop)
            answers.append(reply.text.strip())
            said += turn.tokens + (turn.right if golden else reply.tokens)
            assert text(turn.right) == f" {turn.expected[0]}."
        assert record.output == "\n".join(answers) and len(record.details["turns"]) == 3


def test_requests_know_nothing_of_one_another(engine: Engine) -> None:
    task, (item,) = made("multi-request", count=1)
    record = task.run(engine, item, KIVI)
    alone = [ask(engine, item.prompt, turn.tokens, task.limit, KIVI, stop=task.stop) for turn in item.turns]
    assert record.output == "\n".join(one.text.strip() for one in alone) and len(alone) == 4


def test_a_group_is_its_tasks_and_hands_its_options_on() -> None:
    plain = tasks.parse_all(["longcontext"], length=700)
    assert [task.label for task in plain] == tasks.groups()["longcontext"]
    assert all(task.length == 700 for task in plain)
    shorter = tasks.parse_all(["longcontext:length=300:digits=3"], length=700)
    assert all(task.length == 300 and getattr(task, "digits", 3) == 3 for task in shorter)
    aware = tasks.parse_all(["longcontext:mode=aware"])
    assert len(aware) == (len(plain) + 1) // 2 and "recall:mode=aware" in [task.label for task in aware]


def test_a_task_of_two_lengths_has_two_names() -> None:
    found = tasks.parse_all(["recall:length=300", "recall:length=500", "kl", "recall:length=300"])
    assert tasks.labels(found) == ["recall:length=300", "recall:length=500", "kl"]


def test_what_a_group_cannot_be_asked() -> None:
    with pytest.raises(TaskError, match="no task of the group 'longcontext' has an option 'lenght'.*'length'"):
        tasks.parse_all(["longcontext:lenght=3"])
    with pytest.raises(TaskError, match="no task 'longcontex'. Did you mean 'longcontext'"):
        tasks.parse_all(["longcontex"])
    with pytest.raises(TaskError, match="task 'tracing', option 'hops'"):
        tasks.load("tracing", hops=5)
    with pytest.raises(PromptError, match="use a larger --length"):
        tasks.load("tracing", length=100).items(ByteTokenizer(), 1, 0)
    with pytest.raises(PromptError, match="too short for a most frequent one"):
        tasks.load("frequent-words", length=60).items(ByteTokenizer(), 1, 0)
