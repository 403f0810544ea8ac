from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.arrays import Floats
from thrifty.decoding.drawing import NUCLEUS_PROBE, draw, inverse, largest, uniform
from thrifty.decoding.sampling import ForcedSampler, Sampler, logprob_of
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.errors import PromptError

VOCABULARY = 1000


def sampler(**options: object) -> Sampler:
    return Sampler(SamplingParameters.of(**options), VOCABULARY)


def logits(seed: int = 0, spread: float = 3.0) -> Floats:
    return np.random.default_rng(seed).standard_normal(VOCABULARY, np.float32) * np.float32(spread)


def fp32(*values: float) -> Floats:
    return np.array(values, np.float32)


def log_softmax(scores: Floats) -> Floats:
    return scores - np.log(np.exp(scores.astype(np.float64)).sum()).astype(np.float32)


def best_of(scores: Floats, count: int) -> list[int]:
    """By a whole sort: of equal scores the first."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]


def support(scores: Floats, draws: int = 3000, **options: object) -> set[int]:
    parameters = SamplingParameters.of(**options)
    return {draw(scores, parameters, uniform(1, 0, place)) for place in range(draws)}


BAD = [
    ({"temperature": -1.0}, "temperature = -1.0 is out of range; use 0 (greedy) or more"),
    ({"temperature": math.nan}, "temperature = nan"),
    ({"temperature": "hot"}, "temperature = 'hot'"),
    ({"top_k": -1}, "top_k = -1 is out of range; use 0 (off) or more"),
    ({"top_k": 1.5}, "top_k = 1.5"),
    ({"top_p": 0.0}, "top_p = 0.0 is out of range; use above 0, at most 1"),
    ({"top_p": 1.01}, "top_p = 1.01"),
    ({"min_p": 1.5}, "min_p = 1.5 is out of range; use 0 (off) to 1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0 is out of range"),
    ({"presence_penalty": math.inf}, "presence_penalty = inf"),
    ({"frequency_penalty": math.nan}, "frequency_penalty = nan"),
    ({"seed": -1}, "seed = -1"),
    ({"max_tokens": 0}, "max_tokens = 0 is out of range; use 1 or more"),
    ({"logprobs": 21}, "logprobs = 21 is out of range; use 0 to 20"),
    ({"stop": ("",)}, "every stop string needs at least one character"),
    ({"stop_token_ids": (-1,)}, "stop_token_ids = -1"),
    ({"logit_bias": {3: math.nan}}, "logit_bias[3] = nan"),
    ({"temprature": 1.0}, "unknown sampling option 'temprature'. Did you mean 'temperature'?"),
    ({"greedy": True, "temperature": 0.7}, "greedy=True contradicts temperature = 0.7"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:32] for _, message in BAD])
def test_bad_values_are_refused_with_the_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        SamplingParameters.of(**options)
    assert message in str(caught.value)


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(PromptError, match="logit_bias names token 1000; the vocabulary ends at 999"):
        sampler(logit_bias={1000: 1.0})
    with pytest.raises(PromptError, match="stop_token_ids names token 2000"):
        sampler(stop_token_ids=(2000,))
    with pytest.raises(PromptError, match="forced names token 1000"):
        ForcedSampler(SamplingParameters(), VOCABULARY, [1, 1000])


def test_greedy_is_the_argmax_and_a_single_stop_string_is_a_tuple() -> None:
    assert sampler().choose(logits()).token == int(logits().argmax())
    assert sampler(temperature=5.0, top_k=1).choose(logits()).token == int(logits().argmax())
    assert SamplingParameters(stop="end").stop == ("end",)


def test_the_same_seed_draws_the_same_and_streams_differ() -> None:
    def run(seed: int, stream: int) -> list[int]:
        one = Sampler(SamplingParameters(temperature=1.0, seed=seed), VOCABULARY, stream)
        tokens = []
        for step in range(50):
            tokens.append(one.choose(logits(step, 0.5)).token)
            one.commit(tokens[-1])
        return tokens

    assert run(7, 0) == run(7, 0)
    assert run(7, 0) != run(7, 1)
    assert run(7, 0) != run(8, 0)


def test_a_choice_depends_on_the_position_not_on_earlier_calls() -> None:
    one, other = sampler(temperature=1.0, seed=3), sampler(temperature=1.0, seed=3)
    for step in range(5):
        other.choose(logits(step))  # looking does not advance
    assert one.choose(logits(9)).token == other.choose(logits(9)).token
    ahead = one.choose(logits(9, 0.5), offset=2)
    one.commit(1)
    one.commit(2)
    assert one.choose(logits(9, 0.5)) == ahead


def test_uniform_covers_the_unit_interval_evenly() -> None:
    numbers = [uniform(0, stream, place) for stream in range(4) for place in range(5000)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    counts = Counter(int(number * 20) for number in numbers)
    # 1000 expected a bin, deviation 31: a bin beyond 6 deviations has odds below 1 in 10 million
    assert all(abs(counts[place] - 1000) < 190 for place in range(20))


def test_frequencies_follow_the_softmax() -> None:
    scores = np.full(VOCABULARY, -math.inf, np.float32)
    scores[:4] = np.log(fp32(0.4, 0.3, 0.2, 0.1))
    for options in ({}, {"top_p": 0.999}, {"top_k": 500}):
        parameters = SamplingParameters.of(temperature=1.0, **options)
        counts = Counter(draw(scores, parameters, uniform(5, 0, place)) for place in range(8000))
        for token, share in enumerate((0.4, 0.3, 0.2, 0.1)):
            assert abs(counts[token] / 8000 - share) < 0.02, (options, counts)


def test_top_k_keeps_the_best() -> None:
    found = support(logits(spread=0.1), temperature=1.0, top_k=7)
    assert found == set(best_of(logits(spread=0.1), 7))


def test_top_p_keeps_the_fewest_that_hold_the_mass() -> None:
    scores = np.log(fp32(0.5, 0.25, 0.15, 0.1))
    assert support(scores, temperature=1.0, top_p=0.5) == {0}
    assert support(scores, temperature=1.0, top_p=0.51) == {0, 1}
    assert support(scores, temperature=1.0, top_p=0.91) == {0, 1, 2, 3}


def test_top_p_looks_beyond_the_probe_where_it_must() -> None:
    size = NUCLEUS_PROBE * 4
    found = support(np.zeros(size, np.float32), draws=20000, temperature=1.0, top_p=0.5)
    assert len(found) == size // 2


@given(
    size=st.sampled_from([1, 63, 64, 1000, 4096, 8192, 8200]),
    count=st.integers(1, 300),
    seed=st.integers(0, 99),
    levels=st.sampled_from([0, 3]),
    banned=st.booleans(),
)
@settings(deadline=None)
def test_the_largest_are_those_of_a_whole_sort(size: int, count: int, seed: int, levels: int, banned: bool) -> None:
    scores = np.random.default_rng(seed).standard_normal(size, np.float32)
    if levels:
        scores = np.round(scores * np.float32(levels))  # ties
    if banned:
        scores[: size // 2] = -math.inf
    count = min(count, size)
    values, places = largest(scores, count)
    assert places.tolist() == best_of(scores, count)
    assert np.array_equal(scores[places], values)


def test_min_p_is_relative_to_the_best() -> None:
    scores = np.log(fp32(0.5, 0.25, 0.15, 0.1))
    assert support(scores, temperature=1.0, min_p=0.4) == {0, 1}
    assert support(np.zeros(NUCLEUS_PROBE * 2, np.float32), draws=10000, temperature=1.0, min_p=0.9) == set(
        range(NUCLEUS_PROBE * 2)
    )


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert support(logits(), draws=20, temperature=1e-6, top_p=0.9) == {int(logits().argmax())}
    assert support(logits(), draws=20, temperature=1e-6) == {int(logits().argmax())}


def test_penalties_by_their_formulas() -> None:
    scores = np.zeros(VOCABULARY, np.float32)
    scores[1], scores[2], scores[3], scores[4] = 2.0, 1.9, -1.0, 1.5
    repeated = sampler(repetition_penalty=2.0)
    repeated.observe_prompt([1, 3])
    adjusted = repeated._adjusted(scores)
    assert (adjusted[1], adjusted[3]) == (1.0, -2.0)
    assert repeated.choose(scores).token == 2
    frequent = sampler(frequency_penalty=0.3, presence_penalty=0.5)
    frequent.observe_prompt([2])  # the prompt does not count
    for token in (1, 1, 4):
        frequent.commit(token)
    adjusted = frequent._adjusted(scores)
    assert np.allclose(adjusted[[1, 2, 4]], [0.9, 1.9, 0.7])
    assert scores[1] == 2.0, "the caller's logits are not changed"


def test_logit_bias_adds_and_bans() -> None:
    best = int(logits().argmax())
    assert sampler(logit_bias={5: 100.0}).choose(logits()).token == 5
    assert sampler(logit_bias={best: -math.inf}).choose(logits()).token != best


def test_all_tokens_banned_is_an_error_with_the_remedy() -> None:
    banned = sampler(logit_bias=dict.fromkeys(range(VOCABULARY), -math.inf))
    with pytest.raises(PromptError, match="lift a ban in logit_bias"):
        banned.choose(logits())


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_p": 0.8}, {"logprobs": 2}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, VOCABULARY - 1])
def test_a_logit_that_is_no_number_is_an_error_in_every_way_to_choose(
    options: dict[str, float], value: float, place: int
) -> None:
    row = logits()
    row[place] = value
    makers = (lambda: sampler(**options), lambda: ForcedSampler(SamplingParameters.of(**options), VOCABULARY, [3]))
    for make in makers:
        with pytest.raises(PromptError, match=rf"position 2 of the answer: the model's best logit is {value}, so its"):
            make().choose(row, offset=2)


def test_minus_infinity_is_a_mask_and_nothing_else_is_an_error() -> None:
    row = np.full(VOCABULARY, -math.inf, np.float32)
    with pytest.raises(PromptError, match="the model's best logit is -inf"):
        sampler().choose(row)
    row[[4, 9]] = 1.0
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0, "min_p": 0.1}):
        assert sampler(**options).choose(row).token in (4, 9)
    found = sampler(logprobs=20).choose(row).logprob
    assert found is not None and [token for token, _ in found.top] == [4, 9]
    assert found.logprob == pytest.approx(math.log(0.5))


def test_a_draw_at_the_upper_end_is_a_token_that_has_a_probability() -> None:
    weights = np.array([0.25, 0.5, 0.0, 0.0])
    assert inverse(weights, 1.0) == 1 and inverse(weights, 0.0) == 0


def test_logprobs_are_of_the_models_own_distribution() -> None:
    scores = logits()
    choice = sampler(temperature=0.5, logprobs=3, logit_bias={9: 50.0}).choose(scores)
    assert choice.token == 9
    assert choice.logprob is not None
    expected = log_softmax(scores)
    assert choice.logprob.logprob == pytest.approx(float(expected[9]), abs=1e-4)
    assert [token for token, _ in choice.logprob.top] == best_of(scores, 3)
    assert sampler(logprobs=0).choose(scores).logprob == logprob_of(scores, int(scores.argmax()), 0)


def test_a_fork_has_said_the_same_and_draws_its_own() -> None:
    parent = sampler(temperature=1.0, seed=1, repetition_penalty=1.3, frequency_penalty=0.5)
    for token in (4, 5, 4):
        parent.commit(token)
    child = parent.fork(stream=1)
    assert np.array_equal(child._adjusted(logits()), parent._adjusted(logits()))
    child.commit(6)
    assert not np.array_equal(child._adjusted(logits()), parent._adjusted(logits()))
    draws = [(parent.choose(logits(i, 0.1)).token, child.choose(logits(i, 0.1)).token) for i in range(10)]
    assert any(one != other for one, other in draws)


def test_forcing_reports_what_the_model_thought() -> None:
    forced = ForcedSampler(SamplingParameters(logprobs=1), VOCABULARY, [3, 4])
    first = forced.choose(logits())
    forced.commit(first.token)
    assert (first.token, forced.choose(logits()).token) == (3, 4)
    assert first.logprob is not None
    assert first.logprob.logprob == pytest.approx(float(log_softmax(logits())[3]), abs=1e-4)
    assert forced.needs_logits
