"""One HTTP request on its way to a replica, and the ASGI messages on their way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

CARRIED = (
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""Of an ASGI scope, what a replica needs: plain values."""

LAST_WORDS = 2.0
"""Seconds that the application gets to end a request whose client hung up."""


@dataclass(frozen=True)
class HttpCall:
    """A request: its ASGI scope (what is CARRIED), its whole body, names of its prompt's beginnings, its session."""

    scope: dict[str, Any]
    body: bytes
    blocks: list[bytes]
    session: str | None


def carried(scope: Scope) -> dict[str, Any]:
    """What of a scope goes to a replica."""
    return {name: scope[name] for name in CARRIED if name in scope}


async def answered(app: ASGIApp, call: HttpCall) -> AsyncGenerator[list[Message], None]:
    """The application's messages, those that are there at a time together. Closing the iterator is a client that hangs
    up. Raises what the application raises.
    """
    gone, arrived = asyncio.Event(), asyncio.Event()
    requests: list[Message] = [{"type": "http.request", "body": call.body, "more_body": False}]
    messages: list[Message] = []

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)
        arrived.set()

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {}, **call.scope}
    task = asyncio.ensure_future(app(scope, receive, send))
    task.add_done_callback(lambda _: arrived.set())
    try:
        while messages or not task.done():
            await arrived.wait()
            arrived.clear()
            if messages:
                batch, messages = messages, []
                yield batch
        await task
    finally:
        gone.set()
        if not task.done():
            await asyncio.wait((task,), timeout=LAST_WORDS)
            task.cancel()
