"""What an engine's owner asks of its sessions, from any thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from thrifty.engine.sessions import files, saving

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

    def __len__(self) -> int:
        """How many there are, those that begin now among them."""
        with self._turn:
            return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Bytes of all sessions, in memory and on disk."""
        with self._turn:
            return self._sessions.nbytes

    def save(self, name: str, folder: str | os.PathLike[str], salt: str = "") -> Path:
        """Write a session to a file of the folder, which replaces an older one of the name; returns its path. The
        session stays, and the engine goes on meanwhile. Raises SessionError: none of the name, one that is busy, a
        folder that cannot be written; BudgetError where not even a page is free.
        """
        with self._turn:
            session, cache = saving.hold(self._sessions, name, salt)
        try:
            return saving.save(self._sessions.model, session, cache, Path(folder))
        finally:
            with self._turn:
                cache.free()

    def restore(self, name: str, folder: str | os.PathLike[str], salt: str = "") -> None:
        """Read a session from the folder; it takes the place of one of the same name. Raises SessionError for a file
        that is torn, of another model, or of another version, and BudgetError where it does not fit; nothing is changed
        then.
        """
        path = files.file_of(Path(folder), name, salt)
        content = files.read(path)
        with self._turn:
            saving.restore(self._sessions, name, salt, path, content)
