"""A session to a file and back: what belongs to it, and which files another engine refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty import registry
from thrifty.cache.frozen import freeze, thaw
from thrifty.engine.sessions import files
from thrifty.engine.sessions.session import Session
from thrifty.errors import PromptError, RecipeError, SessionError, StorageError

if TYPE_CHECKING:
    from thrifty.arrays import Array
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.policy import CachePolicy
    from thrifty.cache.sequence import SequenceCache
    from thrifty.engine.sessions.sessions import Sessions


def hold(sessions: Sessions, name: str, salt: str) -> tuple[Session, SequenceCache]:
    """A session, and a second sequence with its content: while it is held, what it shares stays where it is.

    Raises SessionError where there is none or it is busy, BudgetError where its open page does not fit twice.
    """
    session = sessions.idle(name, salt)
    assert session.cache is not None, "an idle session has a cache"
    return dataclasses.replace(session), session.cache.fork()


def save(model: ModelInfo, session: Session, cache: SequenceCache, folder: Path) -> Path:
    """Write what was held to the folder; see `SessionAccess.save`. Nothing else has to wait for this."""
    try:
        facts, arrays = freeze(cache)
    except (PromptError, StorageError) as error:
        raise SessionError(f"the session {session.name!r} cannot be saved: {error}", files.CODE) from error
    path = files.file_of(folder, session.name, session.salt)
    about = {
        "model": _model_key(model),
        "name": session.name,
        "salt": files.salt_key(session.salt),
        "recipe": [_table(policy) for policy in session.policies],
        "kind": session.kind,
        "tokens": list(session.tokens),
        "turns": session.turns,
        "first": session.first,
    }
    files.write(path, {"about": about, "sequence": facts}, arrays)
    return path


Content = tuple[dict[str, Any], dict[str, "Array"]]
"""Facts and arrays of a file."""


def restore(sessions: Sessions, name: str, salt: str, path: Path, content: Content) -> None:
    """See `SessionAccess.restore`. content: what was read of the file."""
    facts, arrays = content
    try:
        about: dict[str, Any] = facts["about"]
        if about["name"] != name or about["salt"] != files.salt_key(salt):
            raise files.refused(path, "it is the session of another name, or of another key")
        if about["model"] != _model_key(sessions.model):
            raise files.refused(path, "it is of another model, or of the same with other weights")
        policies = tuple(registry.build("cache", table) for table in about["recipe"])
        tokens = tuple(int(token) for token in about["tokens"])
        turns, first, kind = int(about["turns"]), int(about.get("first", 0)), _frozen(about["kind"])
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise files.refused(path, f"its facts do not do ({type(error).__name__}: {error})") from error
    sessions.check_free(name, salt)
    sessions.make_room(sum(own.nbytes for own in arrays.values()))
    try:
        cache = thaw(sessions.cache, policies, facts["sequence"], arrays)
    except StorageError as error:
        raise files.refused(path, str(error)) from error
    if not 0 < cache.length <= len(tokens) or not 0 <= first <= len(tokens):
        cache.free()
        raise files.refused(path, f"it has {cache.length} rows for {len(tokens)} tokens, of which {first} began it")
    sessions.put(Session(name, salt, tokens, cache, policies, kind, turns, first=first))


def _model_key(model: ModelInfo) -> list[Any]:
    """What segments depend on of a model."""
    windows = [0 if window is None else window for window in model.windows]
    widths = [[own.heads, own.kv_heads, own.head_dim] for own in map(model.of, range(model.layers))]
    return [model.version, model.format, windows, widths]


def _table(policy: CachePolicy) -> dict[str, Any]:
    """A policy as a recipe's table."""
    return {"technique": policy.name, **dataclasses.asdict(policy)}  # type: ignore[call-overload]


def _frozen(value: Any) -> Hashable:
    """Lists of JSON as tuples."""
    return tuple(_frozen(own) for own in value) if isinstance(value, list) else value
