"""The cache of an engine: one arena, one ledger, the prefix tree and the disk tier; it makes the sequences' caches."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from thrifty.cache.composition import check_order
from thrifty.cache.footprint import Footprint, footprint
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.recount import recount
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.sequence_slots import SequenceSlots
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.tiers import Tiers
from thrifty.cache.statistics import Statistics
from thrifty.cache.tree import Node, PrefixTree, first_page
from thrifty.errors import BudgetError, StorageError
from thrifty.formats.kv import PAGE
from thrifty.storage.arena import Arena
from thrifty.storage.budget import parse_size
from thrifty.storage.disk import DiskTier
from thrifty.storage.ledger import Ledger, Reservation

TREE_BYTES = 1 << 30


class Cache:
    """Creates sequences, shares prefixes, moves idle segments to disk. Not safe for threads: the engine's lock orders
    its calls."""

    def __init__(
        self,
        model: ModelInfo,
        *,
        memory: int | str | None = None,
        ledger: Ledger | None = None,
        disk: bool | str | os.PathLike[str] | None = None,
        disk_bytes: int | str = 1 << 40,
        tree_bytes: int | str | None = None,
        prefix_tree: bool = True,
        reserve: int | None = None,
        outside: int = 0,
    ) -> None:
        """memory: the budget in bytes or as "150MB" (None: no bound), unless a `ledger` brings its own.

        disk: True or a folder for the disk tier, None for none. tree_bytes: bound of the prefix tree (default: half the
        budget, or 1 GiB). reserve, outside: address space, and the budget's bytes for others (`Arena`). Raises
        BudgetError, StorageError.
        """
        if ledger is None:
            ledger = Ledger(None if memory is None else parse_size(memory))
        self.model = model
        self.ledger = ledger
        tier = None
        if disk is not None and disk is not False:
            tier = DiskTier(None if disk is True else disk, parse_size(disk_bytes, "disk_bytes"))
        self.tiers = Tiers(Arena(ledger, reserve, outside), tier)
        self.tiers.relieve = self.pressure
        self.sequences: WeakSet[SequenceSlots] = WeakSet()
        self.tree: PrefixTree | None = None
        if prefix_tree:
            default = TREE_BYTES if ledger.budget is None else max(1, ledger.budget // 2)
            bound = default if tree_bytes is None else parse_size(tree_bytes, "tree_bytes")
            self.tree = PrefixTree(self.tiers, model, bound)

    def footprint(self, policies: Sequence[CachePolicy], prompt: int, total: int) -> Footprint:
        """Upper bounds of the bytes of a sequence of `prompt` tokens grown to `total`."""
        return footprint(policies, self.model, prompt, total)

    def reserve(self, owner: str, nbytes: int, limit: int | None = None) -> Reservation:
        """Promise bytes to a sequence before it is created; idle segments go to disk (or leave the tree) to make room.
        limit: what it may never hold more than.

        Raises BudgetError with the number that would fit.
        """
        return self.tiers.reserve(owner, nbytes, limit)

    def create(
        self,
        policies: Sequence[CachePolicy] = (),
        *,
        tokens: Sequence[Hashable] = (),
        adapter: str = "",
        salt: Hashable = "",
        reservation: Reservation | None = None,
        collect: Statistics | None = None,
        publishes: bool = True,
    ) -> SequenceCache:
        """An empty cache, or one that begins with the longest prefix of `tokens` that the tree holds (`hit` tokens, at
        most len(tokens) − 1, so that a row is left to compute).

        reservation: promised bytes; the sequence owns it from now on. collect: statistics to gather beyond the
        policies' wants, for `publish`. publishes: False where `publish` will not be called: no states are copied for it
        then. Raises RecipeError where the policies cannot work in this order or model.
        """
        check_order(policies)
        for policy in policies:
            policy.check(self.model)
        sequence = SequenceCache(
            self.tiers, self.model, policies, reservation=reservation, collect=collect, siblings=self.sequences
        )
        try:
            if sequence.states is not None:
                sequence.states.open()
                sequence.states.snapshots = publishes and self.tree is not None and not policies
            if self.tree is not None and len(tokens) > PAGE:
                self._begin_with(sequence, self._match(sequence, tokens, adapter, salt))
        except BaseException:
            sequence.free()
            raise
        return sequence

    def publish(
        self, sequence: SequenceCache, tokens: Sequence[Hashable], *, adapter: str = "", salt: Hashable = ""
    ) -> int:
        """Put the full-precision pages of a sequence's beginning into the tree; returns how many were new.

        tokens: what the sequence holds (more are ignored). A compressed sequence has no such pages and changes nothing.
        The states of recurrent layers go along where there is a snapshot of one of these pages' ends, column sums where
        the sequence collected them and its length is a whole number of pages.
        """
        if self.tree is None:
            return 0
        count = min(len(tokens), sequence.length) // PAGE
        held = [_pages_by_start(sequence, group.layers, self.model.format) for group in self.tree.groups]
        if sequence.states is not None:
            snapshot = sequence.states.snapshot
            held.append({} if snapshot is None else {_position(snapshot) - PAGE: snapshot})
        pages = [[pages.get(index * PAGE) for pages in held] for index in range(count)]
        globals_complete = all(
            page[index] is not None
            for index, group in enumerate(self.tree.groups)
            if group.window is None
            for page in pages
        )
        if not pages or not globals_complete:
            return 0
        sums = None
        if sequence.statistics.column_sums and not sequence.policies and sequence.length == count * PAGE:
            sums = sequence.collector.sums() or None
        new = self.tree.insert(tokens[: count * PAGE], pages, adapter=adapter, salt=salt, statistics=sums)
        if sequence.states is not None:
            snapshot = sequence.states.snapshot
            if snapshot is not None and _position(snapshot) <= count * PAGE:
                sequence.states.drop_snapshot()  # the tree's now, and idle
        return new

    def release(self, sequence: SequenceCache) -> None:
        """Free a sequence: its private bytes and its reservation; shared segments stay with the others."""
        sequence.free()

    def recount(
        self, category: str = "workspace", nbytes: int = 0, used: Mapping[Reservation, int] | None = None
    ) -> None:
        """After an error that left any call in the middle: who holds what is counted from the bottom, what nobody holds
        is freed, and arena, disk tier and ledger say so.

        category, nbytes: what else the ledger holds by this name, in no reservation; used: and in these.
        """
        recount(self.tiers, self.sequences, self.tree, category, nbytes, used or {})

    def pressure(self, nbytes: int) -> int:
        """Free at least `nbytes` of memory if idle segments allow it; returns the bytes freed.

        Least recently used first: pages of the tree, then parked sequences. They move to the disk tier and return when
        they are asked for. Without a disk tier, or where it is full, pages leave the tree instead, and parked
        sequences stay. Snapshots of running sequences that nothing shares yet go before pages leave the tree.
        """
        running = [sequence for sequence in self.sequences if not sequence.parked]
        busy = {id(segment.owner) for sequence in running for segment in sequence.segments_in_use()}
        before = self.tiers.arena.used
        idle = self.tree.idle_segments(busy) if self.tree is not None else []
        refused = not self._to_disk(idle, nbytes) or not self._disk_has_room()
        if before - self.tiers.arena.used < nbytes:
            for sequence in running:
                sequence.drop_snapshot()
        if before - self.tiers.arena.used < nbytes and self.tree is not None and refused:
            self._drop_from_tree(nbytes - (before - self.tiers.arena.used))
        parked = [sequence for sequence in self.sequences if sequence.parked]
        for sequence in sorted(parked, key=lambda sequence: sequence.parked_at):
            owners = [segment.owner for segment in sequence.segments()]
            idle = [owner for owner in owners if owner.tier == "memory" and id(owner) not in busy]
            self._to_disk(idle, nbytes - (before - self.tiers.arena.used))
        return before - self.tiers.arena.used

    def describe(self) -> dict[str, Any]:
        """JSON-ready: bytes by category, current, peak, steady, budget, arena and disk use, the tree's bytes."""
        return {
            "budget": self.ledger.budget,
            "current": self.ledger.current,
            "peak": self.ledger.peak,
            "steady": self.ledger.steady,
            "categories": self.ledger.categories(),
            "arena": self.tiers.arena.used,
            "disk": 0 if self.tiers.disk is None else self.tiers.disk.used,
            "tree": 0 if self.tree is None else self.tree.nbytes,
        }

    def _match(self, sequence: SequenceCache, tokens: Sequence[Hashable], adapter: str, salt: Hashable) -> list[Node]:
        """The usable prefix: enough rows are left for the wanted queries."""
        need = sequence.statistics
        if self.tree is None or need.queries == "all":
            return []
        rows = int(need.queries or 1)
        return self.tree.match(tokens, adapter=adapter, salt=salt, limit=len(tokens) - max(1, rows), statistics=need)

    def _begin_with(self, sequence: SequenceCache, path: list[Node]) -> None:
        """Begin the sequence with the pages of a path, or with none where they do not all fit into memory.

        They are the sequence's before they come back from disk: held pages never make room for each other.
        """
        if not path or self.tree is None:
            return
        length = len(path) * PAGE
        for index, group in enumerate(self.tree.groups):
            for node in path[first_page(group, length) :]:
                segment = node.segments[index]
                if segment is None:
                    raise RuntimeError("a match of the prefix tree lacks a page")
                span = Span(segment.retain(len(group.layers)), PAGE)
                for layer in group.layers:
                    sequence.spans.add(layer, span)
            for layer in group.layers:
                sequence.spans.skip(layer, first_page(group, length))
        snapshot = path[-1].segments[-1]
        if sequence.states is not None and snapshot is not None:
            sequence.states.begin_at(snapshot)
        try:
            sequence.bring_in()
        except (BudgetError, StorageError):
            sequence.drop_spans()
            if sequence.states is not None:
                sequence.states.drop_origin()
            return
        if sequence.states is not None:
            sequence.states.restore()
        if sequence.statistics.column_sums and path[-1].statistics is not None:
            sequence.collector.take(path[-1].statistics)
        sequence.start_at(length)

    def _to_disk(self, segments: Sequence[Segment], nbytes: int) -> bool:
        """Move segments until `nbytes` are free. Returns False where there is no disk tier, or it refused one."""
        if self.tiers.disk is None:
            return False
        freed = 0
        for segment in segments:
            if freed >= nbytes:
                break
            try:
                freed += segment.to_disk()
            except StorageError:
                return False
        return True

    def _disk_has_room(self) -> bool:
        disk = self.tiers.disk
        return disk is not None and disk.used < disk.capacity

    def _drop_from_tree(self, nbytes: int) -> None:
        """Evict leaves until so much memory is free, or nothing is left."""
        if self.tree is None:
            return
        start = self.tiers.arena.used
        while start - self.tiers.arena.used < nbytes and self.tree.nbytes:
            missing = nbytes - (start - self.tiers.arena.used)
            if not self.tree.shrink(max(0, self.tree.nbytes - missing)):
                return


def _position(segment: Segment) -> int:
    """Where a segment's tokens begin, or the length of which it is a snapshot."""
    assert isinstance(segment.positions, int), "pages and snapshots lie at one position"
    return segment.positions


def _pages_by_start(sequence: SequenceCache, layers: tuple[int, ...], format: str) -> dict[int, Segment]:
    """A group's untouched full-precision pages by the position they begin at."""
    pages = {}
    for span in sequence.spans[layers[0]]:
        page = span.segment
        plain = page.layers == layers and page.format == format and page.capacity == PAGE and span.tokens == PAGE
        if plain and isinstance(page.positions, int) and page.bias is None and page.parent is None:
            pages[page.positions] = page
    return pages
