"""SCBench: what is evicted for one question is missed by the next; what is stored in fewer bits is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control, controlled
from thrifty.claims.harness.parts import Bar, Part, kept
from thrifty.claims.harness.reading import LEAST, LOOK, LOOKED, counted, pooled, prompt_length, unanswered
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.claims.kivi import CODES, EXACT
from thrifty.evaluation.forcing import Tables
from thrifty.evaluation.paired import Clustered, mean_interval

TURNS = 3
TASKS: Mapping[str, str] = {"multi-turn": "turns", "scbench-kv": "questions", "scbench-qa-eng": "questions"}
"""Tasks, and the option that says how many turns a conversation has."""
KEEP = 0.25
HELD = 0.9  # of the full cache's later answers: Thrifty's reading of "holds"
PAPER = 8192  # there up to 230 thousand
HEADLINE = "points that eviction loses in later questions beyond those of the first"
EVICTING: Tables = [{"technique": "snapkv", "keep": KEEP}]


class ScbenchClaim(Claim):
    """Questions over one context that was compressed with the first of them: that one, and those that follow. Models
    were not trained on these tasks.
    """

    paper = (
        "12 tasks: methods that drop part of the cache answer the first question but do poorly in multi-turn; dense "
        "caches, quantised ones included, hold"
    )
    source = "arXiv:2412.10319, abstract and sections 4 and 5"
    rule = (
        "eviction loses more of the later questions than of the first, and the cache in 2 bits keeps at least 90 % of "
        "the full cache's later answers"
    )
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        every = partial(_conversations, context, length=length)
        names = [name for name in TASKS if every([], names=[name], look=True).mean >= LEAST]
        score = partial(every, names=names or list(TASKS))
        setting = (
            f"{length} tokens, {TURNS} questions each, the first compressed with the context, right answers fed back; "
            f"of the paper's 12 tasks {', '.join(names) or 'none'} (of {', '.join(TASKS)}, those of which the full "
            "cache answers enough); snapkv with a quarter kept, kivi"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        evicting, two, four, eight = score(EVICTING), score(_kivi(2)), score(_kivi(4)), score(_kivi(8))
        whole: Tables = [{"technique": "snapkv", "keep": 1.0}]
        tested = controlled(score, full, evicting, keep=KEEP, length=length, whole=whole)
        return Measurement(
            headline=Part(HEADLINE, mean_interval(_beyond(full, evicting)), Bar(0.0, strict=True), unit="points"),
            parts=(
                kept("eviction: first answers of the full cache's", _first(evicting), _first(full), Bar(HELD)),
                kept("eviction: later answers of the full cache's", _later(evicting), _later(full), None),
                kept("4 bits: later answers of the full cache's", _later(four), _later(full), Bar(HELD)),
            ),
            gates=(
                kept("2 bits: later answers of the full cache's", _later(two), _later(full), Bar(HELD)),
                context.promise(EVICTING, KEEP, length=length),
                context.promise(_kivi(2), CODES + EXACT / length, length=length),
            ),
            controls=(*tested.controls, Control("8 bits", "hold", advantage(eight, full))),
            counts=counted(full),
            setting=setting,
        )


def _kivi(bits: int) -> Tables:
    return [{"technique": "kivi", "bits": bits}]


def _conversations(
    context: Context, cache: Tables, *, names: Sequence[str], length: int, insist: bool = True, look: bool = False
) -> Scores:
    """One score a turn, the turns of a conversation one after the other; as many turns as the budget has items. look: a
    few turns of other conversations, by which tasks are chosen.
    """
    turns = min(context.budget.items, LOOKED) if look else context.budget.items
    items = max(2, -(-turns // (TURNS * len(names))))
    seed = context.seed + (LOOK if look else 0)
    common: dict[str, Any] = {"items": items, "seed": seed, "insist": insist, "length": length, "mode": "aware"}
    return pooled([context.task(name, cache, **(common | {TASKS[name]: TURNS})) for name in names])


def _first(scores: Scores) -> Scores:
    """Those of the first turns."""
    return Scores(tuple(scores.values[::TURNS]), tuple(scores.clusters[::TURNS]))


def _later(scores: Scores) -> Scores:
    """Those of all turns but the first."""
    places = [place for place in range(len(scores)) if place % TURNS]
    return Scores(tuple(scores.values[place] for place in places), tuple(scores.clusters[place] for place in places))


def _beyond(full: Scores, evicting: Scores) -> Clustered:
    """One figure a conversation: what is lost of later turns, in the mean, less what is lost of the first."""
    lost = [whole - part for whole, part in zip(full.values, evicting.values, strict=True)]
    conversations = [lost[start : start + TURNS] for start in range(0, len(lost), TURNS)]
    figures = [sum(turns[1:]) / (TURNS - 1) - turns[0] for turns in conversations]
    return Clustered(tuple(figures), tuple(full.clusters[::TURNS]))
