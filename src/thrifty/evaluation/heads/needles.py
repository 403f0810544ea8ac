"""Questions for the retrieval probe: one sentence that names a thing, in prose (HeadKV-R, arXiv 2410.19258, §3.1)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from thrifty.evaluation.heads.words import people, things


@dataclass(frozen=True)
class Needle:
    """told, asked: the sentence in the prose, and the question, with {name} and {thing}. lead: how the answer begins:
    a base model, or a small one, then says the thing and nothing else."""

    told: str
    asked: str
    lead: str


NEEDLES = (
    Needle("{name} keeps a {thing} in the attic.", "What does {name} keep in the attic?", "{name} keeps a"),
    Needle("In the drawer of {name} lies a {thing}.", "What lies in the drawer of {name}?", "In it lies a"),
    Needle("{name} has promised Harriet a {thing}.", "What has {name} promised Harriet?", "It is a"),
)


@dataclass(frozen=True)
class Told:
    """One question with its words. needle: the parts of what is told, joined by single spaces; `correct` numbers the
    part that holds `answer`, the words that are right. wrong: words that are not, "" where there are none. lead: what
    the answer begins with, "" where the model finds its own words."""

    needle: tuple[str, ...]
    correct: int
    question: str
    lead: str
    answer: str
    wrong: str = ""


def needle(chance: random.Random) -> Told:
    """One retrieval question."""
    form, (name, _), (thing, _) = chance.choice(NEEDLES), people(chance), things(chance)
    words = {"name": name, "thing": thing}
    return Told((form.told.format(**words),), 0, form.asked.format(**words), form.lead.format(**words), thing)
