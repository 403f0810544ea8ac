"""Which ranges of a space are free: best fit, with neighbours joined again when they are given back."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from thrifty.errors import StorageError


class Extents:
    """Free ranges of [0, size), in units of `grain` bytes. Not safe for threads: the owner locks.

    Best fit: the smallest range that holds the request, the lowest address among equals, so that the high
    end of the space stays whole.
    """

    def __init__(self, size: int, grain: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        """taken: (start, length) of ranges that are handed out already, disjoint."""
        if size < grain or size % grain:
            raise StorageError(f"a space of {size} bytes is not a positive multiple of its grain {grain}")
        self.size = size
        self.grain = grain
        self.used = 0
        self._length_at: dict[int, int] = {0: size}
        self._starts: list[int] = [0]
        self._by_length: list[tuple[int, int]] = [(size, 0)]
        for start, length in sorted(taken):
            self._take_at(start, self.rounded(length))

    @property
    def largest(self) -> int:
        """Length of the largest free range, 0 when full."""
        return self._by_length[-1][0] if self._by_length else 0

    def rounded(self, length: int) -> int:
        """The length that a request for `length` bytes takes."""
        return -(-max(length, 1) // self.grain) * self.grain

    def take(self, length: int) -> int | None:
        """Start of a range of rounded(length) bytes, None where no free range holds it."""
        length = self.rounded(length)
        place = bisect_left(self._by_length, (length, -1))
        if place == len(self._by_length):
            return None
        free, start = self._by_length[place]
        self._remove(start)
        if free > length:
            self._add(start + length, free - length)
        self.used += length
        return start

    def give(self, start: int, length: int) -> None:
        """Return a range that `take` handed out. Raises StorageError where it overlaps free space."""
        length = self.rounded(length)
        place = bisect_left(self._starts, start)
        after = self._starts[place] if place < len(self._starts) else None
        before = self._starts[place - 1] if place else None
        joins_before = before is not None and before + self._length_at[before] >= start
        if (after is not None and after < start + length) or (
            before is not None and before + self._length_at[before] > start
        ):
            raise StorageError(f"the range {start}..{start + length} was given back twice")
        self.used -= length
        if after == start + length:
            length += self._length_at[after]
            self._remove(after)
        if before is not None and joins_before:
            length += self._length_at[before]
            start = before
            self._remove(before)
        self._add(start, length)

    def free(self) -> list[tuple[int, int]]:
        """(start, length) of every free range, by start."""
        return [(start, self._length_at[start]) for start in self._starts]

    def _take_at(self, start: int, length: int) -> None:
        """Take a range behind all that are taken. Raises StorageError where it overlaps one."""
        first = self._starts[-1] if self._starts else self.size
        if start < first or start + length > self.size:
            raise StorageError(f"the range {start}..{start + length} was handed out twice")
        whole = self._length_at[first]
        self._remove(first)
        if start > first:
            self._add(first, start - first)
        if first + whole > start + length:
            self._add(start + length, first + whole - start - length)
        self.used += length

    def _add(self, start: int, length: int) -> None:
        self._length_at[start] = length
        insort(self._starts, start)
        insort(self._by_length, (length, start))

    def _remove(self, start: int) -> None:
        length = self._length_at.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        del self._by_length[bisect_left(self._by_length, (length, start))]
