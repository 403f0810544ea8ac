"""Items of the Berkeley Function Calling Leaderboard, and the judging of calls by the package's own checker.

The package bfcl-eval brings both; what it requires (the clients of all makers of models) is not needed:
`pip install --no-deps bfcl-eval`.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Category = Literal["simple_python", "multiple", "parallel", "parallel_multiple"]
"""Single-turn items: one function and one call; several functions, of which one is called; several calls; both."""

INSTALL = "--no-deps bfcl-eval"
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""The data's names of types that JSON schemas call otherwise."""

KEYWORDS = ("description", "enum", "required")
"""Of a parameter, besides its type and what is inside it; defaults are text of its description."""

MODEL = "served"
MODELS = "bfcl_eval.constants.model_config"  # the package's list of models, of which it needs one entry


@dataclass(frozen=True)
class CallItem:
    """A question, the functions that may answer it (as the data has them), and the calls that are right."""

    name: str
    messages: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    answer: list[dict[str, Any]]

    @property
    def function(self) -> dict[str, Any]:
        """The first function, the only one of simple items."""
        return self.functions[0]

    @property
    def called(self) -> str:
        """The first function's name as OpenAI's API takes it, and the checker expects it."""
        return api_name(self.function)


def api_name(function: Mapping[str, Any]) -> str:
    """A function's name as OpenAI's API takes it."""
    return str(function["name"]).replace(".", "_")


def read(directory: Path, category: Category = "simple_python") -> list[CallItem]:
    """All items of a category. directory: bfcl_eval's `data`. Raises ValueError where questions and answers differ."""
    name = f"BFCL_v4_{category}.json"
    questions, answers = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        for folder in (directory, directory / "possible_answer")
    )
    items = []
    for question, answer in zip(questions, answers, strict=True):
        if question["id"] != answer["id"]:
            raise ValueError(f"'{directory / name}': the answer of '{question['id']}' is that of '{answer['id']}'")
        items.append(CallItem(question["id"], question["question"][0], question["function"], answer["ground_truth"]))
    return items


def json_schema(described: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter of the data as a JSON schema; of objects that name their properties, no others are allowed."""
    kind = described["type"]
    schema: dict[str, Any] = {"type": TYPES.get(kind, kind)}
    schema |= {name: described[name] for name in KEYWORDS if name in described}
    if "items" in described:
        schema["items"] = json_schema(described["items"])
    if "properties" in described:
        schema["properties"] = {name: json_schema(own) for name, own in described["properties"].items()}
        schema["additionalProperties"] = False
    return schema


def checker() -> Callable[..., Any]:
    """bfcl_eval's checker of calls. Its list of models imports the clients of all their makers; the one thing that the
    checker reads there is whether a model writes "." in names as "_", as here.
    """
    models = types.ModuleType(MODELS)
    models.MODEL_CONFIG_MAPPING = {MODEL: types.SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
    sys.modules[MODELS] = models
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    check: Callable[..., Any] = ast_checker
    return check


def wrong(
    item: CallItem, calls: Sequence[Mapping[str, Any]], category: Category, check: Callable[..., Any]
) -> str | None:
    """What is wrong with the calls, {function: arguments} each, by the checker; None where they are right."""
    from bfcl_eval.constants.enums import Language

    result = check(item.functions, list(calls), item.answer, Language.PYTHON, category, MODEL)
    return None if result["valid"] else str(result["error_type"])
