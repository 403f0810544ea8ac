"""The length of an adaptive draft: the papers' formula, and what it is fed with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.acceptance import Acceptance, best_length, expected_tokens
from thrifty.decoding.step_costs import StepCosts


def costs(*steps: tuple[int, float]) -> StepCosts:
    made = StepCosts()
    for rows, seconds in steps:
        made.note(rows, seconds)
    return made


@given(st.floats(0.0, 0.99), st.floats(0.02, 1.5))
def test_where_rows_are_free_the_length_is_the_papers(rate: float, share: float) -> None:
    """Leviathan et al., theorem 3.8, with c = the draft's share of the target's step."""
    speedup = [(1 - rate ** (g + 1)) / ((1 - rate) * (g * share + 1)) for g in range(9)]
    length = best_length(rate, 8, costs((1, 1.0)), costs((1, share)))
    assert speedup[length] == pytest.approx(max(speedup))


def test_expected_tokens_are_those_of_draws() -> None:
    random = np.random.default_rng(0)
    for rate in (0.0, 0.3, 0.8, 1.0):
        taken = np.cumprod(random.random((200_000, 5)) < rate, axis=1).sum(axis=1) + 1
        assert taken.mean() == pytest.approx(expected_tokens(rate, 5), rel=0.01)


def test_rows_that_cost_shorten_the_draft() -> None:
    draft = costs((1, 0.1))
    free = best_length(0.9, 8, costs((1, 1.0), (8, 1.0)), draft)
    dear = best_length(0.9, 8, costs((1, 1.0), (8, 4.0)), draft)
    hopeless = best_length(0.2, 8, costs((1, 1.0), (8, 7.0)), costs((1, 0.9)))
    assert free > dear > 0 == hopeless
    assert best_length(0.9, 8, costs((1, 1.0), (8, 4.0)), draft, sequences=8) <= dear, "a batch has less to gain"


def test_a_line_is_found_under_noise_and_an_outlier_moves_it_little() -> None:
    random, made = np.random.default_rng(1), StepCosts()
    assert not made.known and made.seconds(3) == 0.0
    for _ in range(300):
        rows = int(random.integers(1, 10))
        made.note(rows, (5 + 1.5 * rows) * random.normal(1.0, 0.05))
    assert made.seconds(1) == pytest.approx(6.5, rel=0.1) and made.seconds(9) == pytest.approx(18.5, rel=0.1)
    made.note(1, 1e6)
    assert made.seconds(1) < 10


def test_the_rate_follows_what_is_taken() -> None:
    acceptance = Acceptance()
    start = acceptance.rate
    for _ in range(60):
        acceptance.note(4, 4)
    assert acceptance.rate > 0.99 > start
    for _ in range(60):
        acceptance.note(4, 0)
    assert acceptance.rate < 0.01
    for _ in range(200):
        acceptance.note(3, 1)
    assert acceptance.rate == pytest.approx(0.5), "one of two tried: the third was not"
