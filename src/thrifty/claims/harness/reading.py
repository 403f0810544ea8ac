"""What stands here for the papers' sets of tasks: questions about long texts, and word problems.

LongBench, LooGLE and HELM themselves are in no package, so that a claim about them is held against a proxy and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from thrifty.claims.harness.budget import MIDDLE, SHORT
from thrifty.claims.harness.parts import Bar, Part, kept
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.tasks import TaskError

if TYPE_CHECKING:
    from thrifty.claims.harness.context import Context

QUESTIONS = 2  # of one text, none known when it is compressed


@dataclass(frozen=True)
class Proxy:
    """A task that stands for the paper's. told: what it asks, in words. agnostic: its name and options where several
    questions come after compression; aware: where one ends what is compressed.
    """

    told: str
    agnostic: tuple[str, Mapping[str, Any]]
    aware: tuple[str, Mapping[str, Any]]


PROXIES = (
    Proxy("a key in prose", ("multi-request", {"requests": QUESTIONS}), ("recall", {})),
    Proxy(
        "one of four keys",
        ("ruler-niah-multikey-1", {"questions": QUESTIONS}),
        ("ruler-niah-multikey-1", {"questions": 1}),
    ),
    Proxy("made-up documents", ("ruler-qa-made-1", {"questions": QUESTIONS}), ("ruler-qa-made-1", {"questions": 1})),
    Proxy(
        "real documents",
        ("long-documents", {"questions": QUESTIONS, "sharing": "requests"}),
        ("long-documents", {"questions": 1}),
    ),
)
LEAST = 0.2  # of the questions: where the full cache answers fewer, nobody sees what a smaller one loses
LOOK = 10**6  # added to a seed: of items by which kinds of task are chosen, so that what is judged chooses nothing
LOOKED = 12  # such questions a kind, at most
MOST = 5.0  # nats a token of prose: a model that needs more does not read it
LENGTHS: Mapping[str, int] = {SHORT.name: 1024, MIDDLE.name: 2048}
ANSWER = 512  # tokens that stay free behind a prompt


def prompt_length(context: Context, paper: int) -> int:
    """Tokens of a prompt: the paper's, or fewer where the budget or the model's context ends before."""
    return min(LENGTHS.get(context.budget.name, paper), paper, context.length - ANSWER)


class Reading:
    """Answers to questions about texts of `length` tokens, as many as the budget has items: of those kinds of task that
    the model answers with its full cache. That is looked at with other items than those that are judged: what is chosen
    for a good score would score less well the next time, and its loss would look like the technique's.

    aware: the question ends what is compressed, one a text. agnostic: two questions a text, none known when it is
    compressed; the text is their cluster.
    """

    def __init__(self, context: Context, length: int, mode: Literal["aware", "agnostic"] = "aware") -> None:
        self.context, self.length, self.mode = context, length, mode

    def __call__(self, cache: Tables, *, insist: bool = True) -> Scores:
        """The scores under cache tables. insist: refuse a run in which nothing was compressed."""
        chosen = self.answered or PROXIES
        return pooled([self._scores(proxy, cache, len(chosen), insist) for proxy in chosen])

    @cached_property
    def answered(self) -> tuple[Proxy, ...]:
        """The kinds of task of which the full cache answers enough."""
        return tuple(proxy for proxy in PROXIES if self._scores(proxy, [], len(PROXIES), look=True).mean >= LEAST)

    @property
    def told(self) -> str:
        """What is asked, and what is not for the model answers too little of it."""
        left = [proxy.told for proxy in PROXIES if proxy not in self.answered]
        asked = ", ".join(proxy.told for proxy in self.answered or PROXIES)
        without = f" (left out, for the full cache answers under {LEAST:.0%}: {', '.join(left)})" if left else ""
        return f"proxy for the paper's sets: {asked}{without if self.answered else ''}"

    def _scores(self, proxy: Proxy, cache: Tables, kinds: int, insist: bool = True, look: bool = False) -> Scores:
        each = QUESTIONS if self.mode == "agnostic" else 1
        questions = -(-self.context.budget.items // kinds)
        items = max(2, -(-(min(questions, LOOKED) if look else questions) // each))
        seed = self.context.seed + (LOOK if look else 0)
        name, options = proxy.agnostic if self.mode == "agnostic" else proxy.aware
        common: dict[str, Any] = {"items": items, "seed": seed, "insist": insist}
        common |= {"length": self.length, "mode": self.mode}
        return self.context.task(name, cache, **common, **options)


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
        return Part(name, bar=bar, paper=paper, missing=str(error).split(". ")[0])


def counted(scores: Scores) -> dict[str, int]:
    """For `Measurement.counts`."""
    return {"questions": len(scores), "texts": scores.contexts}


def unpredicted(full: Scores) -> str:
    """Why a model cannot show what a cache loses of its losses: it predicts no prose; "" where it does."""
    if full.mean <= MOST:
        return ""
    return f"a model that predicts prose, at {MOST:g} nats a token or fewer; this one needs {full.mean:.1f}"
