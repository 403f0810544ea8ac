"""KIVI: 2 bits a number keep the quality, and the peak of memory falls 2.6 times, weights included."""

from __future__ import annotations

from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control, controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, exactly, kept
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered, word_problems
from thrifty.claims.harness.statistics import advantage
from thrifty.evaluation.forcing import force
from thrifty.evaluation.text import held_out

# An A100 of 80 GB holds 5.9 times the 13.5 GB of Llama-2-7B: the paper's peak is measured as batches fill it.
MEMORY_OF_WEIGHTS = 5.9
QUALITY = 12.74 / 13.50  # GSM8K, the larger loss of the two that the claim is made of
SMALLER = 2.6
PAPER = 4096  # Llama-2's context
BATCH = 2048  # tokens of a sequence whose peak is measured
CODES = 3 / 16  # bytes of 2-bit codes with a scale and a minimum for 32, of bf16's
EXACT = 255  # tokens that the technique's card lets stay exact, at most
ANSWERS = "answers of the full cache's"


class KiviClaim(Claim):
    """The ledger's peak of a batch that fills the same share of memory, and answers after compression at 2 bits."""

    paper = "2 bits, nearly lossless (Llama-2-7B: GSM8K 13.50 → 12.74, CoQA 63.88 → 63.05); 2.6 × less peak memory"
    source = "arXiv:2402.02750, abstract and tables 3 and 5"
    rule = "at 2 bits the peak at least 2.6 × smaller, and at least 94.4 % (12.74/13.50) of the full cache's answers"
    minutes = 2.0

    def measure(self, context: Context) -> Measurement:
        length = prompt_length(context, PAPER)
        sequences, filled = _sequences(context)
        smaller = context.peak([], BATCH, sequences) / context.peak([_table(2)], BATCH, sequences)
        headline = exactly("peak of memory smaller, weights included", smaller, Bar(SMALLER), "times", "2.6 ×")
        exact, score = _exact(context, length), Reading(context, length, "agnostic")
        setting = (
            f"{length} tokens, two questions a text after it was quantised; {exact} of its tokens stay exact, keys "
            f"and values alike, counted in the bytes (the paper: {length % 128} keys, 128 values); peak of {sequences} "
            f"sequences of {BATCH} tokens, {filled:.1f} × the weights with them (the paper: 5.9 ×, 80 GB, 7B); "
            f"{score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement(Part(ANSWERS, bar=Bar(QUALITY), missing=weak), (headline,), setting=setting)
        ours, share = score([_table(2)]), CODES + min(exact, EXACT) / length
        tested = controlled(score, full, ours, keep=share, length=length)
        return Measurement(
            headline=headline,
            parts=(
                word_problems(context, [_table(2)], Bar(QUALITY), "94.4 %"),
                kept(f"{ANSWERS} at 4 bits", score([_table(4)]), full, None),
                ahead("loss of a token below the full cache's", context.losses([_table(2)]), context.losses([]), None),
            ),
            gates=(
                kept(ANSWERS, ours, full, Bar(QUALITY), "94.4 %, CoQA 98.7 %"),
                tested.gate,
                context.promise([_table(2)], share, length=length),
            ),
            controls=(*tested.controls, Control("8 bits", "hold", advantage(score([_table(8)]), full))),
            counts=counted(ours),
            setting=setting,
        )


def _table(bits: int) -> dict[str, Any]:
    return {"technique": "kivi", "bits": bits}


def _exact(context: Context, length: int) -> int:
    """Tokens of a prompt that stay exact, in the mean over layers and heads."""
    tokens = held_out(context.model.require_tokenizer(), length + 2)
    share = 0.0
    for step in force(context.engine, tokens[:length], tokens[length:], [_table(2)], inspect=(1,)):
        if step.evidence is not None:
            share = 1 - step.evidence.quantised / step.evidence.slots
    return round(share * length)


def _sequences(context: Context) -> tuple[int, float]:
    """How many fill the paper's share of memory, at least two, at most what the engine decodes together; and what they
    are with the weights, of the weights.
    """
    each = context.engine.cache_footprint((), BATCH, BATCH).steady_bytes
    count = max(2, min(32, round((MEMORY_OF_WEIGHTS - 1) * context.model.nbytes / each)))
    return count, 1 + count * each / context.model.nbytes
