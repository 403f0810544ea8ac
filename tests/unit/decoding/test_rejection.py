"""Speculative sampling keeps the target's distribution: Leviathan et al. 2022, appendix A.1, checked by counting."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.arrays import Floats
from thrifty.decoding.draft import Draft
from thrifty.decoding.drawing import distribution, draw, inverse
from thrifty.decoding.rejection import ACCEPT, DRAFT, REPLACE, judge, residual
from thrifty.decoding.sampling import ForcedSampler, Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.scores import ArrayScores

SIZE = 6


@cache
def logits_of(seed: int, *context: int) -> Floats:
    """Logits [SIZE] of a model that knows the tokens before."""
    return np.random.default_rng((seed, *context)).normal(size=SIZE).astype(np.float32) * 1.5


def speculate(seed: int, parameters: SamplingParameters, length: int) -> tuple[int, ...]:
    """The tokens of one step: a draft of `length` tokens from model 1, judged by model 0."""
    sampler = Sampler(parameters, SIZE)
    sampler.seed = seed
    tokens: list[int] = []
    proposed = []
    for _ in range(length):
        here = sampler.following(tokens)
        proposed.append(here.probabilities(logits_of(1, *tokens)))
        tokens.append(inverse(proposed[-1], here.number(DRAFT)))
    rows = np.stack([logits_of(0, *tokens[:place]) for place in range(length + 1)])
    accepted = judge(sampler, Draft(tuple(tokens)), proposed, ArrayScores(rows))
    chosen = tuple(choice.token for choice in accepted.choices)
    assert accepted.path == tuple(range(len(chosen) - 1)) and list(chosen[:-1]) == tokens[: len(chosen) - 1]
    return chosen


def answer(seed: int, parameters: SamplingParameters, length: int, tokens: int) -> tuple[int, ...]:
    """The first tokens of an answer that is decoded by several such steps."""
    found: list[int] = []
    sampler = Sampler(parameters, SIZE)
    sampler.seed = seed
    while len(found) < tokens:
        here = sampler.following(found)
        drafted: list[int] = []
        proposed = []
        for _ in range(length):
            drafter = here.following(drafted)
            proposed.append(drafter.probabilities(logits_of(1, *found, *drafted)))
            drafted.append(inverse(proposed[-1], drafter.number(DRAFT)))
        rows = np.stack([logits_of(0, *found, *drafted[:place]) for place in range(length + 1)])
        found += [choice.token for choice in judge(here, Draft(tuple(drafted)), proposed, ArrayScores(rows)).choices]
    return tuple(found[:tokens])


PARAMETERS = [
    SamplingParameters(temperature=1.0),
    SamplingParameters(temperature=0.7, top_k=4),
    SamplingParameters(temperature=1.3, top_p=0.8),
    SamplingParameters(temperature=1.0, min_p=0.2, repetition_penalty=1.4, frequency_penalty=0.8),
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=["plain", "top_k", "top_p", "penalties"])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.long
def test_two_tokens_have_the_targets_distribution(parameters: SamplingParameters, length: int) -> None:
    """Counts of all answers of two tokens against their exact probabilities: a χ² test."""
    draws = 2500
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        tokens = answer(seed, parameters, length, 2)
        counts[tokens] = counts.get(tokens, 0) + 1
    exact = {}
    for tokens in itertools.product(range(SIZE), repeat=2):
        chance, sampler = 1.0, Sampler(parameters, SIZE)
        for place, token in enumerate(tokens):
            chance *= sampler.following(tokens[:place]).probabilities(logits_of(0, *tokens[:place]))[token]
        exact[tokens] = chance
    assert sum(exact.values()) == pytest.approx(1.0)
    assert all(exact[tokens] > 0 for tokens in counts)
    common = [tokens for tokens, chance in exact.items() if chance * draws >= 5]
    rest = sum(chance for chance in exact.values() if chance * draws < 5)
    cells = [(counts.get(tokens, 0), exact[tokens] * draws) for tokens in common]
    if rest * draws >= 5:
        cells.append((draws - sum(count for count, _ in cells), rest * draws))
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = len(cells) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_the_count_would_show_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing rejected tokens by draws from p itself, not from the residual, is another distribution."""
    monkeypatch.setattr("thrifty.decoding.rejection.residual", lambda wanted, proposed: wanted)
    with pytest.raises(AssertionError):
        test_two_tokens_have_the_targets_distribution(PARAMETERS[0], 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 4))
def test_a_step_is_the_papers_algorithm(seed: int, length: int) -> None:
    """Algorithm 1, written out."""
    parameters = SamplingParameters(temperature=0.9, top_p=0.95)
    sampler = Sampler(parameters, SIZE)
    sampler.seed = seed
    tokens: list[int] = []
    p, q = [], []
    for place in range(length + 1):
        here = sampler.following(tokens)
        p.append(distribution(logits_of(0, *tokens), parameters))
        q.append(distribution(logits_of(1, *tokens), parameters))
        if place < length:
            tokens.append(inverse(q[-1], here.number(DRAFT)))
    taken = 0
    while taken < length:
        r = sampler.following(tokens[:taken]).number(ACCEPT)
        if r >= min(1.0, p[taken][tokens[taken]] / q[taken][tokens[taken]]):
            break
        taken += 1
    here = sampler.following(tokens[:taken])
    if taken < length:
        adjusted = [max(0.0, a - b) for a, b in zip(p[taken], q[taken], strict=True)]
        last = inverse(np.array(adjusted) / sum(adjusted), here.number(REPLACE))
    else:
        last = here.choose(logits_of(0, *tokens)).token
    assert speculate(seed, parameters, length) == (*tokens[:taken], last)


def test_equal_models_take_every_token() -> None:
    chances = distribution(logits_of(0), SamplingParameters(temperature=1.0))
    assert np.array_equal(residual(chances, chances), chances)
    for seed in range(50):
        sampler = Sampler(SamplingParameters(temperature=1.0, seed=seed), SIZE)
        token = inverse(chances, sampler.number(DRAFT))
        rows = ArrayScores(np.stack([logits_of(0), logits_of(0, token)]))
        assert judge(sampler, Draft((token,)), [chances], rows).choices[0].token == token


def test_forced_tokens_stay_forced() -> None:
    for seed in range(20):
        sampler = ForcedSampler(SamplingParameters(temperature=1.0, seed=seed), SIZE, (3, 1, 4))
        proposed = [distribution(logits_of(1, place), SamplingParameters(temperature=1.0)) for place in range(3)]
        rows = ArrayScores(np.stack([logits_of(0, place) for place in range(4)]))
        choices = judge(sampler, Draft((3, 1, 0)), proposed, rows).choices
        assert [choice.token for choice in choices][:3] == [3, 1, 4][: len(choices)]


def test_log_probabilities_are_the_models_own() -> None:
    parameters = SamplingParameters(temperature=0.5, top_k=2, logprobs=2, seed=1)
    sampler = Sampler(parameters, SIZE)
    chances = sampler.probabilities(logits_of(1))
    token = inverse(chances, sampler.number(DRAFT))
    rows = ArrayScores(np.stack([logits_of(0), logits_of(0, token)]))
    for place, choice in enumerate(judge(sampler, Draft((token,)), [chances], rows).choices):
        logits = rows.logits(place).astype(np.float64)
        assert choice.logprob is not None
        assert choice.logprob.logprob == pytest.approx(logits[choice.token] - np.log(np.exp(logits).sum()), abs=1e-5)
        assert len(choice.logprob.top) == 2


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(PARAMETERS[:3]))
def test_the_distribution_is_the_one_that_draw_draws_from(seed: int, parameters: SamplingParameters) -> None:
    scores = np.random.default_rng(seed).normal(size=40).astype(np.float32)
    numbers = (np.arange(2000) + 0.5) / 2000
    counted = np.bincount([draw(scores, parameters, number) for number in numbers], minlength=40) / 2000
    assert np.abs(counted - distribution(scores, parameters)).max() < 1e-3


def test_the_distribution_of_greedy_options_is_one_token() -> None:
    for options in (SamplingParameters(), SamplingParameters(temperature=1.0, top_k=1)):
        assert distribution(logits_of(0), options).tolist() == np.eye(SIZE)[int(logits_of(0).argmax())].tolist()


def test_a_sampler_that_follows_is_one_that_committed() -> None:
    parameters = SamplingParameters(temperature=1.0, seed=5, repetition_penalty=1.3, presence_penalty=0.4)
    sampler, other = Sampler(parameters, SIZE), Sampler(parameters, SIZE)
    for sample in (sampler, other):
        sample.observe_prompt([2])
    for token in (1, 4, 1):
        other.commit(token)
    ahead = sampler.following((1, 4, 1))
    assert np.array_equal(ahead.probabilities(logits_of(0)), other.probabilities(logits_of(0)))
    assert ahead.choose(logits_of(0)) == other.choose(logits_of(0))
    assert sampler.position == 0 and sampler.said[0] is not None and not sampler.said[0].any()
