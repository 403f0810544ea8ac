"""Free ranges whose pages still hold what was there: they go back to the system together, or are used again first."""

from __future__ import annotations

from collections.abc import Generator


class Stale:
    """Disjoint ranges of addresses. Not safe for threads: the owner locks."""

    def __init__(self) -> None:
        self._ranges: dict[int, int] = {}

    def add(self, start: int, nbytes: int) -> None:
        """A range that was freed; it overlaps none that is here."""
        self._ranges[start] = nbytes

    def take(self, start: int, nbytes: int) -> bool:
        """Whether some of a range is stale; what of it is, is forgotten: it is in use again."""
        stop = start + nbytes
        touched = [(low, low + size) for low, size in self._ranges.items() if low < stop and low + size > start]
        for low, high in touched:
            del self._ranges[low]
            if low < start:
                self._ranges[low] = start - low
            if high > stop:
                self._ranges[stop] = high - stop
        return bool(touched)

    def drain(self) -> Generator[tuple[int, int], None, None]:
        """(start, bytes) of every range, neighbours joined. A range that was taken in full is forgotten when the next
        one is asked for: where the loop ends early, its range and those behind it stay."""
        joined: list[tuple[int, int]] = []
        for start, nbytes in sorted(self._ranges.items()):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + nbytes)
            else:
                joined.append((start, nbytes))
        done = 0
        try:
            for place, part in enumerate(joined):
                yield part
                done = place + 1
        finally:
            self._ranges = dict(joined[done:])
