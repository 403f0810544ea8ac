"""StreamingLLM: four sinks and a window keep perplexity stable; the window alone collapses."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, kept
from thrifty.claims.harness.reading import unpredicted
from thrifty.claims.harness.statistics import Scores

PREFIX = 4096
CACHE = 1024  # slots: the paper's setting of table 1
SINKS = 4
UNDONE = 0.9  # of the collapse: Thrifty's reading of 5158 → 5.40, which is all of it
COLLAPSE = math.log(2)  # nats: perplexity doubles; there it rises 955 times
HEADLINE = "of what the window alone loses, sinks bring back"


class StreamingClaim(Claim):
    """The paper's own experiment: what leaves the window is evicted while the text is read, so that no key that is kept
    was computed with what is gone.
    """

    paper = "Llama-2-13B on PG19: perplexity 5.40 with 4 sinks + 1020 tokens, 5158 with 1024 tokens alone"
    source = "arXiv:2309.17453, table 1; the figures from a secondary summary"
    rule = "the window alone at least doubles perplexity, and four sinks bring back at least 90 % of the loss"
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        score = partial(context.losses, prefix=PREFIX)
        setting = (
            f"4 + 1020 against 0 + 1024 slots, 256 tokens of prose after {PREFIX} read while evicting, 128 at a time; "
            "4 million tokens are beyond the context"
        )
        full = score([])
        if weak := unpredicted(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        sinks, alone = score([_table(SINKS)]), score([_table(0)])
        whole = [_table(SINKS) | {"window": 2 * PREFIX}]
        tested = controlled(score, full, sinks, capacity=CACHE, length=PREFIX, whole=whole)
        dense = score([_table(0) | {"causal": False}])
        return Measurement(
            headline=_brought_back(full, sinks, alone),
            parts=(
                ahead("loss of a token with sinks, below the full cache's", sinks, full, None),
                ahead("the window alone after a prompt that attends densely", dense, full, None),
            ),
            gates=(
                ahead("what the window alone adds to the loss of a token", full, alone, Bar(COLLAPSE), "6.86 nats"),
                tested.gate,
                context.promise([_table(SINKS)], CACHE / PREFIX, length=PREFIX),
            ),
            controls=tested.controls,
            counts={"scored tokens": len(sinks), "passages": sinks.contexts},
            setting=setting,
        )


def _table(sinks: int) -> dict[str, Any]:
    return {"technique": "streaming", "sinks": sinks, "window": CACHE - sinks, "causal": True}


def _brought_back(full: Scores, sinks: Scores, alone: Scores) -> Part:
    """The share of the window's loss that is not there with sinks."""
    if alone.mean <= full.mean:
        return Part(HEADLINE, bar=Bar(UNDONE), missing="a model whose loss rises when its first tokens are gone")
    return kept(HEADLINE, _less(alone, sinks), _less(alone, full), Bar(UNDONE), "100 %")


def _less(one: Scores, other: Scores) -> Scores:
    """Differences token by token."""
    values = tuple(mine - theirs for mine, theirs in zip(one.values, other.values, strict=True))
    return Scores(values, one.clusters, bounded=False)
