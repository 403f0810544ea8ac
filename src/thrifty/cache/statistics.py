"""What a policy wants to be told of a sequence beside its slots, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thrifty.arrays import Floats, Integers


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a policy wants to be told. All of it is collected over committed rows only.

    queries: the newest `queries` query rows of the prompt ("all": every row; None: none), rotated, fp32.
    column_sums: for every slot the sum over prompt rows of its attention probability. decode: go on summing while
    decoding (needs column_sums). A prefix hit must bring the column sums of its tokens, or it is a miss.
    tokens: the token id of every slot, while decoding too.
    """

    queries: int | str | None = None
    column_sums: bool = False
    decode: bool = False
    tokens: bool = False

    def __or__(self, other: Statistics) -> Statistics:
        rows = [queries for queries in (self.queries, other.queries) if queries is not None]
        queries: int | str | None = None
        if rows:
            queries = "all" if "all" in rows else max(int(count) for count in rows)
        return Statistics(
            queries=queries,
            column_sums=self.column_sums or other.column_sums,
            decode=self.decode or other.decode,
            tokens=self.tokens or other.tokens,
        )


@dataclass
class Stats:
    """What was collected for one layer, aligned with the layer's present slots.

    queries: [rows, heads, head_dim] fp32, the newest rows of the prompt in order; None where nobody wanted them.
    column_sums: for every KV head [group, slots of that head] fp32; None where nobody wanted them.
    tokens: for every KV head int64 [slots of that head], the token id of each slot (of a merged one: of its first
    member), −1 where it is not known; None where nobody wanted them.
    notes: what this policy wrote down about this layer of the sequence, by names of its own: it finds it again at every
    later call, in forks too. A few small numbers a head, which the ledger does not count.
    """

    queries: Floats | None = None
    column_sums: list[Floats] | None = None
    tokens: list[Integers] | None = None
    notes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def has(self, wanted: Statistics) -> bool:
        """Whether everything wanted is known."""
        return (
            (wanted.queries is None or self.queries is not None)
            and (not wanted.column_sums or self.column_sums is not None)
            and (not wanted.tokens or self.tokens is not None)
        )


@dataclass(frozen=True)
class Rehearsal:
    """Rows that a policy has forced behind the prompt, to be told what they attend to.

    tokens: its ids. start, stop: the prompt's positions that its attention scores. sinks: positions below this are seen
    beside them, and not scored.
    """

    tokens: tuple[int, ...]
    start: int
    stop: int
    sinks: int
