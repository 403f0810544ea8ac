"""All sessions of an engine, by salt and name, within a bound: what was used least goes first, and it is said."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from thrifty.cache.slots.segment import SESSIONS
from thrifty.engine.sessions.points import START
from thrifty.engine.sessions.session import Decoder, Session, aligned, away
from thrifty.errors import BudgetError, SessionError
from thrifty.storage.budget import format_size

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.pool import Cache
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.request import Request
    from thrifty.storage.ledger import Reservation

TAKEN = "other requests needed its memory, and the disk tier had no room for it"
REMEMBERED = 4096
"""Names of sessions that are gone, of which a request is told once."""


@dataclass(frozen=True)
class SessionFacts:
    """What an engine tells of a session. memory, disk: bytes of its cache there."""

    name: str
    tokens: int
    turns: int
    memory: int
    disk: int
    busy: bool


class Sessions:
    """The caches that conversations go on from. The engine's turn orders its calls.

    A session's cache is a parked sequence: where memory is short its segments move to the disk tier, as those of any
    parked sequence do. What a request adds to it becomes the session's when the answer ends well; until then, and after
    an error or a cancelled answer, the session stays as it was.
    """

    def __init__(self, cache: Cache, capacity: int) -> None:
        """capacity: bytes of all sessions, in memory and on disk."""
        self.capacity = capacity
        self._cache = cache
        self._sessions: dict[tuple[str, str], Session] = {}
        self._gone: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._clock = count(1)
        cache.expire = self._expire

    # --- what requests ask ---------------------------------------------------------------------------

    def aligned(self, request: Request, tokenizer: Decoder | None) -> tuple[int, ...]:
        """The prompt of a request, with the tokens of its session where both say the same text."""
        session = self._sessions.get((request.salt, request.session or ""))
        if session is None or session.cache is None or tokenizer is None or request.media is not None:
            return request.ids
        for point in (session.now, *reversed(list(session.points))):
            for tokens in (point.tokens, point.tokens[: point.rows]):
                prompt = aligned(tokens, request.ids, tokenizer)
                if prompt is not None:
                    return prompt
        return request.ids

    def policies_of(self, request: Request) -> tuple[CachePolicy, ...]:
        """Those of the session that a request goes on from; none where it begins one, or names none."""
        session = self._sessions.get((request.salt, request.session or ""))
        return () if session is None or session.cache is None else session.policies

    def check(self, request: Request, policies: Sequence[CachePolicy], kind: Hashable) -> None:
        """Raise SessionError where a request cannot go on from the session that it names. An unknown one is new."""
        name = str(request.session)
        reason = self._gone.pop((request.salt, name), None)
        if reason is not None:
            raise _expired(name, reason)
        session = self._sessions.get((request.salt, name))
        if session is not None:
            session.check(request, policies, kind)

    def begin(self, request: Request, policies: Sequence[CachePolicy], kind: Hashable) -> Session:
        """The session of a request that passed `check`, busy from now on until `end`. It goes on from what it holds, or
        from where it stood before, as the prompt begins.
        """
        key = request.salt, str(request.session)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session(key[1], key[0], policies=tuple(policies), kind=kind)
        session.busy, session.used = True, next(self._clock)
        session.source = START if session.cache is None else session.source_of(request.ids) or START
        return session

    def promise(self, session: Session, owner: str, need: int, bound: int | None) -> Reservation:
        """Room for a request of `need` bytes beside its session, which comes to memory. Where there is none beside it,
        the session forgets where it stood before, and what it said behind the place that it goes back to. Where there
        is none still, the request takes the session's only cache over: if its answer does not end well, the session is
        gone. bound: see `Ledger.reserve`. Raises BudgetError, with nothing promised.
        """
        cache = session.source.cache
        assert cache is not None, "a session without a cache begins like any request"
        cache.parked = False  # its segments are in use: they never make room for each other
        try:
            try:
                return self._beside(owner, need, away(cache), bound)
            except BudgetError:
                if session.points:
                    session.go_back()
                    return self.promise(session, owner, need, bound)
                own = max(0, need - cache.nbytes)
                reservation = self._beside(owner, own, away(cache), bound)
                session.lent = True
                return reservation
        finally:
            cache.parked = True

    def _beside(self, owner: str, need: int, away: int, bound: int | None) -> Reservation:
        """A promise of `need` bytes that leaves `away` bytes to what comes from disk."""
        self._cache.tiers.make_room(need + away)
        reservation = self._cache.reserve(owner, need, bound)
        available = self._cache.ledger.available
        if available is not None and available < away:
            reservation.release()
            raise BudgetError(
                f"{owner}: a session of {format_size(away)} on disk does not fit beside it; {format_size(available)} "
                "are left"
            )
        return reservation

    def resume(self, session: Session, reservation: Reservation) -> SequenceCache:
        """A cache that goes on from the session's, in memory. Raises BudgetError or StorageError, with the session as
        it was.
        """
        held = session.source.cache
        assert held is not None, "a session without a cache begins like any request"
        self._cache.tiers.make_room(away(held))
        held.parked = False  # its segments are in use: they never make room for each other
        try:
            held.bring_in()
            cache = held.fork(reservation)
        finally:
            held.parked = True
        cache.hit = cache.length
        session.begun = True
        if session.lent:
            session.cache = None
            held.free()
        return cache

    def keep(self, session: Session, cache: SequenceCache, tokens: Sequence[int], first: int) -> None:
        """An answer ended well: its cache is the session's from now on. tokens: of prompt and answer, of which the
        newest has no row. first: tokens of the prompt. Raises what going back to these raises; the cache is the
        caller's then.
        """
        cache.discard()
        cache.truncate(max(0, cache.length - (len(tokens) - 1)))
        cache.stop_snapshots()
        cache.park()
        session.advance(cache, tokens, first)
        _take(cache)

    def end(self, session: Session) -> None:
        """The request that went on from it is over."""
        session.busy = session.lent = session.begun = False
        session.source = START
        session.used = next(self._clock)
        if session.cache is None:
            told = not session.turns or session.lost is not None
            self._forget(session, None if told else "its last answer did not end well")
        self._shrink()

    # --- what operators and clients ask --------------------------------------------------------------

    def facts(self, salt: str = "") -> list[SessionFacts]:
        """The sessions under a salt, by name."""
        mine = sorted(
            (session for session in self._sessions.values() if session.salt == salt), key=lambda own: own.name
        )
        return [
            SessionFacts(own.name, len(own.tokens), own.turns, own.bytes_in("memory"), own.bytes_in("disk"), own.busy)
            for own in mine
            if own.cache is not None or own.busy
        ]

    def drop(self, name: str, salt: str = "") -> bool:
        """Forget a session; False where there is none. Raises SessionError where a request goes on from it."""
        self._gone.pop((salt, name), None)
        self.check_free(name, salt)
        session = self._sessions.get((salt, name))
        if session is None:
            return False
        self._forget(session, None)
        return True

    # --- files ---------------------------------------------------------------------------------------

    @property
    def cache(self) -> Cache:
        """Where their segments lie."""
        return self._cache

    @property
    def model(self) -> ModelInfo:
        """The model of all of them."""
        return self._cache.model

    def idle(self, name: str, salt: str) -> Session:
        """A session that nobody goes on from now. Raises SessionError."""
        self.check_free(name, salt)
        session = self._sessions.get((salt, name))
        if session is None:
            raise SessionError(f"there is no session {name!r}", "session_not_found")
        return session

    def check_free(self, name: str, salt: str) -> None:
        """Raise SessionError while a request goes on from a session."""
        session = self._sessions.get((salt, name))
        if session is not None and session.busy:
            raise SessionError(f"the session {name!r} is answering a request; wait for its end", "session_busy")

    def make_room(self, nbytes: int) -> None:
        """Ask for idle bytes to go until so many are free. Raises BudgetError where they are not."""
        self._cache.tiers.reserve("a session that is restored", nbytes).release()

    def put(self, session: Session) -> None:
        """A session that was restored, in the place of one of the same name."""
        self.drop(session.name, session.salt)
        assert session.cache is not None, "it was restored"
        _take(session.cache)
        session.used = next(self._clock)
        self._sessions[session.key] = session
        self._shrink()

    @property
    def nbytes(self) -> int:
        """Bytes of all sessions, in memory and on disk."""
        return sum(session.nbytes for session in self._sessions.values())

    @property
    def disk_bytes(self) -> int:
        """Of these, on the disk tier."""
        return sum(session.bytes_in("disk") for session in self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    def close(self) -> None:
        """Let go of all."""
        for session in list(self._sessions.values()):
            self._forget(session, None)
        self._gone.clear()

    # --- inside --------------------------------------------------------------------------------------

    def _idle(self) -> list[Session]:
        """Those that nobody goes on from now, least recently used first."""
        idle = (session for session in self._sessions.values() if not session.busy)
        return sorted(idle, key=lambda session: session.used)

    def _shrink(self) -> None:
        """Keep the bound: first sessions forget where they stood before, then those go that were used least."""
        held = self.nbytes  # counted once: of many sessions it takes a while
        for session in self._idle():
            while session.points and held > self.capacity:
                before = session.nbytes
                session.points.drop_oldest()
                held -= before - session.nbytes
        for session in self._idle():
            if held <= self.capacity:
                return
            held -= session.nbytes
            self._forget(session, f"sessions may hold {format_size(self.capacity)}, and it was used least")

    def _expire(self, nbytes: int) -> None:
        """Free so many bytes of memory, where the disk takes no more. What lies there stays: it is in nobody's way."""
        begun = [session for session in self._sessions.values() if session.begun]  # they go on from a copy
        for session in (*self._idle(), *begun):
            nbytes -= self._forget_points(session, nbytes)
        for session in self._idle():
            held = session.resident
            if nbytes <= 0:
                return
            if not held:
                continue
            nbytes -= held
            self._forget(session, TAKEN)
        for session in [own for own in self._sessions.values() if own.busy and not own.begun]:
            held = session.bytes_in("memory")
            if nbytes > 0 and held and session.parked:
                nbytes -= held
                if session.source is not START:  # its request is told when it is admitted
                    session.lost = TAKEN
                session.free()

    def _forget_points(self, session: Session, nbytes: int) -> int:
        """Let a session forget where it stood before, oldest first, until so many bytes of memory are free; returns
        those that are.
        """
        before = session.resident
        while session.points and before - session.resident < nbytes:
            session.points.drop_oldest()
        return before - session.resident

    def check_held(self, session: Session) -> None:
        """Raise SessionError where a session went while its request waited."""
        if session.lost is not None:
            raise _expired(session.name, session.lost)

    def _forget(self, session: Session, reason: str | None) -> None:
        """reason: what the next request that names it is told; None: nothing, the name is as new."""
        self._sessions.pop(session.key, None)
        session.free()
        if reason is not None:
            self._gone[session.key] = reason
            while len(self._gone) > REMEMBERED:
                self._gone.popitem(last=False)


def _expired(name: str, reason: str) -> SessionError:
    return SessionError(
        f"the session {name!r} is gone: {reason}. Send the whole conversation again: it begins a new session",
        "session_expired",
    )


def _take(cache: SequenceCache) -> None:
    """What a sequence holds is a session's from now on."""
    for segment in cache.segments():
        if segment.category == "cache":
            segment.recategorise(SESSIONS)
