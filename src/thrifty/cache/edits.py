"""Edits: what a policy returns. Six verbs (and a renumbering), carried out by the cache in the order they were called.

    edits = Edits()
    edits.keep(indices, layer=3)          # then indices of later verbs are those of what was kept
    edits.store(0, 128, "int4", layer=3)

Each verb sees the slots that the former left, so verbs of one policy compose like policies of a recipe do. Slots are
counted from 0 in view order, per head. `layer` None means every layer the policy was shown; `head` None every KV head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from thrifty.arrays import Floats, Integers


@dataclass(frozen=True)
class Keep:
    """Evict all but these slots. indices: one int64 array (sorted, unique) a KV head, or one for all heads."""

    layer: int | None
    indices: tuple[Integers, ...]


@dataclass(frozen=True)
class Drop:
    """Evict slots start..stop of every head: `Keep` of the rest, without naming it."""

    layer: int | None
    start: int
    stop: int


@dataclass(frozen=True)
class Groups:
    """Disjoint groups of slots, one after the other. members: int64 [all slots]; sizes: int64 [groups], each ≥ 1."""

    members: Integers
    sizes: Integers

    @classmethod
    def of(cls, groups: Sequence[Integers]) -> Groups:
        """From one int64 array a group."""
        members = np.concatenate([np.empty(0, np.int64), *groups])
        return cls(members, np.array([len(group) for group in groups], np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def starts(self) -> Integers:
        """int64 [groups]: where each group begins among the members."""
        return self.sizes.cumsum() - self.sizes

    @property
    def firsts(self) -> Integers:
        """int64 [groups]: each group's first member."""
        return self.members[self.starts]

    @property
    def owners(self) -> Integers:
        """int64 [all slots]: the group of each member."""
        return np.repeat(np.arange(len(self)), self.sizes)


@dataclass(frozen=True)
class Merge:
    """Replace groups of slots by one slot each, in the place of the group's first member.

    keys, values: fp32 [groups, head_dim]. bias: fp32 [groups], added to the slot's logit, or None. Statistics of a
    group are summed.
    """

    layer: int
    head: int
    groups: Groups
    keys: Floats
    values: Floats
    bias: Floats | None


@dataclass(frozen=True)
class Store:
    """Hold slots start..stop in a format; they become segments of their own (so the verb also cuts).

    Negative start or stop count from each head's end, stop None is its end; format "" leaves it as it is.
    """

    layer: int | None
    head: int | None
    start: int
    stop: int | None
    format: str


@dataclass(frozen=True)
class Move:
    """Hold slots start..stop in a tier, "memory" or "disk". Moves whole segments that lie inside the span."""

    layer: int | None
    start: int
    stop: int | None
    tier: str


@dataclass(frozen=True)
class Select:
    """Attend to these slots only (one index array a KV head), until the next Select or None; deletes nothing."""

    layer: int
    indices: tuple[Integers, ...] | None


@dataclass(frozen=True)
class Share:
    """From now on `layer` reads the cache of layer `source` up to the present slot; its own slots are freed."""

    layer: int
    source: int


@dataclass(frozen=True)
class Renumber:
    """Give slots start..stop new positions: their keys are rotated again, always from what they first were."""

    layer: int | None
    start: int
    stop: int
    positions: Integers


Operation = Keep | Drop | Merge | Store | Move | Select | Share | Renumber


@dataclass
class Edits:
    """An ordered list of operations. Falsy when empty."""

    operations: list[Operation] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.operations)

    def keep(self, indices: Integers | Sequence[Integers], *, layer: int | None = None) -> Edits:
        """Evict the rest. indices: int64, sorted, one array for all KV heads or one a head."""
        per_head = (indices,) if isinstance(indices, np.ndarray) else tuple(indices)
        self.operations.append(Keep(layer, per_head))
        return self

    def drop(self, start: int, stop: int, *, layer: int | None = None) -> Edits:
        """Keep all but slots start..stop (of every head): cheap where they are whole pages."""
        if stop > start:
            self.operations.append(Drop(layer, start, stop))
        return self

    def merge(
        self,
        groups: Sequence[Integers] | Groups,
        keys: Floats,
        values: Floats,
        *,
        layer: int,
        head: int,
        bias: Floats | None = None,
    ) -> Edits:
        """Groups of slots → one slot each with the given key, value and logit bias (fp32)."""
        merged = groups if isinstance(groups, Groups) else Groups.of(groups)
        self.operations.append(Merge(layer, head, merged, keys, values, bias))
        return self

    def store(
        self, start: int, stop: int | None, format: str, *, layer: int | None = None, head: int | None = None
    ) -> Edits:
        """Hold slots start..stop as `format` (one of `formats.kv.FORMATS`; "": as they are, but cut)."""
        if stop is None or stop > start:
            self.operations.append(Store(layer, head, start, stop, format))
        return self

    def move(self, start: int, stop: int | None, tier: str, *, layer: int | None = None) -> Edits:
        """Hold slots start..stop in tier "memory" or "disk"."""
        self.operations.append(Move(layer, start, stop, tier))
        return self

    def select(self, indices: Sequence[Integers] | None, *, layer: int) -> Edits:
        """Attend to a subset until told otherwise; None attends to everything again."""
        self.operations.append(Select(layer, None if indices is None else tuple(indices)))
        return self

    def share(self, layer: int, source: int) -> Edits:
        """`layer` reads what `source` holds."""
        self.operations.append(Share(layer, source))
        return self

    def renumber(self, start: int, stop: int, positions: Integers, *, layer: int | None = None) -> Edits:
        """Rotate the keys of slots start..stop to `positions` (int64 [stop-start])."""
        if stop > start:
            self.operations.append(Renumber(layer, start, stop, positions))
        return self
