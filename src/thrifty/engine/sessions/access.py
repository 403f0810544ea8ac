"""What an engine's owner asks of its sessions, from any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thrifty.engine.sessions.sessions import SessionFacts, Sessions
    from thrifty.engine.turn import Turn


class SessionAccess:
    """`Engine.sessions`: the engine's turn orders every call."""

    def __init__(self, sessions: Sessions, turn: Turn) -> None:
        self._sessions, self._turn = sessions, turn

    def facts(self, salt: str = "") -> list[SessionFacts]:
        """The sessions under a salt, by name."""
        with self._turn:
            return self._sessions.facts(salt)

    def drop(self, name: str, salt: str = "") -> bool:
        """Forget a session and free what it holds; False where there is none. Raises SessionError while a request goes
        on from it.
        """
        with self._turn:
            return self._sessions.drop(name, salt)

    @property
    def nbytes(self) -> int:
        """Bytes of all sessions, in memory and on disk."""
        with self._turn:
            return self._sessions.nbytes
