"""The prefix tree: pages of 64 tokens that several sequences begin with, as they were before any policy.

A node is one page: its tokens, and for every layer group the segment that holds the page (None where a windowed
group had let go of it). Where layers are recurrent, a last segment is the snapshot of their states behind the page, in
some of the nodes: a hit ends at one of those. The path from a root to a node is a prefix; roots are told apart by
weights version, adapter and salt.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from thrifty.arrays import Floats
from thrifty.cache.model_info import LayerGroup, ModelInfo
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.tiers import Tiers
from thrifty.cache.statistics import Statistics
from thrifty.formats.kv import PAGE

TREE = "tree"
"""Ledger category of pages that the tree holds (also while sequences share them) and of its statistics."""

Sums = dict[int, list[Floats]]


@dataclass(eq=False)
class Node:
    """One page. statistics: column sums by layer ([group, tokens of the path] a KV head) over the path's own rows."""

    tokens: tuple[Hashable, ...]
    parent: Node | None
    segments: list[Segment | None]
    statistics: Sums | None = None
    statistics_bytes: int = 0
    children: dict[tuple[Hashable, ...], Node] = field(default_factory=dict)
    last_used: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its segments, in any tier, and of its statistics."""
        return self.statistics_bytes + sum(segment.nbytes for segment in self.segments if segment is not None)


class PrefixTree:
    """Shared prefixes, bounded in bytes: the least recently used leaf goes first. Not safe for threads by itself."""

    def __init__(self, tiers: Tiers, model: ModelInfo, capacity: int, keeps_sums: bool = False) -> None:
        """capacity: bytes of segments and statistics that it may hold, in memory and on disk together. keeps_sums:
        column sums are segments too, the last of some nodes.
        """
        self.tiers = tiers
        self.model = model
        self.capacity = capacity
        self.nbytes = 0
        self.groups: list[LayerGroup] = model.layer_groups()
        self.keeps_states = bool(model.state_layers)
        self.keeps_sums = keeps_sums
        self._slots = len(self.groups) + self.keeps_states + keeps_sums
        self._roots: dict[tuple[Hashable, ...], Node] = {}
        self._clock = count(1)

    def match(
        self,
        tokens: Sequence[Hashable],
        *,
        adapter: str = "",
        salt: Hashable = "",
        limit: int | None = None,
        statistics: Statistics | None = None,
    ) -> list[Node]:
        """The longest valid prefix of `tokens` as its nodes, empty for a miss. Marks them as used now.

        Valid is a length at which every layer group holds its state (a windowed group: its last window; recurrent
        layers: a snapshot) and, where column sums are wanted, the last node has them. limit: at most this many tokens.
        """
        path = self._walk(tokens, adapter, salt)
        pages = min(len(path), (len(tokens) if limit is None else max(0, limit)) // PAGE)
        while pages and not self._valid(path[:pages], statistics or Statistics()):
            pages -= 1
        now = next(self._clock)
        for node in path[:pages]:
            node.last_used = now
        return path[:pages]

    def insert(
        self,
        tokens: Sequence[Hashable],
        pages: Sequence[Sequence[Segment | None]],
        *,
        adapter: str = "",
        salt: Hashable = "",
        statistics: Sums | None = None,
    ) -> int:
        """Adopt pages of a prefix: `pages[i][group]` holds tokens 64i..64i+63 (None: not at hand), the last one of a
        model with recurrent layers their states behind these. References are taken.

        statistics: column sums of exactly these pages' rows. Returns the pages that were new. Pages that the tree has
        already stay; evicts beyond `capacity`.
        """
        key = (self.model.version, adapter, salt)
        node = self._roots.setdefault(key, Node(key, None, []))
        now, new = next(self._clock), 0
        for index, segments in enumerate(pages):
            part = tuple(tokens[index * PAGE : (index + 1) * PAGE])
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = Node(
                    part, node, [None] * (len(self.groups) + self.keeps_states + self.keeps_sums)
                )
                new += 1
            self._fill(child, segments)
            if self.keeps_states and segments[-1] is not None:
                self._thin_snapshots(child)
            child.last_used = now
            node = child
        if statistics is not None and node.parent is not None and node.statistics is None:
            self._attach(node, statistics)
        self.shrink(self.capacity)
        return new

    def shrink(self, capacity: int) -> int:
        """Evict least recently used leaves until at most `capacity` bytes are held; returns the bytes let go."""
        before = self.nbytes
        if self.nbytes <= capacity:
            return 0
        order = count()
        leaves = [(node.last_used, next(order), node) for node in self.nodes() if not node.children]
        heapq.heapify(leaves)
        while self.nbytes > capacity and leaves:
            _, _, node = heapq.heappop(leaves)
            self._evict(node)
            parent = node.parent
            if parent is not None and parent.parent is not None and not parent.children:
                heapq.heappush(leaves, (parent.last_used, next(order), parent))
        return before - self.nbytes

    def nodes(self) -> Iterator[Node]:
        """Every page, parents first."""
        waiting = [child for root in self._roots.values() for child in root.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def idle_segments(self, busy: set[int]) -> list[Segment]:
        """Segments in memory whose id is not in `busy`, least recently used first."""
        ordered = sorted(self.nodes(), key=lambda node: node.last_used)
        segments = [segment for node in ordered for segment in node.segments if segment is not None]
        return [segment for segment in segments if segment.tier == "memory" and id(segment) not in busy]

    def segments(self) -> list[Segment]:
        """What the nodes hold, one reference each."""
        return [segment for node in self.nodes() for segment in node.segments if segment is not None]

    def recount(self) -> int:
        """Sum up what the nodes hold anew; returns the bytes of their statistics."""
        nodes = list(self.nodes())
        self.nbytes = sum(node.nbytes for node in nodes)
        return sum(node.statistics_bytes for node in nodes)

    def clear(self) -> None:
        """Let go of everything."""
        self.shrink(0)
        self._roots.clear()

    def _walk(self, tokens: Sequence[Hashable], adapter: str, salt: Hashable) -> list[Node]:
        node = self._roots.get((self.model.version, adapter, salt))
        path: list[Node] = []
        while node is not None:
            start = len(path) * PAGE
            if len(tokens) - start < PAGE:
                break
            node = node.children.get(tuple(tokens[start : start + PAGE]))
            if node is not None:
                path.append(node)
        return path

    def _valid(self, path: list[Node], statistics: Statistics) -> bool:
        if statistics.column_sums and (path[-1].segments[-1] if self.keeps_sums else path[-1].statistics) is None:
            return False
        if self.keeps_states and path[-1].segments[-1] is None:
            return False
        length = len(path) * PAGE
        for index, group in enumerate(self.groups):
            first = first_page(group, length)
            if any(node.segments[index] is None for node in path[first:]):
                return False
        return True

    def _fill(self, node: Node, segments: Sequence[Segment | None]) -> None:
        for index, segment in enumerate(segments):
            if segment is None or node.segments[index] is not None:
                continue
            node.segments[index] = segment.retain()
            segment.recategorise(TREE)
            self.nbytes += segment.nbytes

    def _thin_snapshots(self, node: Node) -> None:
        """Let go of the snapshot before this node's where the one before that is near enough: as near as the pages
        between them weigh no more than a snapshot, so that snapshots weigh about as much as pages at most."""
        between = self._snapshot_before(node)
        if between is None or len(between.children) != 1:
            return
        first = self._snapshot_before(between)
        snapshot, passed, pages = between.segments[-1], node, 0
        while passed is not first and passed.parent is not None:
            pages += sum(segment.nbytes for segment in passed.segments[:-1] if segment is not None)
            passed = passed.parent
        if snapshot is None or pages > snapshot.nbytes:
            return
        between.segments[-1] = None
        self.nbytes -= snapshot.nbytes
        _let_go(snapshot)

    def _snapshot_before(self, node: Node) -> Node | None:
        """The nearest page before this one with a snapshot of states."""
        before = node.parent
        while before is not None and (not before.segments or before.segments[-1] is None):
            before = before.parent
        return before

    def _attach(self, node: Node, statistics: Sums) -> None:
        nbytes = sum(sums.nbytes for heads in statistics.values() for sums in heads)
        self.tiers.ledger.charge(TREE, nbytes)
        node.statistics, node.statistics_bytes = statistics, nbytes
        self.nbytes += nbytes

    def _evict(self, node: Node) -> None:
        if node.parent is not None:
            del node.parent.children[node.tokens]  # first: what is half released must not be found again
        self.nbytes -= node.nbytes
        for segment in node.segments:
            if segment is not None:
                _let_go(segment)
        if node.statistics_bytes:
            self.tiers.ledger.credit(TREE, node.statistics_bytes)
        root = node.parent
        if root is not None and root.parent is None and not root.children:
            self._roots.pop(root.tokens, None)


def _let_go(segment: Segment) -> None:
    """The tree's reference goes; what sequences hold as well is theirs again."""
    if segment.references > 1:
        segment.recategorise("cache")
    segment.release()


def first_page(group: LayerGroup, length: int) -> int:
    """The first page that a group needs to go on after `length` tokens."""
    return 0 if group.window is None else max(0, length - group.window + 1) // PAGE
