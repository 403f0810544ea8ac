"""Functions of a library without their documentation, which are asked for by it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import SequenceMatcher

from thrifty.errors import PromptError
from thrifty.evaluation.halves import Half, half_of
from thrifty.evaluation.tasks._framing import Frame
from thrifty.evaluation.tasks._library import Function, functions, other_code
from thrifty.evaluation.tasks._sessions import Question, filled

OPENING = "Below are functions of several modules of a library.\n\n"
GAP = "\n\n\n"  # between functions
FENCE = "```"
ASK_CODE = 'Which function in the code above does this: "{summary}" Repeat the whole function word for word.'
LEAD_CODE = FENCE + "python\n"
ASK_SUMMARY = "What does the function `{name}` in the code above do? Say it in one sentence."
LEAD_SUMMARY = "Summary:"
ALIKE = 0.8  # of an answer and the function that it repeats


def drawn(
    chance: random.Random, frame: Frame, room: int, half: Half, count: int
) -> tuple[list[Function], list[str]] | None:
    """(`count` functions of a half that are asked for; the code of these and of others in random order, as many as
    `room` tokens hold, no two with the same name). None where there is no room for another one.

    Raises PromptError where the room is for more than there are.
    """
    named: dict[str, Function] = {}
    for function in functions():
        if function.short:
            named.setdefault(bare(function), function)
    asked = chance.sample([function for function in named.values() if half_of(function.name) == half], count)
    others = [function.code for function in named.values() if function not in asked]
    others += [code for name, code in other_code() if name not in named]
    order = [*(function.code for function in asked), *chance.sample(others, len(others))]
    codes = filled(lambda code: frame.size(code + GAP), room, order)
    if len(codes) == len(order):
        raise PromptError(f"there are not enough functions for a context of {room} tokens; use a smaller --length")
    return (asked, chance.sample(codes, len(codes))) if len(codes) > count else None


def bare(function: Function) -> str:
    """A function's name without its module."""
    return function.name.rpartition(".")[2]


def for_its_code(function: Function) -> Question:
    """The description is told, the function asked for."""
    return Question(ASK_CODE.format(summary=function.summary), LEAD_CODE, (function.code,), f"{function.code}\n{FENCE}")


def for_its_summary(function: Function) -> Question:
    """The name is told, what it does asked for."""
    return Question(ASK_SUMMARY.format(name=bare(function)), LEAD_SUMMARY, (function.summary,), f" {function.summary}")


def repeats(answer: str, expected: str, codes: Sequence[str]) -> bool:
    """Whether an answer is `expected` nearly to the letter, and no other of the codes more so.

    In RepoQA and SCBench a BLEU of 0.8 decides; here it is difflib's ratio.
    """
    matcher = SequenceMatcher(b=answer.strip(), autojunk=False)
    matcher.set_seq1(expected.strip())
    near = matcher.ratio()
    if near < ALIKE:
        return False
    for code in codes:
        matcher.set_seq1(code.strip())
        if matcher.real_quick_ratio() > near and matcher.quick_ratio() > near and matcher.ratio() > near:
            return False
    return True
