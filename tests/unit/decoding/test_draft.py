"""Drafts and trees of rows: what they refuse, and how they are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.draft import Accepted, Draft, check_path
from thrifty.decoding.sampling import Choice
from thrifty.decoding.tree import depths, line, lineage
from thrifty.errors import ThriftyError


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ((1, 2), (-1,), "2 tokens has 1 parents"),
        ((1, 2), (-1, 1), "token 1 of a draft continues token 1"),
        ((1, 2), (-2, 0), "token 0 of a draft continues token -2"),
        ((1, 5, 5), (-1, 0, 0), "two tokens of a draft are alike"),
    ],
)
def test_what_is_no_tree_is_refused(tokens: tuple[int, ...], parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        Draft(tokens, parents)


def trees() -> st.SearchStrategy[Draft]:
    """Trees of at most 20 tokens, each token its own index."""
    parents = st.integers(0, 20).flatmap(lambda n: st.tuples(*(st.integers(-1, place - 1) for place in range(n))))
    return parents.map(lambda own: Draft(tuple(range(len(own))), own))


def path_of(draft: Draft, index: int) -> list[int]:
    """The tokens that lead to a token, itself last."""
    path = []
    while index >= 0:
        path.append(draft.tokens[index])
        index = draft.parent(index)
    return path[::-1]


@given(trees(), st.integers(-1, 6))
def test_a_cut_tree_has_the_paths_that_are_short_enough(draft: Draft, depth: int) -> None:
    cut = draft.within(depth)
    paths = [path_of(draft, index) for index in range(len(draft.tokens))]
    assert [path_of(cut, index) for index in range(len(cut.tokens))] == [path for path in paths if len(path) <= depth]
    assert draft.depths() == [len(path) for path in paths]


@given(st.integers(0, 9), st.integers(-1, 9))
def test_a_cut_line_is_its_beginning(length: int, depth: int) -> None:
    draft = Draft(tuple(range(length)))
    assert draft.within(depth).tokens == draft.tokens[: max(0, depth)] and draft.within(depth).parents is None


@given(trees())
def test_children_are_found_by_their_token(draft: Draft) -> None:
    for index in range(-1, len(draft.tokens)):
        children = [child for child in range(len(draft.tokens)) if draft.parent(child) == index]
        assert [draft.child(index, draft.tokens[child]) for child in children] == children
        assert draft.child(index, 99) is None


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(*(st.integers(-1, place - 1) for place in range(n)))))
def test_the_lineage_of_rows_is_their_ancestors(parents: tuple[int, ...]) -> None:
    bits = lineage(parents)
    assert bits.dtype == np.int64
    for row in range(len(parents)):
        ancestors, at = set(), row
        while at >= 0:
            ancestors.add(at)
            at = parents[at]
        assert {place for place in range(64) if int(bits[row]) >> place & 1} == ancestors
        assert depths(parents)[row] == len(ancestors) - 1


def test_a_line_continues_row_by_row() -> None:
    assert list(line(4)) == [-1, 0, 1, 2] and depths(line(4)) == [0, 1, 2, 3]
    assert lineage(line(3)).tolist() == [1, 3, 7]


def test_only_ways_through_the_draft_are_accepted() -> None:
    draft = Draft((5, 6, 7), (-1, 0, -1))
    for tokens, path in [((9,), ()), ((5, 9), (0,)), ((5, 6, 9), (0, 1)), ((7, 1), (2,))]:
        check_path(draft, Accepted(tuple(map(Choice, tokens)), path))
    for tokens, path in [((9,), (0,)), ((6, 9), (1,)), ((5, 7, 9), (0, 2)), ((7, 9), (0,)), ((5, 9), (3,)), ((), ())]:
        with pytest.raises(ThriftyError):
            check_path(draft, Accepted(tuple(map(Choice, tokens)), path))
