"""The statistics of one sequence, collected by `attend`, committed with the rows, moved with the slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.edits import Groups
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.slots.places import Places
from thrifty.cache.slots.segment import INDEX
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.watching.sums import Accumulator, ColumnSums, moved
from thrifty.cache.watching.token_ids import TokenIds
from thrifty.errors import PromptError
from thrifty.storage.ledger import Ledger, Reservation

ROWS_AT_ONCE = 64
"""Uncommitted rows whose probabilities are kept apart, so that some of them can still be rejected."""


class Collector:
    """Query rows, attention column sums and token ids by layer. Its bytes are charged as index bytes.

    Column sums are fp32 [group, slots] a KV head: the sum over rows of softmax probabilities (H2O, arXiv 2306.14048,
    §4.1), one row of the array a query head of the group. Attention counts places, holes among them (`places`): so do
    what it brings and what is held, and `stats` tells of slots.
    """

    def __init__(self, wanted: Statistics, model: ModelInfo, ledger: Ledger, reservation: Reservation | None) -> None:
        self.wanted = wanted
        self._model = model
        self._ledger = ledger
        self._reservation = reservation
        self._queries: dict[int, Floats] = {}
        self._sums = ColumnSums(model)
        self._tokens = TokenIds()
        self._notes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
        self._pending: dict[int, dict[int, list[Floats]]] = {}
        self._unsplittable = False
        self._charged = 0
        self.prefilling = True

    @property
    def charged(self) -> int:
        """Bytes that the ledger knows of."""
        return self._charged

    @property
    def sums_now(self) -> bool:
        """Whether rows computed now add to column sums."""
        return self.wanted.column_sums and (self.prefilling or self.wanted.decode)

    @property
    def layers_with_sums(self) -> set[int]:
        """Layers of which column sums are held."""
        return set(self._sums.layers)

    def add_queries(self, layer: int, queries: Floats) -> None:
        """Newest query rows [n, heads, head_dim]; keeps as many as wanted."""
        wanted = self.wanted.queries
        if wanted is None or not self.prefilling or layer not in self._model.policy_layers:
            return
        rows = np.concatenate((self._queries[layer], queries)) if layer in self._queries else queries
        self._queries[layer] = np.array(rows if wanted == "all" else rows[-int(wanted) :], np.float32)

    def add_sums(self, layer: int, sums: Sequence[Floats]) -> None:
        """Column sums of committed rows, [group, places] a KV head; places may have grown."""
        for head, more in enumerate(sums):
            self._sums.add(layer, head, more)

    def add_rows(self, layer: int, head: int, probabilities: Floats) -> None:
        """Probabilities [rows, group, places] of uncommitted rows."""
        self._pending.setdefault(layer, {}).setdefault(head, []).append(probabilities)

    def add_block(self, layer: int, head: int, sums: Floats) -> None:
        """Column sums [group, places] of uncommitted rows that come as one block and cannot be split."""
        self._unsplittable = True
        self.add_rows(layer, head, sums[None])

    def truncate(self, n: int) -> None:
        """Reject the newest n uncommitted rows."""
        self._sums.truncate(n)
        if not self._pending:
            return
        if self._unsplittable:
            raise PromptError(
                f"cannot reject {n} rows of a block of more than {ROWS_AT_ONCE} whose column sums were added at once; "
                f"append at most {ROWS_AT_ONCE} rows a step where some may be rejected"
            )
        for heads in self._pending.values():
            for parts in heads.values():
                rest = n
                while rest and parts:
                    last = parts.pop()
                    if len(last) > rest:
                        parts.append(last[: len(last) - rest])
                    rest = max(0, rest - len(last))

    def keep_rows(self, rows: Sequence[int], committed: Mapping[int, Sequence[int]]) -> None:
        """These uncommitted rows go to the first places, in this rising order; `truncate` rejects the others.
        committed: by layer the committed places of each KV head, behind which the rows lie."""
        self._sums.keep_rows(rows, committed)
        for layer, heads in self._pending.items():
            for head, parts in heads.items():
                every = [probabilities for part in parts for probabilities in part]
                first = committed[layer][head]
                kept = [moved(every[row], rows, first)[None] for row in rows]
                heads[head] = kept + [probabilities[None] for probabilities in every[len(rows) :]]

    def commit(self, places: dict[int, list[int]] | None = None) -> None:
        """Add what is pending. places: committed places by layer and head where rows were rejected."""
        for layer, heads in self._pending.items():
            sums, widths = [], self._model.of(layer)
            for head in range(widths.kv_heads):
                width = places[layer][head] if places else max(part.shape[2] for part in heads[head])
                total = np.zeros((widths.group, width), np.float32)
                for part in heads[head]:
                    columns = min(width, part.shape[2])
                    total[:, :columns] += part[:, :, :columns].sum(axis=0)
                sums.append(total)
            self.add_sums(layer, sums)
        self._pending.clear()
        self._unsplittable = False

    def native_rows(self, rows: int, places: int) -> Accumulator | None:
        """Where native code puts the probabilities of rows that may still be rejected; `commit_native` adds them.
        None where nothing is collected. places: the most of any layer, with these rows. Raises BudgetError.
        """
        if not self.sums_now:
            return None
        accumulator = self._sums.of_rows(rows, places)
        self.settle()
        return accumulator

    def native_prompt(self, layer: int | None, places: int) -> Accumulator | None:
        """Where native code adds the probabilities of a prompt's rows, of one layer or of all. None where nothing is
        collected. Raises BudgetError.
        """
        if not self.sums_now or (layer is not None and self._model.windows[layer] is not None):
            return None
        accumulator = self._sums.of_prompt(layer, places)
        self.settle()
        return accumulator

    def commit_native(self) -> None:
        """Add what native code left of rows that were not rejected."""
        self._sums.commit()

    def pending(self) -> bool:
        """Whether uncommitted rows were recorded by `attend`."""
        return bool(self._pending)

    def remember(self, tokens: Sequence[int], start: int) -> None:
        """The ids of the sequence's tokens from `start` on. Raises BudgetError."""
        if self.wanted.tokens:
            self._tokens.remember(tokens, start)
            self.settle()

    def stats(self, layer: int, counts: Sequence[int], policy: int = 0, places: Places | None = None) -> Stats:
        """What is known of a layer, cut or padded to the slots `counts` of its heads: column sums with zeros, token
        ids with −1. policy: whose notes, by its place in the recipe. places: those of its slots.
        """
        sums = tokens = None
        if layer in self._sums.layers:
            sums = [self._sums.of_slots(layer, head, count, places) for head, count in enumerate(counts)]
        if self.wanted.tokens:
            tokens = [self._tokens.of(layer, head, count) for head, count in enumerate(counts)]
        notes = self._notes.setdefault((policy, layer), {})
        return Stats(queries=self._queries.get(layer), column_sums=sums, tokens=tokens, notes=notes)

    def keep(
        self,
        layer: int,
        indices: Sequence[Integers],
        sealed: Sequence[int],
        before: Places | None = None,
        after: Places | None = None,
    ) -> None:
        """The layer kept these of each head's `sealed` slots, and all slots behind them. before, after: the places of
        its slots."""
        if self.wanted.tokens:
            self._tokens.keep(layer, indices, sealed)
        if layer not in self._sums.layers:
            return
        kept = []
        for head, (chosen, count) in enumerate(zip(indices, sealed, strict=True)):
            slots = self._sums.of_slots(layer, head, max(count, self._sums.slots(layer, head, before)), before)
            kept.append(np.concatenate((slots[:, chosen], slots[:, count:]), axis=1))
        self._sums.replace(layer, kept, after)

    def share(self, layer: int, source: int) -> None:
        """`layer` holds the slots of `source` from now on."""
        self._tokens.share(layer, source)
        self._sums.share(layer, source)

    def shorten(self, length: int) -> None:
        """The sequence went back to `length` tokens; `fit` follows for every layer."""
        self._tokens.truncate(length)

    def fit(
        self,
        layer: int,
        counts: Sequence[int],
        length: int,
        before: Places | None = None,
        after: Places | None = None,
    ) -> None:
        """The layer lost its newest slots: it has `counts` now, of a sequence of `length` tokens. before, after: the
        places of its slots."""
        self._tokens.fit(layer, counts, length)
        if layer not in self._sums.layers:
            return
        if before is None and after is None:
            for head, count in enumerate(counts):
                self._sums.head(layer, head)[:, count:] = 0
            return
        kept = [self._sums.of_slots(layer, head, count, before).copy() for head, count in enumerate(counts)]
        self._sums.replace(layer, kept, after)

    def discard(self) -> None:
        """Drop what uncommitted rows brought."""
        self._pending.clear()
        self._unsplittable = False
        self._sums.discard()

    def take(self, sums: dict[int, list[Floats]]) -> None:
        """Begin with the column sums of a prefix (they came from the tree)."""
        self._sums.clear()
        for layer, heads in sums.items():
            self._sums.replace(layer, heads)
        self.settle()

    def merge(self, layer: int, head: int, groups: Groups, places: Places | None = None) -> None:
        """Groups of slots became one: their sums go to the group's first member (the others are dropped by `keep`).
        places: those of the slots before."""
        if layer not in self._sums.layers or not len(groups):
            return
        sums, members, starts = self._sums.head(layer, head), groups.members, groups.starts
        if places is not None:
            members = places.slots[head][members]
        sums[:, members[starts]] = np.add.reduceat(sums[:, members], starts, axis=1)

    def forget(self, layer: int) -> None:
        """Drop what nobody asks for again once a layer's prompt is sealed."""
        self._queries.pop(layer, None)
        if not self.wanted.decode:
            self._sums.forget(layer)

    def sums(self) -> dict[int, list[Floats]]:
        """The column sums by layer, as `PrefixTree.insert` takes them: copies."""
        return {layer: self._sums.copies(layer) for layer in self._sums.layers}

    def settle(self) -> None:
        """Bring the ledger up to date with the bytes held. Raises BudgetError."""
        held = sum(queries.nbytes for queries in self._queries.values()) + self._sums.nbytes + self._tokens.nbytes
        if held > self._charged:
            self._ledger.charge(INDEX, held - self._charged, self._reservation)
        elif held < self._charged:
            self._ledger.credit(INDEX, self._charged - held, self._reservation)
        self._charged = held

    def free(self) -> None:
        """Forget everything."""
        self._queries.clear()
        self._sums.clear()
        self._tokens.clear()
        self._notes.clear()
        self._pending.clear()
        self.settle()

    def copy(self, reservation: Reservation | None) -> Collector:
        """The committed statistics, for a fork."""
        other = Collector(self.wanted, self._model, self._ledger, reservation)
        other.prefilling = self.prefilling
        other._queries = dict(self._queries)
        other._sums = self._sums.copy()
        other._tokens = self._tokens.copy()
        other._notes = {key: dict(notes) for key, notes in self._notes.items()}
        other.settle()
        return other
