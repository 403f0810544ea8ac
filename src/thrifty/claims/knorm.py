"""Knorm: half of the keys, those with the smallest norm, or a tenth still recall what the whole cache does."""

from __future__ import annotations

from functools import partial
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, ahead, kept
from thrifty.claims.harness.reading import prompt_length, unanswered

HALF, TENTH = 0.5, 0.1
WITHOUT_LOSS = 0.95  # Thrifty's reading of "without losing accuracy": an interval cannot show equality
RISE = 0.02  # nats, the same of the loss
PAPER = 4096  # Llama-2's context
HEADLINE = "keys recalled of the full cache's with half kept"


class KnormClaim(Claim):
    """Recall of one key with half and with a tenth of the cache, and the loss of next tokens with half."""

    paper = (
        "the KV cache 50 % smaller on language modelling and needle in a haystack, 90 % on passkey retrieval, without "
        "losing accuracy (Llama-2-7B)"
    )
    source = "arXiv:2406.11430, abstract"
    rule = "with half kept, at least 95 % of the keys recalled that the full cache recalls; with a tenth so, too"
    minutes = 1.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        score = partial(context.recall, length=length)
        setting = (
            f"one key in {length} tokens of prose, question last; every layer compressed (the paper leaves the first "
            "two whole for language modelling); the passkey is a number in prose as the needle is"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        half, tenth = score([_table(HALF)]), score([_table(TENTH)])
        tested = controlled(score, full, half, keep=HALF, length=length, whole=[_table(1.0)])
        newest = score([{"technique": "streaming", "window": round(HALF * length)}])
        loss, whole = context.losses([_table(HALF)]), context.losses([])
        return Measurement(
            headline=kept(HEADLINE, half, full, Bar(WITHOUT_LOSS), "100 %"),
            parts=(
                ahead("loss of a token below the full cache's with half kept", loss, whole, Bar(-RISE), "0"),
                ahead("keys ahead of sinks and the newest half, points", half, newest),
            ),
            gates=(
                kept("keys recalled of the full cache's with a tenth kept", tenth, full, Bar(WITHOUT_LOSS), "100 %"),
                tested.gate,
                context.promise([_table(HALF)], HALF, length=length),
            ),
            controls=tested.controls,
            counts={"keys": len(full), "texts": full.contexts, "scored tokens": len(loss)},
            setting=setting,
        )


def _table(keep: float) -> dict[str, Any]:
    return {"technique": "knorm", "keep": keep}
