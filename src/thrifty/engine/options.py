"""The options of an engine as callers give them: NumPy's numbers are numbers, and every wrong type or size is refused.

Everything here raises PromptError that names the option, the value and what would do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from thrifty.decoding.option_values import as_integer, flag, number, shown, whole
from thrifty.engine.runner import CHUNK
from thrifty.errors import PromptError
from thrifty.storage.budget import parse_size


@dataclass(frozen=True)
class EngineOptions:
    """Checked options. What they mean: see `Engine`."""

    threads: int | None
    context: int | None
    native: bool | None
    batch: int
    queue: int
    chunk: int
    prefill_slice_ms: float
    prefix_tree: bool
    disk: str | os.PathLike[str] | None
    drafts: tuple[str, ...]
    conversation_disk: int | None
    session_bytes: int

    @classmethod
    def of(
        cls,
        *,
        threads: Any = None,
        context: Any = None,
        native: Any = None,
        batch: Any = 32,
        queue: Any = 256,
        chunk: Any = 256,
        prefill_slice_ms: Any = 25.0,
        prefix_tree: Any = True,
        disk: Any = None,
        drafts: Any = (),
        conversation_disk: Any = None,
        session_bytes: Any = "1GB",
    ) -> EngineOptions:
        """From values of any type."""
        if disk is not None and not isinstance(disk, str | os.PathLike):
            raise PromptError(f"disk = {shown(disk)} is no folder; use a path, or None for the system's temporary one")
        return cls(
            threads=_integer_or_none("threads", threads, "a number of threads, or None to leave them as they are"),
            context=_integer_or_none("context", context, "a number of tokens, or None for the model's own"),
            native=None if native is None else _native(native),
            batch=whole("batch", batch, 1, "1 or more"),
            queue=whole("queue", queue, 1, "1 or more"),
            chunk=_chunk(chunk),
            prefill_slice_ms=number(
                "prefill_slice_ms", prefill_slice_ms, 0, float("inf"), "0 (whole chunks) or more milliseconds"
            ),
            prefix_tree=flag("prefix_tree", prefix_tree),
            disk=disk,
            drafts=_drafts(drafts),
            conversation_disk=None if conversation_disk is None else parse_size(conversation_disk, "conversation_disk"),
            session_bytes=parse_size(session_bytes, "session_bytes"),
        )


def _integer_or_none(name: str, value: Any, accepted: str) -> int | None:
    """A whole number of any size: who uses it knows the bounds."""
    if value is None:
        return None
    result = as_integer(value)
    if result is None:
        raise PromptError(f"{name} = {shown(value)} is not a whole number; use {accepted}")
    return result


def _drafts(value: Any) -> tuple[str, ...]:
    names = (None,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(name, str) and name for name in names):
        raise PromptError(f"drafts = {shown(value)} is no list of models; use their names or paths, as texts")
    return names


def _native(value: Any) -> bool:
    try:
        return flag("native", value)
    except PromptError as error:
        raise PromptError(f"{error}, or None to take native code where it can") from None


def _chunk(value: Any) -> int:
    chunk = whole("chunk", value, CHUNK, f"a multiple of {CHUNK}")
    if chunk % CHUNK:
        raise PromptError(f"chunk = {chunk} is out of range; use a multiple of {CHUNK}")
    return chunk
