"""A session: the cache of one conversation between two requests, and what the next one must bring to go on from it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thrifty.errors import SessionError

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.sequence import SequenceCache
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
    cache. begun: that request was admitted. lost: why it is gone, where its request waits still.
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

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by: equal names under different salts are different sessions."""
        return self.salt, self.name

    @property
    def rows(self) -> int:
        """Tokens that its cache holds rows of, evicted ones included."""
        return 0 if self.cache is None else self.cache.length

    def bytes_in(self, tier: str) -> int:
        """Bytes of its segments in "memory" or on "disk"; what it shares with others counts in full."""
        if self.cache is None:
            return 0
        return sum(segment.nbytes for segment in self.cache.segments() if segment.tier == tier)

    @property
    def away(self) -> int:
        """Bytes that come to memory when it is gone on from: positions and biases are there already."""
        if self.cache is None:
            return 0
        return sum(segment.nbytes - segment.index_bytes for segment in self.cache.segments() if segment.tier == "disk")

    @property
    def nbytes(self) -> int:
        """Bytes of its segments, wherever they are."""
        return 0 if self.cache is None else self.cache.nbytes

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
        held = self.tokens[: self.rows]
        if request.ids[: len(held)] == held and len(request.ids) > len(held):
            return
        place = next((place for place, (one, other) in enumerate(zip(held, request.ids, strict=False)) if one != other),
                     min(len(held), len(request.ids)))  # fmt: skip
        raise self._mismatch(
            f"it has read {len(held)} tokens, and this prompt of {len(request.ids)} differs from them at token {place}"
        )

    def _mismatch(self, reason: str) -> SessionError:
        return SessionError(
            f"the session {self.name!r} cannot go on with this request: {reason}. Send the conversation as the session "
            "has it and what is new behind it, or drop the session, or use another name",
            "session_mismatch",
        )


def aligned(tokens: Sequence[int], prompt: Sequence[int], tokenizer: Decoder) -> tuple[int, ...] | None:
    """A prompt whose beginning says the same text as a session's `tokens`, with these in its place; None where it says
    another. An answer that comes back as text is often cut into other tokens than the model chose.
    """
    alike = next((place for place, (one, other) in enumerate(zip(tokens, prompt, strict=False)) if one != other),
                 min(len(tokens), len(prompt)))  # fmt: skip
    if alike == len(tokens):
        return tuple(prompt)
    wanted = tokenizer.decode(list(tokens[alike:]), skip_special=False)
    for stop in range(alike, len(prompt) + 1):
        text = tokenizer.decode(list(prompt[alike:stop]), skip_special=False)
        if text == wanted and stop < len(prompt):
            return (*tokens, *prompt[stop:])
        if not wanted.startswith(text.rstrip(HALF)):
            return None
    return None
