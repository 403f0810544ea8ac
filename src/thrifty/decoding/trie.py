"""Tries of tokens: what followed some tokens before, and how often (Zhao et al. 2023, arXiv 2312.12728, section 4).

A trie holds, for every token of a text, the branch of tokens behind it. A node's count says how many branches pass it,
so none is above its parent's. Two ways to hold one: `Occurrences`, the trie of one text, is the text itself, and finds
nodes when they are asked for; `OutputTrie`, of many answers, is nodes whose counts are halved where they become many.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

NONE = -1  # no node


class Step(NamedTuple):
    """A token that followed, how often, and what its trie finds the tokens behind it by."""

    token: int
    frequency: float
    below: Any


class Trie(Protocol):
    """What can be asked for the tokens that followed. Steps are in the order in which the trie first met them."""

    def after(self, query: Sequence[int]) -> list[Step]:
        """The tokens that followed these, one at least."""
        ...

    def behind(self, step: Step) -> list[Step]:
        """The tokens that followed a step of this trie, which has not changed since."""
        ...


class Occurrences:
    """The trie of all of a text's suffixes: 4 bytes a token. A node is the places at which its tokens end."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens = array("i", tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on with these."""
        self._tokens.extend(tokens)

    def after(self, query: Sequence[int]) -> list[Step]:
        """See Trie."""
        starts = len(self._tokens) - len(query)
        if starts <= 0:
            return []
        text = np.frombuffer(self._tokens, np.intc)
        found = np.ones(starts, np.bool_)
        for place, token in enumerate(query):
            found &= text[place : place + starts] == token
        return self._steps((np.flatnonzero(found) + len(query)).tolist())

    def behind(self, step: Step) -> list[Step]:
        """See Trie."""
        return self._steps(step.below)

    def _steps(self, places: Sequence[int]) -> list[Step]:
        """The tokens at some places, and the places behind them."""
        found: dict[int, list[int]] = {}
        for place in places:
            if place < len(self._tokens):
                found.setdefault(self._tokens[place], []).append(place + 1)
        return [Step(token, len(behind), behind) for token, behind in found.items()]


class OutputTrie:
    """A tree for every first token, of branches that come one by one; its bytes are fixed when it is made.

    A node is 16 bytes: token, count, its first child, and the next of its siblings.
    """

    def __init__(self, vocabulary_size: int, nodes: int, tree_nodes: int) -> None:
        """nodes: room, of all trees together. tree_nodes: above so many `prune` halves a tree's counts."""
        self.tree_nodes = tree_nodes
        self._first_nodes = array("i", [NONE]) * vocabulary_size
        self._sizes = array("i", [0]) * vocabulary_size
        self._tokens = array("i", [0]) * nodes
        self._counts = array("f", [0.0]) * nodes
        self._children = array("i", [NONE]) * nodes
        self._siblings = array("i", [*range(1, nodes), NONE])  # those that are free hang on one list
        self._free, self._room = 0, nodes

    @staticmethod
    def bytes_of(vocabulary_size: int, nodes: int) -> int:
        """What a trie of this size takes."""
        return 8 * vocabulary_size + 16 * nodes

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays; 0 once it is closed."""
        return self.bytes_of(len(self._sizes), len(self._tokens))

    @property
    def size(self) -> int:
        """Nodes that it holds."""
        return len(self._tokens) - self._room

    def size_of(self, first: int) -> int:
        """Nodes of a first token's tree."""
        return self._sizes[first]

    def put(self, first: int, branch: Sequence[int]) -> None:
        """One more of each node on the way from a first token through a branch behind it (the paper's "branch
        inserting"). Where there is no room, all trees are pruned first. Without effect once it is closed.
        """
        if not self._tokens or len(branch) > len(self._tokens):
            return
        while self._room < len(branch):
            self.prune(range(len(self._sizes)), 0)
        links, at = self._first_nodes, first
        for token in branch:
            node = links[at]
            while node != NONE and self._tokens[node] != token:
                links, at = self._siblings, node
                node = links[at]
            if node == NONE:
                node = links[at] = self._take(token)
                self._sizes[first] += 1
            self._counts[node] += 1
            links, at = self._children, node

    def prune(self, firsts: Iterable[int], above: int | None = None) -> None:
        """In trees of these first tokens with more nodes than `above` (default: `tree_nodes`), halve all counts and
        drop what had a count of at most 1 (the paper's "node pruning").
        """
        limit = self.tree_nodes if above is None else above
        for first in set(firsts) if self._tokens else ():
            if self._sizes[first] > limit:
                self._sizes[first] = self._halve(self._first_nodes, first)

    def after(self, query: Sequence[int]) -> list[Step]:
        """See Trie."""
        first, *more = query
        if first >= len(self._sizes):
            return []
        steps = self._steps(self._first_nodes[first])
        for token in more:
            found = next((step for step in steps if step.token == token), None)
            steps = [] if found is None else self.behind(found)
        return steps

    def behind(self, step: Step) -> list[Step]:
        """See Trie."""
        return self._steps(self._children[step.below])

    def close(self) -> None:
        """Forget everything and give its bytes back. Whoever still asks it finds nothing."""
        self._first_nodes, self._sizes, self._tokens, self._children, self._siblings = (array("i") for _ in range(5))
        self._counts, self._room = array("f"), 0

    def _steps(self, node: int) -> list[Step]:
        """A list of siblings, from its first node on."""
        steps = []
        while node != NONE:
            steps.append(Step(self._tokens[node], self._counts[node], node))
            node = self._siblings[node]
        return steps

    def _take(self, token: int) -> int:
        """A node that was free, without children and siblings."""
        node = self._free
        self._free = self._siblings[node]
        self._tokens[node], self._counts[node] = token, 0.0
        self._children[node] = self._siblings[node] = NONE
        self._room -= 1
        return node

    def _halve(self, links: array[int], at: int) -> int:
        """Halve the siblings that hang on `links[at]`, and all below them. Returns how many nodes stay."""
        kept, node = 0, links[at]
        while node != NONE:
            after = self._siblings[node]
            if self._counts[node] > 1:
                self._counts[node] *= 0.5
                kept += 1 + self._halve(self._children, node)
                links, at = self._siblings, node
            else:
                links[at] = after
                self._drop(node)
            node = after
        return kept

    def _drop(self, node: int) -> None:
        """Free a node and all below it."""
        child = self._children[node]
        while child != NONE:
            after = self._siblings[child]
            self._drop(child)
            child = after
        self._siblings[node], self._free = self._free, node
        self._room += 1
