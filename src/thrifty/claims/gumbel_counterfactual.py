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
    prompts = [tuple(cut.passage.prompt) for cut in chosen]
    seeds = [context.seed * 1000 + number for number in range(len(chosen))]
    asked = [_request(prompt, seed, GUMBEL) for prompt, seed in zip(prompts, seeds, strict=True)]
    factual = _answers(context, asked)
    others = []
    for number, (prompt, answer) in enumerate(zip(prompts, factual, strict=True)):
        ban = {"top_p": 0.9, "logit_bias": {answer[PLACE]: -math.inf}}
        others.append(replace(_request(prompt, 42 + number, GUMBEL, **ban), forced=answer[:PLACE], free=1))
    tokens = [answer[PLACE] for answer in _answers(context, others)]
    following = [tuple(cut.passage.answer[:OBSERVED]) for cut in chosen]
    return [Passage(*parts) for parts in zip(prompts, seeds, map(tuple, factual), tokens, following, strict=True)]


def _request(prompt: Sequence[int], seed: int, noise: str | GumbelNoise | None, **options: Any) -> Request:
    sampling = SamplingParameters(
        temperature=TEMPERATURE, seed=seed, noise=as_noise(noise), max_tokens=ANSWER, ignore_eos=True, **options
    )
    return Request(prompt=prompt, sampling=sampling)


def _answers(context: Context, requests: Sequence[Request]) -> list[list[int]]:
    """Of all of them, in one batch as far as the engine takes them together."""
    handles = [context.engine.submit(request) for request in requests]
    return [handle.result().token_ids for handle in handles]


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
    factual: list[Sequence[int]] = [passage.factual for passage in passages]
    if noise is None:
        factual = [*_answers(context, [_request(passage.prompt, passage.seed, None) for passage in passages])]
    asked = []
    for passage, answer in zip(passages, factual, strict=True):
        request = _request(passage.prompt, passage.seed + 500_009 * shift, noise)
        token = passage.token if change else answer[PLACE]
        asked.append(replace(replaced(request, answer, PLACE, token), cache=cache or None))
    told = _answers(context, asked)
    values = [similarity(a[PLACE + 1 :], b[PLACE + 1 :]) for a, b in zip(factual, told, strict=True)]
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
    asked = [_request(passage.prompt, passage.seed, GUMBEL) for passage in passages]
    mixed = [replace(own, decoding=drafts if number % 2 else None) for number, own in enumerate(asked)]
    told = _answers(context, mixed)
    same = [tuple(own) == passage.factual for own, passage in zip(told, passages, strict=True)]
    return sum(same) / len(passages)


def _given_back(context: Context, passages: Sequence[Passage]) -> float:
    """The share of prose tokens that come again by the noise that explains them."""
    facts, asked = facts_of(context.model), []
    for passage in passages:
        observed = observation(_request(passage.prompt, passage.seed, GUMBEL), passage.following, facts)
        with context.engine.submit(observed) as handle:
            noise = hindsight(observed, handle, facts)
        asked.append(_request(passage.prompt, passage.seed, noise))
    both = zip(_answers(context, asked), passages, strict=True)
    same = sum(a == b for told, own in both for a, b in zip(told, own.following, strict=False))
    return same / (OBSERVED * len(passages))
