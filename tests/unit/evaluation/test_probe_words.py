"""The head probes' words are no task's words, and scores of one probe are not read for another."""

from __future__ import annotations

import ast
import hashlib
import importlib.resources
import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable

import pytest

from thrifty.evaluation.heads import haystack, needles, riddles, words
from thrifty.evaluation.tasks._haystack import NAMES
from thrifty.evaluation.text import prose
from thrifty.models.head_scores import KINDS, PROBES

RUN, LONG_RUN = 4, 7
"""Words in a row that count as shared: of templates, and of running prose, where short ones are common English."""
SHARED = ("haystack", "items", "looking", "probe", "words")
MODULES = {"r": (*SHARED, "needles", "rules"), "r2": (*SHARED, "needles", "riddles", "rules")}
MODULES["kvzip"] = ("haystack", "probe", "reconstruction")
HEADS = importlib.resources.files("thrifty.evaluation.heads")
TASKS = importlib.resources.files("thrifty.evaluation.tasks")


def runs(text: str, count: int = RUN) -> set[tuple[str, ...]]:
    """Every run of `count` words, in lower case, a place to fill in being a word."""
    found = re.findall(r"[a-z]+|\{\w*\}", re.sub(r"\{\w*\}", "{}", text.lower()))
    return {tuple(found[place : place + count]) for place in range(len(found) - count + 1)}


def task_files(folder: Traversable) -> Iterator[Traversable]:
    for file in folder.iterdir():
        if file.is_dir():
            yield from task_files(file)
        elif file.name.endswith((".py", ".toml")):
            yield file


def task_texts() -> Iterator[str]:
    """Every text that a task's module spells, docstrings left out."""
    for file in task_files(TASKS):
        if file.name.endswith(".py"):
            tree = _without_docstrings(file.read_text(encoding="utf-8"))
            yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and _is_text(node))


def _is_text(node: ast.Constant) -> bool:
    return isinstance(node.value, str)


def probe_texts() -> list[str]:
    told = [text for form in needles.NEEDLES for text in (form.told, form.asked, form.lead)]
    asked = [text for form in riddles.RIDDLES for text in (form.reason, form.held, form.asked)]
    return [*told, *asked, riddles.BRIEFLY]


def test_no_run_of_words_is_shared_with_a_task() -> None:
    texts = [*map(str, task_texts()), prose()]
    theirs = set().union(*(runs(text) for text in texts))
    assert runs("The secret number of {name} is {number}.") <= theirs, "the tasks' own needle is among them"
    for text in probe_texts():
        assert not runs(text) & theirs, f"'{text}' shares words with a task"
    long = set().union(*(runs(text, LONG_RUN) for text in texts))
    for sentence in haystack.sentences():
        assert not runs(sentence, LONG_RUN) & long, f"'{sentence}' shares words with a task"


def test_no_name_is_shared_with_a_task() -> None:
    every = " ".join([*map(str, task_texts()), prose()])
    assert not set(words.PEOPLE) & set(NAMES)
    assert not [name for name in words.PEOPLE if re.search(rf"\b{name}\b", every)]
    assert not any(letter.isdigit() for text in [*probe_texts(), haystack.prose()] for letter in text)


def test_the_prose_is_its_own() -> None:
    assert len(haystack.sentences()) > 70
    assert not set(haystack.sentences()) & set(re.split(r"(?<=[.!?])\s+", prose()))


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Every text that stands as a statement: docstrings, and those under constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and _is_text(node.value):
            yield node


def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    dropped = {id(node.value) for node in _docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) in dropped:
            node.value = ""
    return tree


def code_lines(source: str) -> list[str]:
    """The lines that say what is done: without docstrings, comments on lines of their own, and blank ones."""
    told = {line for node in _docstrings(ast.parse(source)) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = enumerate(source.splitlines(), 1)
    kept = [line.rstrip() for number, line in lines if number not in told]
    return [line for line in kept if line and not line.lstrip().startswith("#")]


def digest(kind: str) -> str:
    """Of what a probe asks and how it scores: the code of its modules, and its prose."""
    files = [HEADS / f"{module}.py" for module in MODULES[kind]]
    lines = [line for file in files for line in code_lines(file.read_text(encoding="utf-8"))]
    return hashlib.sha256("\n".join([*lines, haystack.prose()]).encode()).hexdigest()[:8]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_keyed_by_what_was_asked(kind: str) -> None:
    assert PROBES[kind] == digest(kind), (
        f"the probe '{kind}' asks or scores something else now: write PROBES['{kind}'] = '{digest(kind)}' in "
        "models/head_scores.py, so that scores of the old one are measured again"
    )
