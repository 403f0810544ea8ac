"""Sequences that later ones begin with, in their compressed form: for policies that act on earlier tokens alone.

A causal policy (`CachePolicy.causal`) acts whenever a multiple of 128 tokens is reached, whether they were read or
said. So what is held at such a length follows from the tokens alone, and whoever has the same ones goes on from a copy.
A checkpoint is a parked sequence: its segments are shared with those that made it, and move to disk like any other's.

Of one line of tokens few are kept, the farther back the fewer (those whose number is divisible by the higher power of
two), and all at which lines part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from thrifty.cache.policy import BLOCK, CachePolicy
from thrifty.errors import BudgetError, StorageError

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.storage.ledger import Reservation

CHECKPOINTS = "checkpoints"
"""Ledger category of what only checkpoints hold, or hold with others."""
SPREAD = 4
"""A checkpoint stays while the newest is at most so many times its power of two blocks away."""


@dataclass(eq=False)
class Node:
    """A block of tokens behind its parent's; of a root, what it is known by. cache: the sequence that ends with it,
    None where none is kept.
    """

    block: tuple[Hashable, ...]
    number: int
    parent: Node | None
    cache: SequenceCache | None = None
    children: dict[tuple[Hashable, ...], Node] = field(default_factory=dict)
    last_used: int = 0


class Checkpoints:
    """All of them, by recipe, weights, adapter and salt. The least recently used go first. Not safe for threads."""

    def __init__(self, version: str, capacity: int) -> None:
        """version: of the weights. capacity: bytes, in memory and on disk, each segment counted once."""
        self.capacity = capacity
        self.nbytes = 0
        self._version = version
        self._roots: dict[Hashable, Node] = {}
        self._holders: Counter[int] = Counter()
        self._clock = count(1)

    def match(
        self, policies: Sequence[CachePolicy], tokens: Sequence[Hashable], adapter: str, salt: Hashable
    ) -> SequenceCache | None:
        """The longest checkpoint that `tokens` begin with, shorter than they are."""
        node = self._roots.get((self._version, tuple(policies), adapter, salt))
        best = None
        while node is not None and (node.number + 1) * BLOCK < len(tokens):
            start = node.number * BLOCK
            node = node.children.get(tuple(tokens[start : start + BLOCK]))
            if node is not None and node.cache is not None:
                best = node
        if best is None:
            return None
        best.last_used = next(self._clock)
        return best.cache

    def put(self, sequence: SequenceCache, tokens: Sequence[Hashable], adapter: str, salt: Hashable) -> None:
        """Keep a parked sequence of `BLOCK`s; it is theirs from now on. tokens: what it holds (more are ignored)."""
        key = self._version, sequence.policies, adapter, salt
        node = self._roots.setdefault(key, Node(key, 0, None))
        for start in range(0, sequence.length, BLOCK):
            block = tuple(tokens[start : start + BLOCK])
            node = node.children.setdefault(block, Node(block, node.number + 1, node))
            node.last_used = next(self._clock)
        if node.cache is not None:
            sequence.free()
            return
        node.cache = sequence
        for segment in sequence.segments():
            self._holders[id(segment)] += 1
            if self._holders[id(segment)] == 1:
                self.nbytes += segment.nbytes
            if segment.category == "cache":
                segment.recategorise(CHECKPOINTS)
        self._thin(node)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        """Let go of the least recently used until at most `capacity` bytes are held."""
        if self.nbytes <= capacity:
            return
        for node in self._idle():
            if self.nbytes <= capacity:
                return
            self._drop(node)

    def free_memory(self, nbytes: int) -> None:
        """Let go of what lies in memory, least recently used first, until about so many bytes are free."""
        for node in self._idle():
            if nbytes <= 0:
                return
            held = 0 if node.cache is None else resident(node.cache)
            if held:
                nbytes -= held
                self._drop(node)

    def __len__(self) -> int:
        return sum(1 for _ in self._kept())

    # --- inside --------------------------------------------------------------------------------------

    def _kept(self) -> Iterator[Node]:
        waiting = list(self._roots.values())
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            if node.cache is not None:
                yield node

    def _idle(self) -> list[Node]:
        """Least recently used first, without one that is being gone on from: it is not parked for that moment."""
        idle = (node for node in self._kept() if node.cache is not None and node.cache.parked)
        return sorted(idle, key=lambda node: node.last_used)

    def _thin(self, newest: Node) -> None:
        """Of the line before the newest, those that are not far back for their power of two."""
        node = newest.parent
        while node is not None and node.parent is not None:
            before, number = node.parent, node.number
            near = newest.number - number <= max(1, SPREAD * (number & -number))
            if node.cache is not None and len(node.children) < 2 and not near:
                self._drop(node)
            node = before

    def _drop(self, node: Node) -> None:
        cache, node.cache = node.cache, None
        if cache is not None:
            segments = cache.segments()
            for segment in segments:
                self._holders[id(segment)] -= 1
                if not self._holders[id(segment)]:
                    del self._holders[id(segment)]
                    self.nbytes -= segment.nbytes
                    if segment.references > 1 and segment.category == CHECKPOINTS:
                        segment.recategorise("cache")
            cache.free()
        while node.parent is not None and node.cache is None and not node.children:
            del node.parent.children[node.block]
            node = node.parent
        if node.parent is None and not node.children:
            self._roots.pop(node.block, None)


def resident(sequence: SequenceCache) -> int:
    """Bytes of a sequence's segments that lie in memory: of those on disk positions, biases and first keys."""
    return sum(own.nbytes if own.tier == "memory" else own.index_bytes for own in sequence.segments())


def resumed(held: SequenceCache, reservation: Reservation | None) -> SequenceCache | None:
    """A sequence that goes on from a parked one, in memory; None, with the promise as it was, where it does not fit."""
    held.parked = False  # its segments are in use: they never make room for each other
    try:
        held.bring_in()
        cache = held.fork(reservation)
    except (BudgetError, StorageError):
        if reservation is not None:
            reservation.resume()  # a fork that fails ends it
        return None
    finally:
        held.parked = True
    cache.hit = cache.length
    return cache
