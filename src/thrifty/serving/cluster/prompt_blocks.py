"""The beginnings of a request's prompt, as short names: equal names, equal beginnings. No tokenizer is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

BLOCK = 256
"""Characters: about the 64 tokens of a page, which is what replicas share."""

MOST_BLOCKS = 256
"""Of a prompt; what comes later tells little about where it was read before."""

GENERATING = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"))
"""Endpoints whose prompts go through the prefix tree."""

SESSIONS = "/v1/sessions/"
"""What stands before a session's name."""

BEFORE = ("model", "thrifty", "tools", "chat_template_kwargs", "system", "instructions")
"""Fields that stand before the conversation in a prompt, or decide whether prefixes are shared at all."""


def blocks_of(path: str, body: Mapping[str, Any], key: str | None) -> list[bytes]:
    """Names of the prompt's beginnings, 8 bytes each, shortest first; the last, partial block has none. body: as the
    client sent it, unchecked. key: the client's, which shares prefixes with no other.
    """
    if path not in GENERATING:
        return []
    running = hashlib.blake2b(repr(key).encode(), digest_size=8)
    blocks: list[bytes] = []
    pending = ""
    for piece in _pieces(body):
        pending += piece
        whole = len(pending) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            running.update(pending[start : start + BLOCK].encode("utf-8", "surrogatepass"))
            blocks.append(running.copy().digest())
            if len(blocks) == MOST_BLOCKS:
                return blocks
        pending = pending[whole:]
    return blocks


def session_of(method: str, path: str, body: Mapping[str, Any], key: str | None) -> str | None:
    """The conversation that a request goes on with, or that it drops, saves or restores, where it names one. key: the
    client's, since a name stands for another conversation with each key.
    """
    if path.startswith(SESSIONS):
        name = path.removeprefix(SESSIONS)
        session: Any = name.removesuffix("/save").removesuffix("/restore") if method == "POST" else name
    else:
        extensions = body.get("thrifty")
        session = extensions.get("session") if isinstance(extensions, dict) else None
    return f"{key!r}/{session}" if isinstance(session, str) else None


def _pieces(body: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a prompt in an order in which equal prompts begin equally."""
    for name in BEFORE:
        value = body.get(name)
        if isinstance(value, dict):
            value = {field: given for field, given in value.items() if field != "session"}
        if value:
            yield f"\0{name}\0{_text(value)}"
    for name in ("prompt", "input", "messages"):
        value = body.get(name)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                rest = {field: given for field, given in entry.items() if field not in ("role", "content")}
                yield f"\0{entry.get('role')}\0{_text(entry.get('content'))}{_text(rest) if rest else ''}"
            elif entry is not None:
                yield f"{_text(entry)},"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
