"""How far texts depart from the baseline's."""

from __future__ import annotations

import pytest

from thrifty.evaluation.departure import departure


def test_equal_texts_do_not_depart() -> None:
    same = departure([("one two three", "one two three")] * 3)
    assert (same.rouge_1, same.rouge_l, same.identical) == (1.0, 1.0, 1.0)
    assert (same.same_tokens, same.tokens) == (3.0, 3.0)


def test_figures_are_means_over_pairs() -> None:
    apart = departure([("the quick red fox", "the quick brown fox"), ("b a", "a b")])
    assert apart.rouge_1 == pytest.approx((0.75 + 1.0) / 2), "words counted, whatever their order"
    assert apart.rouge_l == pytest.approx((0.75 + 0.5) / 2), "the longest common subsequence keeps it"
    assert (apart.same_tokens, apart.tokens, apart.identical) == (1.0, 3.0, 0.0)
