"""KVzip: a cache 3 to 4 times as small answers any later question, and finding it costs about two prefills more."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Bar, Part, ahead, exactly, kept, times
from thrifty.claims.harness.reading import Reading, counted, prompt_length, unanswered
from thrifty.claims.harness.statistics import Scores
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.evaluation.forcing import MeasurementError, Tables
from thrifty.evaluation.text import held_out

KEEP = 0.3
NEAR_FULL, SMALLER, COST = 0.98, 3.0, 2.0  # the first is Thrifty's reading of "negligible loss"
HEADS = 0.6  # what the context-independent mode keeps in the paper
PAPER = 8192  # there up to 170 thousand
SHORTEST = 2048  # tokens: of shorter prompts whole pages of 64 slots a head hide what is saved
HEADLINE = "answers of the full cache's"
TABLE = {"technique": "kvzip", "keep": KEEP}


class KvzipClaim(Claim):
    """Answers to questions that come after compression, and the bytes that they are answered from, at one length."""

    paper = (
        "the cache 3 to 4 × smaller with negligible loss over many questions (Qwen2.5-7B, LLaMA3.1-8B, to 170K), "
        "where query-aware eviction fails; scoring takes about 2 × a prefill"
    )
    source = "arXiv:2505.23416, abstract and sections 3.4 and 4.2"
    rule = (
        "at least 98 % of the full cache's right answers to questions unknown when it compresses, more than SnapKV's "
        "with as many slots, from a cache at least 3 × smaller at the same length"
    )
    minutes = 4.0

    def measure(self, context: Context) -> Measurement:
        length = max(prompt_length(context, PAPER), min(SHORTEST, context.length // 2))
        score = Reading(context, length, "agnostic")
        setting = (
            f"keep = {KEEP}, {length} tokens, two questions a text, all asked after compression; bytes in whole pages "
            f"of 64 slots a head; {score.told}"
        )
        full = score([])
        if weak := unanswered(full):
            return Measurement.untestable(HEADLINE, weak, setting)
        ours, rival = score([TABLE]), score([{"technique": "snapkv", "keep": KEEP}])
        tested = controlled(score, full, ours, keep=KEEP, length=length, whole=[TABLE | {"keep": 1.0}])
        smaller = context.held([], length) / context.held([TABLE], length)
        return Measurement(
            headline=kept(HEADLINE, ours, full, Bar(NEAR_FULL)),
            parts=(
                ahead("loss of a token below the full cache's", context.losses([TABLE]), context.losses([]), None),
                _cost(context, length),
                _independent(context, score, full),
            ),
            gates=(
                ahead("ahead of SnapKV's, points", ours, rival),
                exactly("cache smaller", smaller, Bar(SMALLER), "times", "3 to 4 ×"),
                tested.gate,
            ),
            controls=tested.controls,
            counts=counted(ours),
            setting=setting,
        )


def _independent(context: Context, score: Any, full: Scores) -> Part:
    """The context-independent mode: heads that were scored once a model, no scoring of the prompt."""
    name = f"{HEADLINE} with {HEADS:.0%} of the heads, scored once"
    try:
        context.heads("kvzip")
    except MeasurementError as error:
        return Part(name, missing=str(error))
    return kept(name, score([{"technique": "kvzip", "level": "head", "keep": HEADS}]), full, None)


def _cost(context: Context, length: int) -> Part:
    """What scoring adds to a prompt's time, of the prefill's."""
    tokens = held_out(context.model.require_tokenizer(), length)
    sides: dict[str, Tables] = {"full": [], "ours": [TABLE]}
    made = context.rounds({name: partial(_seconds, context, tokens, cache) for name, cache in sides.items()})
    full, ours = made["full"], made["ours"]
    added = [one - other for one, other in zip(ours.values, full.values, strict=True)]
    scoring = Scores(tuple(added), full.clusters, higher=False, bounded=False, void=ours.void or full.void)
    return times("scoring, of the prefill's time", scoring, full, Bar(COST, at_least=False), "about 2 ×")


def _seconds(context: Context, tokens: list[int], cache: Tables) -> float:
    """From a prompt to its first token."""
    engine = context.engine
    sampling = SamplingParameters(max_tokens=2, ignore_eos=True)
    before = time.perf_counter()
    handle = engine.submit(Request(prompt=tokens, sampling=sampling, cache=cache, share_prefix=False))
    while handle.usage.generated_tokens == 0:
        engine.step()
    seconds = time.perf_counter() - before
    handle.cancel()
    return seconds
