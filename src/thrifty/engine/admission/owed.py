"""Bytes of a sequence's cache that its promise does not tell: taken over from a session, or away on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.running import Running


def taken_over(cache: SequenceCache) -> int:
    """Bytes of a cache that it took over from a session, outside its own promise."""
    return sum(segment.nbytes for segment in cache.segments() if segment.reservation is not cache.reservation)


def missing(sequence: Running) -> int:
    """Bytes that a parked sequence needs before it can go on: what was promised, and what lies on disk."""
    cache = sequence.cache
    assert cache is not None and cache.reservation is not None
    away = sum(segment.nbytes for segment in cache.away())
    return max(cache.reservation.outstanding, away)
