"""What stands here for the papers' sets of tasks: questions about long texts, and word problems.

LongBench, LooGLE and HELM themselves are in no package, so that a claim about them is held against a proxy and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from thrifty.claims.harness.budget import MIDDLE, SHORT
from thrifty.claims.harness.parts import Bar, Part, kept
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.tasks import TaskError

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context

PROXY = "proxy for the paper's sets: a key in prose, one of four keys, made-up documents, real documents"
QUESTIONS = 4  # of one text, none known when it is compressed
TASKS: Mapping[str, Mapping[str, Any]] = {
    "multi-request": {"requests": QUESTIONS},
    "ruler-niah-multikey-1": {"questions": QUESTIONS},
    "ruler-qa-made-1": {"questions": QUESTIONS},
    "long-documents": {"questions": QUESTIONS, "sharing": "requests"},
}
"""Of a text that is compressed before its questions come; with the question in it there is one."""

ALONE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "multi-request": ("recall", {}),
    "ruler-niah-multikey-1": ("ruler-niah-multikey-1", {"questions": 1}),
    "ruler-qa-made-1": ("ruler-qa-made-1", {"questions": 1}),
    "long-documents": ("long-documents", {"questions": 1}),
}
LEAST = 0.2  # of the questions: a model that answers fewer with its full cache cannot show what a cache loses
MOST = 5.0  # nats a token of prose: a model that needs more does not read it
LENGTHS: Mapping[str, int] = {SHORT.name: 1024, MIDDLE.name: 2048}
ANSWER = 512  # tokens that stay free behind a prompt


def prompt_length(context: Context, paper: int) -> int:
    """Tokens of a prompt: the paper's, or fewer where the budget or the model's context ends before."""
    return min(LENGTHS.get(context.budget.name, paper), paper, context.length - ANSWER)


def reading(
    context: Context,
    cache: Tables,
    *,
    length: int,
    mode: Literal["aware", "agnostic"] = "aware",
    insist: bool = True,
) -> Scores:
    """Answers to questions about texts of `length` tokens, four kinds of task, as many as the budget has items.

    aware: the question ends what is compressed, one a text. agnostic: four questions a text, none known when it is
    compressed; the text is their cluster.
    """
    texts = len(TASKS) * (QUESTIONS if mode == "agnostic" else 1)
    items = max(2, -(-context.budget.items // texts))
    chosen = TASKS.items() if mode == "agnostic" else ALONE.values()
    common: dict[str, Any] = {"items": items, "insist": insist, "length": length, "mode": mode}
    return pooled([context.task(name, cache, **common, **own) for name, own in chosen])


def pooled(parts: Sequence[Scores]) -> Scores:
    """The scores of several tasks as one; no context is shared between tasks."""
    values = [value for scores in parts for value in scores.values]
    clusters = [f"{place}/{name}" for place, scores in enumerate(parts) for name in scores.clusters]
    return Scores(tuple(values), tuple(clusters), higher=parts[0].higher, bounded=parts[0].bounded)


def unanswered(full: Scores) -> str:
    """Why a model cannot show what a cache loses: too little is answered with the full one; "" where it can."""
    if full.mean >= LEAST:
        return ""
    return f"a model that answers {LEAST:.0%} of the questions with its full cache; this one answers {full.mean:.0%}"


def word_problems(context: Context, cache: Tables, bar: Bar | None, paper: str = "", *, insist: bool = True) -> Part:
    """The share of the full cache's right answers to word problems (GSM-symbolic) that a technique keeps. Answers are
    generated in full, so that errors add up. Missing where the model or this machine cannot do them. insist: refuse a
    run in which nothing was compressed.
    """
    name = "word problems solved of the full cache's"
    try:
        full = context.task("gsm-symbolic", [])
        if weak := unanswered(full):
            return Part(name, bar=bar, paper=paper, missing=weak)
        return kept(name, context.task("gsm-symbolic", cache, insist=insist), full, bar, paper)
    except (TaskError, MeasurementError) as error:
        return Part(name, bar=bar, paper=paper, missing=" ".join(str(error).split()))


def counted(scores: Scores) -> dict[str, int]:
    """For `Measurement.counts`."""
    return {"questions": len(scores), "texts": scores.contexts}


def unpredicted(full: Scores) -> str:
    """Why a model cannot show what a cache loses of its losses: it predicts no prose; "" where it does."""
    if full.mean <= MOST:
        return ""
    return f"a model that predicts prose, at {MOST:g} nats a token or fewer; this one needs {full.mean:.1f}"
