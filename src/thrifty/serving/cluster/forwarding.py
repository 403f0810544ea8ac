"""The front's way to the replicas: a request goes to one, and to another where that is lost before the answer began."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from thrifty.errors import ThriftyError
from thrifty.serving.access.keys import key_of
from thrifty.serving.cluster.calls import HttpCall, carried
from thrifty.serving.cluster.prompt_blocks import blocks_of, session_of
from thrifty.serving.cluster.relay import Relay
from thrifty.serving.errors import RequestError

_LOG = logging.getLogger("thrifty.serving")

Ask = Callable[[HttpCall], AsyncGenerator[list[Message], None]]
"""Sends a request to the replica that the router chooses. Raises ReplicaLost where that one ends before the answer
does, and RequestError for what is refused.
"""

PAUSE = 0.2
"""Seconds before a lost request is sent again; twice as many each time."""


class ReplicaLost(Exception):
    """A replica ended in the middle of an answer."""


class Forwarding:
    """An ASGI application that has replicas answer. ask: see Ask. retries: how often a lost request is sent again."""

    def __init__(self, ask: Ask, retries: int) -> None:
        self._ask, self._retries = ask, retries
        self._ending = asyncio.Event()
        self.retried = 0
        self.lost = 0

    def end_all(self) -> None:
        """End every answer under way, and tell its client that the server stops."""
        self._ending.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")  # BodyLimits hands it over in one piece
        relay = Relay(scope, receive, send)
        answer = asyncio.ensure_future(self._answer(call_of(scope, body), relay))
        gone = asyncio.ensure_future(_hung_up(receive))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait((answer, gone, ending), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            await _cancelled(answer)
            if not gone.done():
                await relay.fail(
                    RequestError(
                        "the server is shutting down and ended this answer; ask again", 503, code="shutting_down"
                    )
                )
        finally:
            for task in (answer, gone, ending):
                task.cancel()

    async def _answer(self, call: HttpCall, relay: Relay) -> None:
        for attempt in range(self._retries + 1):
            try:
                async with contextlib.aclosing(self._ask(call)) as batches:
                    async for batch in batches:
                        for message in batch:
                            await relay.push(message)
                return None
            except ReplicaLost as error:
                if relay.done:
                    return None
                _LOG.warning("a replica was lost with a request (%s): %s", "begun" if relay.begun else "again", error)
                if relay.begun or attempt == self._retries:
                    break
                self.retried += 1
                relay.again()
                await asyncio.sleep(PAUSE * 2**attempt)
            except ThriftyError as error:
                return await relay.fail(error)
            except Exception as error:  # told to the client without its words, as the application itself does
                if not relay.done:
                    _LOG.exception("a request failed")
                return await relay.fail(error)
        self.lost += 1
        told = "the machine that gave this answer was lost; ask again"
        return await relay.fail(RequestError(told, 503, code="replica_lost"))


def call_of(scope: Scope, body: bytes) -> HttpCall:
    """A request as replicas take it. A body that is no JSON object is the replica's to refuse."""
    fields: Any = None
    if scope["method"] == "POST":
        with contextlib.suppress(ValueError, RecursionError):
            fields = json.loads(body)
    given: dict[str, Any] = fields if isinstance(fields, dict) else {}
    path, key = scope["path"], key_of(HTTPConnection(scope))
    return HttpCall(carried(scope), body, blocks_of(path, given, key), session_of(scope["method"], path, given, key))


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
