"""Gumbel counterfactuals: how near an answer stays to the factual one when a token is replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from thrifty.claims.harness.claim import Claim, Measurement
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import Control
from thrifty.claims.harness.parts import Bar, ahead, exactly
from thrifty.claims.harness.scores.passages import cuts
from thrifty.claims.harness.statistics import Scores, advantage
from thrifty.decoding.noise import GUMBEL, GumbelNoise, as_noise
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.counterfactual import hindsight, observation, replaced
from thrifty.engine.drafting.models import facts_of
from thrifty.engine.request import Request

PREFIX = 96
ANSWER = 32
PLACE = 4  # whose token is replaced
OBSERVED = 12  # tokens of prose that nobody drew
TEMPERATURE = 0.8
KIVI = {"technique": "kivi", "bits": 2}


@dataclass(frozen=True)
class Passage:
    """A prompt, its factual answer, the token that replaces one of it, and prose that follows the prompt."""

    prompt: tuple[int, ...]
    seed: int
    factual: tuple[int, ...]
    token: int
    following: tuple[int, ...]


class GumbelCounterfactualClaim(Claim):
    """Continuations of prose; the same noise, other noise, and plain sampling with the same seed."""

    paper = (
        "Llama-3-8B and Ministral-8B: counterfactual answers are nearer to the factual one, by edit distance, than "
        "answers with other noise behind the same replaced token"
    )
    source = "arXiv:2409.17027, section 5; its figures were not read"
    rule = "similarity (1 less the edit distance by token) behind the replaced token above that with other noise"
    minutes = 0.8

    def measure(self, context: Context) -> Measurement:
        passages = _passages(context)
        same, other = (_similar(context, passages, noise=GUMBEL, shift=shift) for shift in (0, 1))
        plain = _similar(context, passages, noise=None)
        unchanged, fresh = (_similar(context, passages, noise=GUMBEL, shift=s, change=False) for s in (0, 1))
        coded, coded_other = (
            _similar(context, passages, noise=GUMBEL, shift=s, change=False, cache=[KIVI]) for s in (0, 1)
        )
        return Measurement(
            headline=ahead("similarity behind a replaced token, above that with other noise", same, other),
            parts=(
                ahead("above that of one number a token with the same seed", same, plain, None),
                ahead("with a 2-bit cache and no token replaced, above that with other noise", coded, coded_other),
            ),
            gates=(
                exactly(
                    "answers that differ when they are replayed unchanged, all in one batch",
                    1.0 - _replayed(context, passages),
                    Bar(0.0, at_least=False),
                ),
                exactly("tokens of prose that hindsight noise gives back", _given_back(context, passages), Bar(1.0)),
            ),
            controls=(Control("other noise, no token replaced", "lose", advantage(fresh, unchanged)),),
            counts={"passages": len(passages), "tokens behind each": ANSWER - PLACE - 1},
            setting=f"temperature {TEMPERATURE}, {PREFIX} tokens of prose in front, answers of {ANSWER}, place {PLACE} "
            f"replaced by a draw from top_p 0.9 without the factual token; hindsight of {OBSERVED} tokens",
        )


def _passages(context: Context) -> list[Passage]:
    """As many as the budget has answers, with their factual answers."""
    tokenizer = context.model.require_tokenizer()
    chosen = cuts(tokenizer, context.length, PREFIX, context.budget.answers, context.seed, OBSERVED)
    made = []
    for number, cut in enumerate(chosen):
        seed, prompt = context.seed * 1000 + number, tuple(cut.passage.prompt)
        factual = tuple(_answer(context, _request(prompt, seed, GUMBEL)))
        ban = {"top_p": 0.9, "logit_bias": {factual[PLACE]: -math.inf}}
        asked = replace(_request(prompt, 42 + number, GUMBEL, **ban), forced=factual[:PLACE], free=1)
        made.append(
            Passage(prompt, seed, factual, _answer(context, asked)[PLACE], tuple(cut.passage.answer[:OBSERVED]))
        )
    return made


def _request(prompt: Sequence[int], seed: int, noise: str | GumbelNoise | None, **options: Any) -> Request:
    sampling = SamplingParameters(
        temperature=TEMPERATURE, seed=seed, noise=as_noise(noise), max_tokens=ANSWER, ignore_eos=True, **options
    )
    return Request(prompt=prompt, sampling=sampling)


def _answer(context: Context, request: Request) -> list[int]:
    return context.engine.submit(request).result().token_ids


def _similar(
    context: Context,
    passages: Sequence[Passage],
    noise: str | None,
    shift: int = 0,
    change: bool = True,
    cache: Sequence[dict[str, Any]] = (),
) -> Scores:
    """Similarity to the factual answers behind the replaced place. shift: 0 is the factual noise; change: whether a
    token is replaced, or the factual one stays. noise None: plain sampling, whose factual answer is its own.
    """
    values = []
    for passage in passages:
        seed = passage.seed + 500_009 * shift
        factual: Sequence[int] = passage.factual
        if noise is None:
            factual = _answer(context, _request(passage.prompt, passage.seed, None))
        token = passage.token if change else factual[PLACE]
        asked = replaced(_request(passage.prompt, seed, noise), factual, PLACE, token)
        told = _answer(context, replace(asked, cache=cache or None))
        values.append(similarity(factual[PLACE + 1 :], told[PLACE + 1 :]))
    return Scores(values, [str(number) for number in range(len(values))])


def similarity(left: Sequence[int], right: Sequence[int]) -> float:
    """1 − Levenshtein distance / the longer one's length; 1 for two empty ones."""
    row = list(range(len(right) + 1))
    for i, mine in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (mine != other))
    return 1.0 - row[-1] / max(len(left), len(right), 1)


def _replayed(context: Context, passages: Sequence[Passage]) -> float:
    """The share of answers that come again when all run together, with drafts and without in turn."""
    drafts = [{"technique": "prompt-lookup"}]
    handles = [
        context.engine.submit(
            replace(_request(passage.prompt, passage.seed, GUMBEL), decoding=drafts if number % 2 else None)
        )
        for number, passage in enumerate(passages)
    ]
    told = [tuple(handle.result().token_ids) for handle in handles]
    return sum(own == passage.factual for own, passage in zip(told, passages, strict=True)) / len(passages)


def _given_back(context: Context, passages: Sequence[Passage]) -> float:
    """The share of prose tokens that come again by the noise that explains them."""
    facts, same = facts_of(context.model), 0
    for passage in passages:
        observed = observation(_request(passage.prompt, passage.seed, GUMBEL), passage.following, facts)
        with context.engine.submit(observed) as handle:
            noise = hindsight(observed, handle, facts)
        told = _answer(context, _request(passage.prompt, passage.seed, noise))
        same += sum(a == b for a, b in zip(told, passage.following, strict=False))
    return same / (OBSERVED * len(passages))
