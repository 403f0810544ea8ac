"""Scores of answers about letters, by a model that fills in masks and by its autoregressive twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.letters import Item, answers, judged

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.forcing import Tables

MODEL, TWIN = "letters-diffusion", "letters-twin"
SHARE = 16  # items for each answer of the budget: they are short
TUNING = "tuning"


@dataclass(frozen=True)
class Letters:
    """right: whether an item's answer is right to the letter. tokens, passes: of an item, the prompt's pass and the
    token that it chooses left out.
    """

    right: Scores
    tokens: Scores
    passes: Scores


def asked(count: int, seed: int, tuning: bool = False) -> list[Item]:
    """Items that judge, or others on which a setting may be chosen."""
    return judged(SHARE * count, f"{TUNING}/{seed}" if tuning else seed)


def lettered(engine: Engine, items: Sequence[Item], decoding: Tables | None = None) -> Letters:
    """What an engine answers, one item after the other."""
    made, names = answers(engine, items, decoding), tuple(item.prompt for item in items)
    tokens = tuple(float(own.tokens - 1) for own in made)
    passes = tuple(float(own.passes - 1) for own in made)
    return Letters(
        Scores(tuple(float(own.right) for own in made), names),
        Scores(tokens, names, bounded=False),
        Scores(passes, names, higher=False, bounded=False),
    )
