"""Counting from the bottom: after an error in the middle of an edit, the books follow from who holds what.

The lists of sequences and of the prefix tree are the truth. References, the arena, the disk tier and the ledger are
sums over them, kept up call by call; where a call was left in the middle, they are made anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from thrifty.cache.checkpoints import CHECKPOINTS
from thrifty.cache.slots.segment import INDEX, SESSIONS, Segment
from thrifty.cache.tree import TREE, PrefixTree

if TYPE_CHECKING:
    from thrifty.cache.slots.sequence_slots import SequenceSlots
    from thrifty.cache.slots.tiers import Tiers
    from thrifty.storage.ledger import Reservation


def recount(
    tiers: Tiers,
    live: Iterable[SequenceSlots],
    trees: Sequence[PrefixTree],
    category: str,
    nbytes: int,
    used: Mapping[Reservation, int],
) -> None:
    """See `Cache.recount`. Sequences that were freed hold nothing, however far their freeing came."""
    sequences = [sequence for sequence in live if not sequence.freed]
    segments = _count_references(sequences, trees)
    _set_categories(segments, trees)
    tiers.arena.reclaim([segment.run for segment in segments if segment.run is not None])
    if tiers.disk is not None:
        tiers.disk.reclaim([segment.extent for segment in segments if segment.extent is not None])
    held = Counter({"cache": 0, "scratch": 0, TREE: 0, INDEX: 0, SESSIONS: 0, CHECKPOINTS: 0, category: nbytes})
    charged: defaultdict[Reservation, int] = defaultdict(int)
    for reservation, more in used.items():
        held[category] += more
        charged[reservation] += more
    for segment in segments:
        run = segment.run
        if run is not None:
            held[run.category] += run.nbytes
        held[INDEX] += segment.index_bytes
        if segment.reservation is not None:
            charged[segment.reservation] += segment.index_bytes + (0 if run is None else run.nbytes)
    for sequence in sequences:
        held[INDEX] += sequence.index_bytes
        if sequence.reservation is not None:
            charged[sequence.reservation] += sequence.index_bytes
    held[TREE] += sum(tree.recount() for tree in trees)
    promised = {sequence.reservation for sequence in sequences if sequence.reservation is not None}
    tiers.ledger.restate(held, charged, promised)


def _count_references(sequences: list[SequenceSlots], trees: Sequence[PrefixTree]) -> list[Segment]:
    """Set the references of everything that is held; returns it, each segment once."""
    holders = [segment for sequence in sequences for segment in sequence.references()]
    holders += [segment for tree in trees for segment in tree.segments()]
    faces = {id(segment): segment for segment in holders if segment.parent is not None}
    holders += [face.owner for face in faces.values()]
    counts = Counter(id(segment) for segment in holders)
    segments = {id(segment): segment for segment in holders}
    for key, segment in segments.items():
        segment.references = counts[key]
    return list(segments.values())


def _set_categories(segments: list[Segment], trees: Sequence[PrefixTree]) -> None:
    """What the tree holds is its own, whoever shares it; nothing else is."""
    adopted = {id(segment) for tree in trees for segment in tree.segments()}
    for segment in segments:
        if id(segment) in adopted:
            segment.category = TREE
        elif segment.category == TREE:
            segment.category = "cache"
        if segment.run is not None:
            segment.run.category = segment.category
