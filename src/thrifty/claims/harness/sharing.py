"""Requests that begin with what an earlier prompt left: a context that many policies compress is prefilled once.

A policy's prompt goes to the engine's disk tier as it was before compression, and the next policy begins with these
pages. It acts on the same rows as without them, so that its scores are the same to the bit (`cache/prompt_pages.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from thrifty.evaluation.asking import compresses
from thrifty.evaluation.forcing import Tables

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.engine.request import Handle, Listener, Request


class SharedPrompts:
    """An engine for tasks: requests whose cache tables compress share their prompts, all others run alone (full pages
    would stay in memory).

    cache: tables of all requests that bring none, which says nothing of compressing: a measurement that insists on a
    compressed cache does not ask for it then, as a control with the full budget needs.
    """

    def __init__(self, engine: Engine, cache: Tables | None = None) -> None:
        self._engine = engine
        self._cache = cache

    def submit(self, request: Request, listener: Listener | None = None) -> Handle:
        """As the engine's."""
        cache = self._cache if request.cache is None else request.cache
        return self._engine.submit(replace(request, cache=cache, share_prefix=compresses(cache)), listener)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def shared(engine: Engine, cache: Tables | None = None) -> Engine:
    """The engine as tasks take it."""
    return cast("Engine", SharedPrompts(engine, cache))
