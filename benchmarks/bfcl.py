"""Calls of functions: items of the Berkeley Function Calling Leaderboard through servers of OpenAI's chat API.

The items have one function and one call each (`simple_python` of the package bfcl-eval, every fourth of its 400). Every
server gets the same bodies. Told of each: answers whose call is JSON of the function's schema, and answers that are
right by the package's own checker. Needs `pip install httpx jsonschema`, and `pip install --no-deps bfcl-eval`:

    thrifty serve qwen2.5-coder-0.5b --port 8000
    python -m llama_cpp.server --model FILE.gguf --model_alias qwen2.5-coder-0.5b --port 8001 --n_ctx 4096 \
        --chat_format chatml-function-calling
    python benchmarks/bfcl.py --model qwen2.5-coder-0.5b --server thrifty=http://127.0.0.1:8000/v1 \
        --server llama.cpp=http://127.0.0.1:8001/v1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""The data's names of types that JSON schemas call otherwise."""

KEYWORDS = ("description", "enum", "required")
"""Of a parameter, besides its type and what is inside it; defaults are text of its description."""

MODEL = "served"
CHOICES = ("named", "required", "auto")


@dataclass(frozen=True)
class Item:
    """A question, the one function that answers it (as the data has it), and the calls that are right."""

    name: str
    messages: list[dict[str, Any]]
    function: dict[str, Any]
    answer: list[dict[str, Any]]

    @property
    def called(self) -> str:
        """The function's name as OpenAI's API takes it, and the checker expects it."""
        return str(self.function["name"]).replace(".", "_")


@dataclass
class Score:
    """What a server's answers were. right: items. faults: how often each kind of wrong answer came. messages: of the
    wrong ones, by item.
    """

    answers: int = 0
    valid: int = 0
    right: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    messages: dict[str, Any] = field(default_factory=dict)


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


def items(directory: Path, count: int) -> Iterator[Item]:
    """So many items, spread over the file. directory: bfcl_eval's `data`."""
    name = "BFCL_v4_simple_python.json"
    questions, answers = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for folder in (directory, directory / "possible_answer")
    )
    for place in range(0, len(questions), max(1, len(questions) // count)):
        question, answer = questions[place], answers[place]
        assert question["id"] == answer["id"]
        yield Item(question["id"], question["question"][0], question["function"][0], answer["ground_truth"])


def body(item: Item, model: str, choice: str) -> dict[str, Any]:
    """The request for one item. choice: "named" forces the function by its name."""
    parameters = json_schema(item.function["parameters"])
    function = {"name": item.called, "description": item.function["description"], "parameters": parameters}
    named = {"type": "function", "function": {"name": item.called}}
    return {
        "model": model,
        "messages": item.messages,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": named if choice == "named" else choice,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 512,
    }


def fault_of(item: Item, message: Mapping[str, Any], check: Callable[..., Any]) -> tuple[bool, str | None]:
    """Whether a message is one call of the function whose arguments fit its schema, and what is wrong with it, None
    where it is right. check: bfcl_eval's `ast_checker`.
    """
    import jsonschema
    from bfcl_eval.constants.enums import Language

    calls = message.get("tool_calls") or []
    if len(calls) != 1:
        return False, f"{len(calls)} calls"
    function = calls[0]["function"]
    try:
        arguments = json.loads(function["arguments"])
        jsonschema.validate(arguments, json_schema(item.function["parameters"]))
    except ValueError:
        return False, "no JSON"
    except jsonschema.ValidationError as error:
        return False, f"not the schema's: {error.validator}"
    called = [{function["name"]: arguments}]
    result = check([item.function], called, item.answer, Language.PYTHON, "simple_python", MODEL)
    return True, None if result["valid"] else str(result["error_type"])


def checker() -> Callable[..., Any]:
    """bfcl_eval's checker of calls. Its list of models imports the clients of all their makers; the one thing that the
    checker reads there is whether a model writes "." in names as "_", as here.
    """
    models = types.ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {MODEL: types.SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
    sys.modules[models.__name__] = models
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    return ast_checker  # type: ignore[no-any-return]


def measure(url: str, asked: Sequence[Item], model: str, choice: str, parallel: int) -> Score:
    """Every item to one server, so many at a time. Ctrl-C ends it with the answers that came."""
    import httpx

    check, score = checker(), Score()
    with httpx.Client(timeout=1800) as client, ThreadPoolExecutor(parallel) as pool:

        def ask(item: Item) -> httpx.Response:
            return client.post(f"{url}/chat/completions", json=body(item, model, choice))

        waiting = {pool.submit(ask, item): item for item in asked}
        try:
            for done in as_completed(waiting):
                _count(score, waiting[done], done.result(), check)
                print(f"\r{url}: {score.answers}", end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
    print(file=sys.stderr)
    return score


def _count(score: Score, item: Item, answer: Any, check: Callable[..., Any]) -> None:
    score.answers += 1
    if answer.status_code != 200:
        score.faults[f"status {answer.status_code}: {answer.text[:200]}"] += 1
        return
    message = answer.json()["choices"][0]["message"]
    valid, fault = fault_of(item, message, check)
    score.valid += valid
    if fault is None:
        score.right.append(item.name)
    else:
        score.faults[fault] += 1
        score.messages[item.name] = message


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--model", required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--choice", choices=CHOICES, default="auto")
    parser.add_argument("--parallel", type=int, default=1, help="items at a time")
    given = parser.parse_args()
    package = importlib.util.find_spec("bfcl_eval")
    if package is None or package.origin is None:
        raise SystemExit("bfcl-eval is not installed: pip install --no-deps bfcl-eval")
    servers = dict(server.partition("=")[::2] for server in given.server)
    asked = list(items(Path(package.origin).parent / "data", given.items))
    scores = {name: measure(url, asked, given.model, given.choice, given.parallel) for name, url in servers.items()}
    print(f"{'server':12} {'answers':>8} {'valid JSON of the schema':>26} {'right':>6}")
    for name, score in scores.items():
        print(f"{name:12} {score.answers:>8} {score.valid:>26} {len(score.right):>6}")
        for fault, count in score.faults.most_common():
            print(f"{'':12} {count:>8} × {fault}")
    told = {name: vars(score) | {"faults": dict(score.faults)} for name, score in scores.items()}
    print(json.dumps({"benchmark": "bfcl", "model": given.model, "choice": given.choice, "scores": told}))


if __name__ == "__main__":
    main()
