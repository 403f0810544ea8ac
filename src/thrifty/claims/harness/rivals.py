"""Cache techniques side by side at one budget: recall of keys, and divergence on prose."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from thrifty.claims.harness.claim import Figures
from thrifty.claims.harness.context import quality_of
from thrifty.claims.harness.needles import needles, recalled
from thrifty.evaluation.heads.probe import score_once

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context
    from thrifty.evaluation.forcing import Tables

ASKED, QUESTION = 12, 480  # small models recall a key reliably up to about 0.5k tokens
PREFIX, SCORED, PARTS = 1024, 192, 2


def recalls(
    context: Context, rivals: Mapping[str, Tables], question: int | None = None, asked: int | None = None
) -> Figures:
    """`NAME_recall` of each: the share of `asked` (12) keys told in ~`question` (480) tokens of prose that greedy
    answers hold.
    """
    asked = ASKED if asked is None else asked
    length = min(QUESTION if question is None else question, context.length - 64)
    questions = needles(context.model.require_tokenizer(), length, asked)
    figures: Figures = {"asked": asked, "question": length}
    for name, tables in rivals.items():
        context.say(f"recall of {asked} keys, {name}")
        answers = recalled(context.engine, questions, tables)
        figures[f"{name}_recall"] = sum(answers) / len(answers)
    return figures


def divergences(context: Context, rivals: Mapping[str, Tables]) -> Figures:
    """`NAME_kl` of each: mean KL over passages of prose, of tokens that follow a compressed prefix."""
    figures: Figures = {"prefix": PREFIX, "scored": SCORED, "parts": PARTS}
    for name, tables in rivals.items():
        runs = [context.quality(tables, PREFIX, SCORED, part) for part in range(PARTS)]
        figures[f"{name}_kl"] = fmean(quality_of(run).kl.value for run in runs)
    return figures


def score_heads(context: Context, kind: str) -> None:
    """Probe the model's heads and save the scores, where that was not done yet."""
    context.say(f"scores of heads, kind {kind}: measured once")
    score_once(context.engine, kind)
