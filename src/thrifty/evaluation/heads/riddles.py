"""Questions for the probe of retrieval and reasoning (HeadKV-R2, arXiv 2410.19258, §3.1): a piece of reasoning, a wrong
answer and the right one. The answer is free: nothing in front of it says which sentence holds it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from thrifty.evaluation.heads.needles import Told
from thrifty.evaluation.heads.words import people, things


@dataclass(frozen=True)
class Riddle:
    """reason: names {first} and {second}. held: who has what, with {name} and {thing}. asked: the question, whose
    answer is what the first one has, or (second) the other."""

    reason: str
    held: str
    asked: str
    second: bool = False


RIDDLES = (
    Riddle(
        "{first} is older than {second}.",
        "{name} carries a {thing}.",
        "One of {first} and {second} is older than the other. What does the older one carry?",
    ),
    Riddle(
        "{first} lives nearer to the sea than {second}.",
        "{name} paints a {thing}.",
        "One of {first} and {second} lives farther from the sea. What does that one paint?",
        second=True,
    ),
    Riddle(
        "{first} came to the feast before {second}.",
        "{name} brought a {thing}.",
        "{first} and {second} came to the feast. What did the one who came first bring?",
    ),
    Riddle(
        "{first} has lost a wager to {second}.",
        "{name} had staked a {thing}.",
        "{first} and {second} made a wager. What had the winner staked?",
        second=True,
    ),
)
BRIEFLY = " Answer with the thing alone."


def riddle(chance: random.Random) -> Told:
    """One riddle; the right and the wrong answer stand in either order."""
    form, (first, second), (right, wrong) = chance.choice(RIDDLES), people(chance), things(chance)
    names = {"first": first, "second": second}
    owner, other = (second, first) if form.second else (first, second)
    answers = [form.held.format(name=owner, thing=right), form.held.format(name=other, thing=wrong)]
    if turned := chance.random() < 0.5:
        answers.reverse()
    told = (form.reason.format(**names), *answers)
    return Told(told, 2 if turned else 1, form.asked.format(**names) + BRIEFLY, "", right, wrong)
