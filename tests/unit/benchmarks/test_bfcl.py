"""The benchmark of function calls: what is asked, and what counts as valid and right."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bfcl import Score, _count, body, items

from thrifty.evaluation.function_calls import CallItem, json_schema

FUNCTION = {
    "name": "math.hypot",
    "description": "The hypotenuse.",
    "parameters": {
        "type": "dict",
        "properties": {
            "x": {"type": "float", "description": "A side.", "default": 1.0},
            "marks": {"type": "tuple", "items": {"type": "any"}, "optional": True},
        },
        "required": ["x"],
    },
}
ITEM = CallItem(
    "simple_python_0", [{"role": "user", "content": "4 and 5?"}], [FUNCTION], [{"math.hypot": {"x": [4.0]}}]
)


def test_the_datas_types_become_a_json_schema() -> None:
    assert json_schema(FUNCTION["parameters"]) == {  # type: ignore[arg-type]
        "type": "object",
        "required": ["x"],
        "properties": {
            "x": {"type": "number", "description": "A side."},
            "marks": {"type": "array", "items": {"type": "string"}},
        },
        "additionalProperties": False,
    }


def test_a_body_names_the_function_as_the_api_takes_it() -> None:
    asked = body(ITEM, "m", "named")
    assert asked["tools"][0]["function"]["name"] == "math_hypot"
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "math_hypot"}}
    assert asked["parallel_tool_calls"] is False
    assert body(ITEM, "m", "auto")["tool_choice"] == "auto"


def test_items_are_spread_over_the_file(tmp_path: Path) -> None:
    name = "BFCL_v4_simple_python.json"
    (tmp_path / "possible_answer").mkdir()
    told = [{"id": str(place), "question": [ITEM.messages], "function": [FUNCTION]} for place in range(8)]
    (tmp_path / name).write_text("\n".join(map(json.dumps, told)))
    right = [{"id": str(place), "ground_truth": ITEM.answer} for place in range(8)]
    (tmp_path / "possible_answer" / name).write_text("\n".join(map(json.dumps, right)))
    assert [item.name for item in items(tmp_path, 4)] == ["0", "2", "4", "6"]


class Answer:
    """An answer of a server."""

    def __init__(self, message: dict[str, Any], status: int = 200) -> None:
        self.status_code, self.text, self._message = status, "why", message

    def json(self) -> dict[str, Any]:
        return {"choices": [{"message": self._message}]}


def called(arguments: str) -> Answer:
    return Answer({"tool_calls": [{"function": {"name": "math_hypot", "arguments": arguments}}]})


def test_answers_are_counted_by_what_is_wrong_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonschema")
    enums = types.ModuleType("bfcl_eval.constants.enums")
    enums.Language = types.SimpleNamespace(PYTHON="python")  # type: ignore[attr-defined]
    for name in ("bfcl_eval", "bfcl_eval.constants"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, enums.__name__, enums)

    def check(functions: Any, calls: Any, *rest: Any) -> dict[str, Any]:
        return {"valid": calls == [{"math_hypot": {"x": 4.0}}], "error_type": "value_error"}

    score = Score()
    for answer in (
        called('{"x": 4.0}'), called('{"x": 5.0}'), called('{"x": "4"}'), called('{"x": 4'), Answer({"content": "4"}),
        Answer({}, status=500),
    ):  # fmt: skip
        _count(score, ITEM, answer, check)
    assert (score.answers, score.valid, score.right) == (6, 2, ["simple_python_0"])
    assert score.faults == {
        "value_error": 1, "not the schema's: type": 1, "no JSON": 1, "0 calls": 1, "status 500: why": 1,
    }  # fmt: skip
    assert score.messages == {ITEM.name: {"content": "4"}}
