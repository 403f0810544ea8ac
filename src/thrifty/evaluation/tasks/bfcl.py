"""Calls of functions: single-turn items of the Berkeley Function Calling Leaderboard."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.errors import PromptError
from thrifty.evaluation.function_calls import INSTALL, CallItem, Category, api_name, checker, json_schema, read, wrong
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame, Mode
from thrifty.evaluation.tasks._packages import enough, folder, of_half
from thrifty.evaluation.tasks.task import Item, TaskTurn

TOLD = "These functions can be called:\n"
ASKED = (
    "Request: {request}\nAnswer with a JSON list of the calls that fulfil the request and nothing else, each "
    'as {{"name": function, "arguments": {{parameter: value}}}}.'
)
LEAD = '[{"name": "'

Call = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Bfcl(Answering):
    """The leaderboard's single-turn items (Patil et al. 2025) as the package bfcl-eval brings them, judged by its own
    checker. The model is told of the functions in plain words and answers with JSON, as the leaderboard does with
    models that it prompts (it asks them for Python); the first characters are given, the rest is not constrained.

    category: see `Category`. mode: agnostic compresses what is told of the functions before the request comes, aware
    the request with it. The items of a half are asked in an order that the seed decides; `length` is the most that what
    is compressed may take.
    """

    name: ClassVar[str] = "bfcl"
    metric: ClassVar[str] = "share of right calls"
    package: ClassVar[str] = "bfcl-eval"
    limit: ClassVar[int] = 256
    stop: ClassVar[tuple[str, ...]] = ("\n\n", "```")

    length: Annotated[int, Field(ge=16)] = 2048
    category: Category = "simple_python"
    mode: Mode = "agnostic"

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        known = {item.name: item for item in self.known()}
        names = of_half(list(known), self.half)
        enough(len(names), count, self.label, self.half)
        order = random.Random(f"{self.name}/{self.category}/{seed}").sample(names, len(names))
        frame = Frame.of(tokenizer)
        return [self._item(frame, number, known[name]) for number, name in enumerate(order[:count])]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """1 where the checker takes the calls for right."""
        calls = calls_of(LEAD + answer)
        return float(calls is not None and wrong(CallItem(**item.material), calls, self.category, self._check) is None)

    def known(self) -> list[CallItem]:
        """All items of the category. Raises TaskError where the package or its data are not there."""
        from thrifty.evaluation.tasks import TaskError

        home = folder("bfcl_eval", self.name, INSTALL)
        try:
            return read(home / "data", self.category)
        except (OSError, ValueError, KeyError) as error:
            raise TaskError(f"the data of bfcl-eval cannot be read: {error}; install a version with BFCL v4") from error

    @cached_property
    def _check(self) -> Callable[..., Any]:
        return checker()

    def _item(self, frame: Frame, number: int, known: CallItem) -> Item:
        context = TOLD + "\n".join(json.dumps(described(function)) for function in known.functions)
        request = "\n".join(str(message["content"]) for message in known.messages)
        prompt, fed = frame.first(context, ASKED.format(request=request), LEAD, self.mode)
        if len(prompt) > self.length:
            raise PromptError(f"'{known.name}' takes {len(prompt)} tokens; use --length {len(prompt)} or more")
        turns = (TaskTurn(fed, (json.dumps(known.answer),)),)
        return self.item(number, prompt, turns, self.room(prompt, turns), asdict(known))


def described(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function as models are told of it."""
    return {
        "name": api_name(function),
        "description": function["description"],
        "parameters": json_schema(function["parameters"]),
    }


def calls_of(text: str) -> list[Call] | None:
    """The calls of the JSON list that an answer begins with, None where it has none. A lacking bracket and what follows
    the list are left out.
    """
    decoder, place = json.JSONDecoder(), text.find("{")
    calls: list[Call] = []
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError:
            break
        if not isinstance(value, dict) or not isinstance(value.get("arguments"), dict) or "name" not in value:
            return None
        calls.append({str(value["name"]): value["arguments"]})
        rest = text[end:].lstrip()
        place = text.index("{", end) if rest.startswith(",") and "{" in rest else -1
    return calls or None
