"""Where a conversation stood before each of its last turns: what a session goes back to for another answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache

MOST = 4
"""Turns that a session can go back. Each may hold as much as the session itself; what both hold is shared."""


@dataclass(frozen=True, eq=False)
class Point:
    """tokens: all that were read and said by then; the newest has no row in `cache` yet. cache: None at the start of a
    conversation, where nothing is held. turns: answers by then.
    """

    tokens: tuple[int, ...]
    cache: SequenceCache | None
    turns: int

    @property
    def rows(self) -> int:
        """Tokens that its cache holds rows of, evicted ones included."""
        return 0 if self.cache is None else self.cache.length

    def begins(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins with what it has read, and says more."""
        held = self.tokens[: self.rows]
        return len(prompt) > len(held) and tuple(prompt[: len(held)]) == held


START = Point((), None, 0)


class Points:
    """The points of one session, oldest first. They own their caches."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def add(self, point: Point) -> None:
        """Keep the newest one; beyond `MOST` the oldest goes."""
        self._points.append(point)
        while len(self._points) > MOST:
            self.drop_oldest()

    def drop_oldest(self) -> None:
        """Free the one that is farthest back."""
        _free(self._points.pop(0))

    def drop_behind(self, point: Point) -> None:
        """Free those that are newer than this one; all, where it is none of them."""
        while self._points and self._points[-1] is not point:
            _free(self._points.pop())

    def take(self, point: Point) -> None:
        """Let go of one whose cache has another owner from now on."""
        self._points = [own for own in self._points if own is not point]

    def clear(self) -> None:
        """Free all."""
        while self._points:
            self.drop_oldest()


def _free(point: Point) -> None:
    if point.cache is not None:
        point.cache.free()
