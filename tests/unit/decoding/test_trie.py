"""Tries against dictionaries of paths, written out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.decoding.trie import Occurrences, OutputTrie, Step, Trie

TOKENS = st.lists(st.integers(0, 3), min_size=0, max_size=40)
Paths = dict[tuple[int, ...], float]


def paths_of(trie: Trie, query: Sequence[int], depth: int) -> Paths:
    """All that follows a query, with its counts, in the trie's order."""
    found: Paths = {}

    def walk(steps: list[Step], path: tuple[int, ...]) -> None:
        for step in steps if len(path) < depth else ():
            found[(*path, step.token)] = step.frequency
            walk(trie.behind(step), (*path, step.token))

    walk(trie.after(query), ())
    return found


def put(paths: Paths, branch: Sequence[int]) -> None:
    """One more of every beginning of a branch of two tokens or more."""
    for stop in range(2, len(branch) + 1):
        paths[tuple(branch[:stop])] = paths.get(tuple(branch[:stop]), 0) + 1


def below(paths: Paths, query: Sequence[int], depth: int) -> Paths:
    size = len(query)
    chosen = {path[size:]: count for path, count in paths.items() if path[:size] == tuple(query) and len(path) > size}
    return {path: count for path, count in chosen.items() if len(path) <= depth}


@settings(max_examples=150)
@given(TOKENS, TOKENS, st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(1, 6))
def test_occurrences_are_the_trie_of_all_suffixes(
    text: list[int], more: list[int], query: list[int], depth: int
) -> None:
    trie, paths = Occurrences(text), Paths()
    trie.extend(more)
    for start in range(len(text + more)):
        put(paths, (text + more)[start:])
    assert paths_of(trie, query, depth) == below(paths, query, depth)


def halved(paths: Paths, first: int) -> Paths:
    """The published pruning of one tree, by its words."""
    kept = {path: count / 2 for path, count in paths.items() if path[0] == first and count > 1}
    whole = {path for path in kept if all(path[:stop] in kept for stop in range(2, len(path)))}
    return {
        path: (kept[path] if path[0] == first else count)
        for path, count in paths.items()
        if path[0] != first or path in whole
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=6), max_size=30), st.integers(0, 12))
def test_outputs_are_counted_and_pruned_as_dictionaries_are(branches: list[list[int]], limit: int) -> None:
    trie, paths = OutputTrie(4, 400, limit), Paths()
    for number, branch in enumerate(branches):
        trie.put(branch[0], branch[1:])
        put(paths, branch)
        if number % 5 == 4:
            trie.prune([branch[0], branch[0]])
            if sum(path[0] == branch[0] for path in paths) > limit:
                paths = halved(paths, branch[0])
        for first in range(4):
            assert trie.size_of(first) == sum(path[0] == first for path in paths)
            found = paths_of(trie, [first], 9)
            assert found == below(paths, [first], 9)
            assert [path for path in found if len(path) == 1] == list(below(paths, [first], 1)), "their order"
    assert trie.size == len(paths)


def test_a_full_trie_is_pruned_until_there_is_room() -> None:
    trie = OutputTrie(10, 64, 1000)
    for number in range(300):
        trie.put(number % 7, [(number * 7 + place) % 10 for place in range(12)])
        assert trie.size <= 64
    for _ in range(8):
        trie.put(9, [1, 2, 3])
    before = paths_of(trie, [9], 3)
    assert before[1, 2, 3] > 1, "what comes often outlives the pruning"
    trie.put(9, list(range(10)) * 7)
    assert paths_of(trie, [9], 3) == before, "a branch longer than the trie is not put"


def test_its_bytes_are_those_of_its_arrays_and_closing_gives_them_back() -> None:
    trie = OutputTrie(100, 512, 64)
    arrays = [value for value in vars(trie).values() if hasattr(value, "itemsize")]
    assert trie.nbytes == sum(array.itemsize * len(array) for array in arrays) == OutputTrie.bytes_of(100, 512)
    trie.put(5, [6, 7])
    assert [step.token for step in trie.after([5])] == [6]
    trie.close()
    trie.put(5, [6, 7])
    trie.prune([5])
    assert trie.nbytes == trie.size == 0 and trie.after([5]) == trie.after([5, 6]) == []


def test_nodes_are_used_again() -> None:
    trie = OutputTrie(4, 40, 0)
    for _ in range(200):
        trie.put(1, [2, 3, 2, 3])
        trie.prune([1])
        assert trie.size == 0
    trie.put(2, [1])
    assert trie.after([2])[0].frequency == pytest.approx(1.0) and trie.after([2, 1]) == []
