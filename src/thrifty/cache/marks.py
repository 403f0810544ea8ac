"""Marks: copies of a sequence at the lengths at which causal policies act (see `thrifty.cache.checkpoints`)."""

from __future__ import annotations

from typing import Protocol, Self


class Marked(Protocol):
    """What a mark is made of: a sequence. mark: its newest one, None where there is none."""

    mark: Self | None

    def fork(self) -> Self:
        """A second sequence with the same content, shared."""
        ...

    def park(self) -> None:
        """Nobody goes on with it now."""
        ...

    def free(self) -> None:
        """Let go of all."""
        ...


def set_mark(sequence: Marked) -> None:
    """Keep a copy of what a sequence holds now, parked, instead of the one before. Raises BudgetError."""
    before, sequence.mark = sequence.mark, None
    if before is not None:
        before.free()
    copy = sequence.fork()
    copy.park()
    sequence.mark = copy
