"""The cache of an engine: one arena, one ledger, the prefix tree and the disk tier; it makes the sequences' caches."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from thrifty.cache.checkpoints import Checkpoints, resumed
from thrifty.cache.composition import check_order, offloading
from thrifty.cache.footprint import Footprint, footprint
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import BLOCK, CachePolicy
from thrifty.cache.prompt_pages import PromptPages, begin_with_stored
from thrifty.cache.recount import recount
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.sequence_slots import SequenceSlots
from thrifty.cache.slots.span import Span
from thrifty.cache.slots.tiers import Tiers
from thrifty.cache.statistics import Statistics
from thrifty.cache.tree import Node, PrefixTree, first_page
from thrifty.cache.whole_pages import position, whole_pages
from thrifty.errors import BudgetError, StorageError
from thrifty.formats.kv import PAGE
from thrifty.storage.arena import Arena
from thrifty.storage.budget import parse_size
from thrifty.storage.disk import DiskTier, described
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
        conversation_disk: int | str | None = None,
        prefix_tree: bool = True,
        reserve: int | None = None,
        outside: int = 0,
    ) -> None:
        """memory: the budget in bytes or as "150MB" (None: no bound), unless a `ledger` brings its own.

        disk: True or a folder for the disk tier, None for none. tree_bytes: bound of the prefix tree (default: half the
        budget, or 1 GiB). conversation_disk: bytes on the disk tier for pages of prompts that policies compress (None:
        none are kept). reserve, outside: address space, and the budget's bytes for others (`Arena`). Raises
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
        self.expire: Callable[[int], None] | None = None
        self.sequences: WeakSet[SequenceSlots] = WeakSet()
        self.tree: PrefixTree | None = None
        self.checkpoints: Checkpoints | None = None
        if prefix_tree:
            default = TREE_BYTES if ledger.budget is None else max(1, ledger.budget // 2)
            bound = default if tree_bytes is None else parse_size(tree_bytes, "tree_bytes")
            self.tree = PrefixTree(self.tiers, model, bound)
            self.checkpoints = None if model.state_layers else Checkpoints(model.version, bound)
        self.conversations: PrefixTree | None = None
        if conversation_disk is not None and model.policy_layers and not model.state_layers:
            self.conversations = PrefixTree(
                self.tiers, model, parse_size(conversation_disk, "conversation_disk"), keeps_sums=True
            )

    @property
    def busy_bytes(self) -> int:
        """Bytes in memory of segments that running sequences hold, shared ones once: what `pressure` cannot free."""
        running = [sequence for sequence in self.sequences if not sequence.parked]
        owners = {id(segment.owner): segment.owner for sequence in running for segment in sequence.segments_in_use()}
        return sum(owner.nbytes for owner in owners.values() if owner.tier == "memory")

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
        if offloading(policies) is not None:
            self.tiers.require_disk()
        marks = publishes and (reservation is None or reservation.limit is None)  # they outlive what it may hold
        causal = self.checkpoints is not None and bool(tokens) and any(policy.causal for policy in policies)
        if causal and self.checkpoints is not None:
            held = self.checkpoints.match(policies, tokens, adapter, salt)
            known = None if held is None else resumed(held, reservation)
            if known is not None:
                known.marks = marks
                return known
        sequence = SequenceCache(
            self.tiers, self.model, policies, reservation=reservation, collect=collect, siblings=self.sequences
        )
        sequence.marks = causal and marks
        try:
            if sequence.states is not None:
                sequence.states.open()
                sequence.states.snapshots = publishes and self.tree is not None and not policies
            if len(tokens) > PAGE and not any(policy.causal for policy in policies):
                self._begin(sequence, tokens, adapter, salt, publishes)
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
        if sequence.marks:
            self._keep_mark(sequence, tokens, adapter, salt)
        if any(policy.causal for policy in sequence.policies):
            return 0  # its pages attended to what was compressed: they are no pages of the full cache
        if sequence.pages is not None:
            return sequence.pages.publish(tokens, adapter=adapter, salt=salt)
        if self.tree is None:
            return 0
        count = min(len(tokens), sequence.length) // PAGE
        pages = whole_pages(sequence, self.tree.groups, count)
        if not pages:
            return 0
        sums = None
        if sequence.statistics.column_sums and not sequence.policies and sequence.length == count * PAGE:
            sums = sequence.collector.sums() or None
        new = self.tree.insert(tokens[: count * PAGE], pages, adapter=adapter, salt=salt, statistics=sums)
        if sequence.states is not None:
            snapshot = sequence.states.snapshot
            if snapshot is not None and position(snapshot) <= count * PAGE:
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
        trees = [tree for tree in (self.tree, self.conversations) if tree is not None]
        recount(self.tiers, self.sequences, trees, category, nbytes, used or {})

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
        if before - self.tiers.arena.used < nbytes and self.checkpoints is not None:
            self.checkpoints.free_memory(nbytes - (before - self.tiers.arena.used))
        missing = nbytes - (before - self.tiers.arena.used)
        if missing > 0 and self.expire is not None:
            self.expire(missing)
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
            **described(self.tiers.disk),
            "tree": 0 if self.tree is None else self.tree.nbytes,
            "checkpoints": 0 if self.checkpoints is None else self.checkpoints.nbytes,
            "conversations": 0 if self.conversations is None else self.conversations.nbytes,
        }

    def _keep_mark(self, sequence: SequenceCache, tokens: Sequence[Hashable], adapter: str, salt: Hashable) -> None:
        """What the sequence held at its last multiple of 128 tokens becomes a checkpoint."""
        mark, sequence.mark = sequence.mark, None
        if mark is None:
            return
        if self.checkpoints is None or mark.length > len(tokens):
            mark.free()
        else:
            self.checkpoints.put(mark, tokens, adapter, salt)

    def _begin(
        self, sequence: SequenceCache, tokens: Sequence[Hashable], adapter: str, salt: Hashable, publishes: bool
    ) -> None:
        """Begin the sequence with the longest prefix that is known. What a policy will change may also come from disk,
        and goes there.
        """
        path = self._match(self.tree, sequence, tokens, adapter, salt)
        if self.conversations is None or not (sequence.layer_major or sequence.rehearses):
            self._begin_with(sequence, path)
            return
        stored = self._match(self.conversations, sequence, tokens, adapter, salt)
        if len(stored) > len(path):
            whole, groups = not sequence.layer_major, self.conversations.groups
            sequence.stored = begin_with_stored(groups, sequence.spans, stored, sequence.reservation, whole)
            if sequence.stored is not None:
                sequence.start_at(len(stored) * PAGE)
        else:
            self._begin_with(sequence, path)
        need, known = sequence.statistics, self.conversations.match(tokens, adapter=adapter, salt=salt)
        if need.queries == "all":
            return  # pages do not know the queries of their rows
        border = max(0, len(tokens) - int(need.queries or 1)) // BLOCK * BLOCK if need.column_sums else 0
        if publishes and (border or not need.column_sums):
            sequence.pages = PromptPages(self.conversations, known, sequence.hit, len(tokens), border)

    def _match(
        self,
        tree: PrefixTree | None,
        sequence: SequenceCache,
        tokens: Sequence[Hashable],
        adapter: str,
        salt: Hashable,
    ) -> list[Node]:
        """The usable prefix: enough rows are left for the wanted queries."""
        need = sequence.statistics
        if tree is None or need.queries == "all":
            return []
        rows = int(need.queries or 1)
        return tree.match(tokens, adapter=adapter, salt=salt, limit=len(tokens) - max(1, rows), statistics=need)

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
            sequence.bring_in(streamed=True)  # pages of the tree go and come without it
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
