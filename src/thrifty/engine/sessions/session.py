"""A session: the cache of one conversation between two requests, and what the next one must bring to go on from it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from thrifty.engine.sessions.points import START, Point, Points
from thrifty.errors import SessionError

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.sequence import SequenceCache
    from thrifty.cache.slots.segment import Segment
    from thrifty.engine.request import Request


HALF = "\ufffd"
"""What stands for a character of which some bytes are missing."""


class Decoder(Protocol):
    """What a session asks of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of some ids."""
        ...


@dataclass(eq=False)
class Session:
    """tokens: all that were read and said; the newest has no row in `cache` yet. policies: of the recipe it began with.
    kind: what else its rows depend on (adapter, steering, rotation). turns: answers so far. busy: a request goes on
    from it. used: when it was last asked for, by a clock that counts. lent: the request that goes on holds its only
    cache. begun: that request was admitted. lost: why it is gone, where its request waits still. first: tokens of the
    prompt that it began with. points: where it stood before its last turns. source: what its request goes on from.
    """

    name: str
    salt: str
    tokens: tuple[int, ...] = ()
    cache: SequenceCache | None = None
    policies: tuple[CachePolicy, ...] = ()
    kind: Hashable = None
    turns: int = 0
    busy: bool = False
    used: int = 0
    lent: bool = False
    begun: bool = False
    lost: str | None = None
    first: int = 0
    points: Points = field(default_factory=Points)
    source: Point = START

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by: equal names under different salts are different sessions."""
        return self.salt, self.name

    @property
    def rows(self) -> int:
        """Tokens that its cache holds rows of, evicted ones included."""
        return 0 if self.cache is None else self.cache.length

    @property
    def now(self) -> Point:
        """Where it stands."""
        return Point(self.tokens, self.cache, self.turns)

    @property
    def segments(self) -> list[Segment]:
        """All that it holds, its points among it, each once."""
        held = {id(own): own for cache in self._caches() for own in cache.segments()}
        return list(held.values())

    def bytes_in(self, tier: str) -> int:
        """Bytes of its segments in "memory" or on "disk"; what it shares with others counts in full."""
        return sum(segment.nbytes for segment in self.segments if segment.tier == tier)

    @property
    def nbytes(self) -> int:
        """Bytes of its segments, wherever they are."""
        return sum(segment.nbytes for segment in self.segments)

    @property
    def resident(self) -> int:
        """Bytes that it holds in memory: of segments on disk positions, biases and first keys."""
        return sum(own.nbytes if own.tier == "memory" else own.index_bytes for own in self.segments)

    @property
    def parked(self) -> bool:
        """Whether nobody is about to go on from it."""
        return all(cache.parked for cache in self._caches())

    def check(self, request: Request, policies: Sequence[CachePolicy], kind: Hashable) -> None:
        """Raise SessionError where a request cannot go on from it, with what would do."""
        if self.busy:
            raise SessionError(
                f"the session {self.name!r} is answering another request; wait for its end, or use another name",
                "session_busy",
            )
        if self.cache is None:
            return
        if tuple(policies) != self.policies:
            raise self._mismatch("its cache was compressed by another recipe than this request's")
        if kind != self.kind:
            raise self._mismatch("its cache was computed with another adapter, other steering or another rotation")
        if self.source_of(request.ids) is not None:
            return
        held = self.tokens[: self.rows]
        place = next((place for place, (one, other) in enumerate(zip(held, request.ids, strict=False)) if one != other),
                     min(len(held), len(request.ids)))  # fmt: skip
        raise self._mismatch(
            f"it has read {len(held)} tokens, and this prompt of {len(request.ids)} differs from them at token {place}"
            f", before the last {len(self.points)} turns that it can go back"
        )

    def source_of(self, prompt: Sequence[int]) -> Point | None:
        """Where a prompt goes on: what is held, or the newest point that it begins with (its last turn is asked again,
        or edited), or the start; None where it says something else.

        It goes back to the start for the first turn's own prompt. The full cache also for any prompt that begins with
        that: reading it again is quick where the prefix tree has it, and always the same.
        """
        for point in (self.now, *reversed(list(self.points))):
            if point.begins(prompt):
                return point
        if not self.first or tuple(prompt[: self.first]) != self.tokens[: self.first]:
            return None
        return START if len(prompt) == self.first or not self.policies else None

    def go_back(self) -> None:
        """Stand for good where its request goes on from; what came behind is forgotten, and every point."""
        source = self.source
        if source.cache is not None and source.cache is not self.cache:
            self.points.take(source)
            self._free()
            self.tokens, self.cache, self.turns = source.tokens, source.cache, source.turns
        self.points.clear()

    def advance(self, cache: SequenceCache, tokens: Sequence[int], first: int) -> None:
        """Stand behind an answer. cache: its own from now on. tokens: of prompt and answer. first: of the prompt, if
        it is the first turn's.
        """
        before, source = self.now, self.source
        if source.cache is not before.cache:  # it went back
            self._free()
            self.points.drop_behind(source)
        elif before.cache is not None and self.policies:
            self.points.add(before)
        else:
            self._free()
        if source is START:
            self.first = min(self.first or first, first)
        self.tokens, self.cache, self.turns = tuple(tokens), cache, source.turns + 1

    def free(self) -> None:
        """Let go of all that it holds."""
        self._free()
        self.points.clear()

    def _free(self) -> None:
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.free()

    def _caches(self) -> Iterator[SequenceCache]:
        for cache in (self.cache, *(point.cache for point in self.points)):
            if cache is not None:
                yield cache

    def _mismatch(self, reason: str) -> SessionError:
        return SessionError(
            f"the session {self.name!r} cannot go on with this request: {reason}. Send the conversation as the session "
            "has it and what is new behind it, or drop the session, or use another name",
            "session_mismatch",
        )


def away(cache: SequenceCache) -> int:
    """Bytes that come to memory when a cache is gone on from: positions and biases are there already."""
    return sum(segment.nbytes - segment.index_bytes for segment in cache.away())


def aligned(tokens: Sequence[int], prompt: Sequence[int], tokenizer: Decoder) -> tuple[int, ...] | None:
    """A prompt whose beginning says the same text as a session's `tokens`, with these in its place; None where it says
    another. An answer that comes back as text is often cut into other tokens than the model chose.
    """
    alike = next((place for place, (one, other) in enumerate(zip(tokens, prompt, strict=False)) if one != other),
                 min(len(tokens), len(prompt)))  # fmt: skip
    if alike == len(tokens):
        return tuple(prompt)
    wanted = tokenizer.decode(list(tokens[alike:]), skip_special=False)
    if not tokenizer.decode(list(prompt[alike:]), skip_special=False).startswith(wanted.rstrip(HALF)):
        return None  # as for most of what a session may go back to: told without a look at every token
    for stop in range(alike, len(prompt) + 1):
        text = tokenizer.decode(list(prompt[alike:stop]), skip_special=False)
        if text == wanted and stop < len(prompt):
            return (*tokens, *prompt[stop:])
        if not wanted.startswith(text.rstrip(HALF)):
            return None
    return None
