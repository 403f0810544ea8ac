"""Nodes of a prompt's and the outputs' trie as one, and the drafts that are made of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from thrifty.decoding.draft import COMMITTED, Draft
from thrifty.decoding.trie import Step, Trie

OUTPUT_WEIGHT = 1e-4  # of an output's count beside the prompt's, as released


class Node:
    """A node of both tries: how often the prompt and the outputs have it. place: where it lies among its siblings and
    theirs, by the order in which they were met.
    """

    def __init__(self, token: int, place: tuple[int, ...], steps: tuple[Step | None, Step | None]) -> None:
        self.token, self.place, self.steps = token, place, steps
        self.prompt, self.output = (0.0 if step is None else step.frequency for step in steps)

    @property
    def rank(self) -> float:
        """(1 − w) · prompt + w · output, w = 1e-4."""
        return (1.0 - OUTPUT_WEIGHT) * self.prompt + OUTPUT_WEIGHT * self.output


@dataclass(frozen=True)
class Roots:
    """The nodes that follow a query, and the tries that know what follows them."""

    prompt: Trie
    outputs: Trie
    nodes: Sequence[Node]

    def behind(self, node: Node) -> list[Node]:
        """A node's children."""
        known, said = node.steps
        prompt = [] if known is None else self.prompt.behind(known)
        return merged(prompt, [] if said is None else self.outputs.behind(said), node.place)


def followers(prompt: Trie, outputs: Trie, query: Sequence[int]) -> Roots:
    """What followed a query in either trie."""
    return Roots(prompt, outputs, merged(prompt.after(query), outputs.after(query), ()))


def merged(prompt: Sequence[Step], outputs: Sequence[Step], parent: tuple[int, ...]) -> list[Node]:
    """Siblings of two tries as one: those of the prompt first, each trie's in its order."""
    steps: dict[int, list[Step | None]] = {step.token: [step, None] for step in prompt}
    for step in outputs:
        steps.setdefault(step.token, [None, None])[1] = step
    return [Node(token, (*parent, at), (own[0], own[1])) for at, (token, own) in enumerate(steps.items())]


def best(roots: Roots, depth: int, count: int, rank: Callable[[Node], float]) -> list[Node]:
    """The `count` nodes of the highest rank above 0, at most `depth` deep, in falling order. No node ranks above its
    parent, so that none is chosen without it.
    """
    heap = [(-rank(node), node.place, node) for node in roots.nodes if rank(node) > 0]
    heapq.heapify(heap)
    chosen: list[Node] = []
    while heap and len(chosen) < count:
        _, place, node = heapq.heappop(heap)
        chosen.append(node)
        for child in roots.behind(node) if len(place) < depth else ():
            if rank(child) > 0:
                heapq.heappush(heap, (-rank(child), child.place, child))
    return chosen


def tree(nodes: Iterable[Node]) -> Draft:
    """A draft of nodes, each of which has its parent among them: depth first, the best of siblings first."""
    children: dict[tuple[int, ...], list[Node]] = {}
    for node in nodes:
        children.setdefault(node.place[:-1], []).append(node)
    tokens: list[int] = []
    parents: list[int] = []

    def add(place: tuple[int, ...], parent: int) -> None:
        for node in sorted(children.get(place, ()), key=lambda node: (-node.rank, node.place)):
            tokens.append(node.token)
            parents.append(parent)
            add(node.place, len(tokens) - 1)

    add((), COMMITTED)
    return drafted(tuple(tokens), tuple(parents))


def behind(line: tuple[int, ...], draft: Draft) -> Draft:
    """A line of tokens, then a draft."""
    parents = [len(line) + draft.parent(index) for index in range(len(draft.tokens))]  # −1 is the line's last
    return drafted(line + draft.tokens, (*range(-1, len(line) - 1), *parents))


def drafted(tokens: tuple[int, ...], parents: tuple[int, ...]) -> Draft:
    """A draft; one that is a line is told as one, since its rows have the bits of plain decoding."""
    line = all(parent == index - 1 for index, parent in enumerate(parents))
    return Draft(tokens) if line else Draft(tokens, parents)


def path_to(draft: Draft, index: int) -> list[int]:
    """The way to a token of a draft, itself included."""
    path = [index]
    while (parent := draft.parent(path[-1])) != COMMITTED:
        path.append(parent)
    return path[::-1]
