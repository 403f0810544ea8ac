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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.evaluation.function_calls import INSTALL, CallItem, checker, json_schema, read, wrong

CHOICES = ("named", "required", "auto")


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


def items(directory: Path, count: int) -> list[CallItem]:
    """So many items, spread over the file. directory: bfcl_eval's `data`."""
    known = read(directory)
    return known[:: max(1, len(known) // count)]


def body(item: CallItem, model: str, choice: str) -> dict[str, Any]:
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


def fault_of(item: CallItem, message: Mapping[str, Any], check: Callable[..., Any]) -> tuple[bool, str | None]:
    """Whether a message is one call of the function whose arguments fit its schema, and what is wrong with it, None
    where it is right. check: bfcl_eval's `ast_checker`.
    """
    import jsonschema

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
    return True, wrong(item, [{function["name"]: arguments}], "simple_python", check)


def measure(url: str, asked: Sequence[CallItem], model: str, choice: str, parallel: int) -> Score:
    """Every item to one server, so many at a time. Ctrl-C ends it with the answers that came."""
    import httpx

    check, score = checker(), Score()
    with httpx.Client(timeout=1800) as client, ThreadPoolExecutor(parallel) as pool:

        def ask(item: CallItem) -> httpx.Response:
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


def _count(score: Score, item: CallItem, answer: Any, check: Callable[..., Any]) -> None:
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
        raise SystemExit(f"bfcl-eval is not installed: pip install {INSTALL}")
    servers = dict(server.partition("=")[::2] for server in given.server)
    asked = items(Path(package.origin).parent / "data", given.items)
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
