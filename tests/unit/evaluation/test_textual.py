"""What two texts have in common, against the slow and obvious, and the reference implementation of ROUGE."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.evaluation.textual import common_prefix, rouge_1, rouge_l, words

SENTENCES = st.lists(st.sampled_from(["a", "b", "The", "cat", "sat", "7"]), max_size=7).map(" ".join)


def longest(first: list[str], second: list[str]) -> int:
    """The longest common subsequence by trying all."""
    for size in range(len(first), 0, -1):
        for chosen in itertools.combinations(first, size):
            rest = iter(second)
            if all(word in rest for word in chosen):
                return size
    return 0


@given(SENTENCES, SENTENCES)
def test_rouge_l_is_the_longest_common_subsequence(found: str, expected: str) -> None:
    first, second = words(found), words(expected)
    total = len(first) + len(second)
    assert rouge_l(found, expected) == (2 * longest(first, second) / total if total else 1.0)
    assert rouge_l(found, expected) <= rouge_1(found, expected) <= 1.0


@settings(deadline=None)  # the first example imports the reference
@given(SENTENCES.filter(bool), SENTENCES.filter(bool))
def test_rouge_is_that_of_the_reference_implementation(found: str, expected: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"])
    reference = scorer.score(expected, found)
    assert rouge_1(found, expected) == pytest.approx(reference["rouge1"].fmeasure)
    assert rouge_l(found, expected) == pytest.approx(reference["rougeL"].fmeasure)


def test_the_common_prefix_ends_at_the_first_difference() -> None:
    assert common_prefix("abcd", "abxd") == 2
    assert common_prefix("ab", "abc") == 2
    assert common_prefix("", "abc") == 0
